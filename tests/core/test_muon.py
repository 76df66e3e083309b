"""airbench's Muon against an SVD, against PyTorch's SGD and by hand. tests/core/test_optim.py has those of Muon."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.models.classifier import make_classifier
from zerokara.core.muon import NormalizedMuon, orthogonalize
from zerokara.core.optim import GroupSettings, make_optimizer


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
@pytest.mark.parametrize("steps", [3, 5])
def test_newton_schulz_applies_its_polynomial_to_the_singular_values(shape: tuple[int, int], steps: int) -> None:
    """In exact arithmetic the iteration is U p(S) V^T, for p applied to S / ||S|| as often as there are steps."""
    torch.manual_seed(2)
    matrix = torch.randn(3, *shape)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left @ torch.diag_embed(values) @ right
    torch.testing.assert_close(orthogonalize(matrix, steps), expected.float(), atol=2e-5, rtol=0)


def test_the_result_is_near_the_polar_factor() -> None:
    """The polar factor U V^T of a matrix is the orthogonal matrix nearest to it."""
    torch.manual_seed(0)
    matrix = torch.randn(1, 16, 144)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    polar = left @ right
    for steps, least in ((3, 0.98), (5, 0.98)):
        result = orthogonalize(matrix, steps)
        assert (result * polar).sum() / (result.norm() * polar.norm()) > least
    start = (matrix * polar).sum() / (matrix.norm() * polar.norm())
    steep = torch.diag(torch.logspace(0, -2, 16))[None] @ matrix
    left, _, right = torch.linalg.svd(steep, full_matrices=False)
    polar = left @ right
    before = (steep * polar).sum() / (steep.norm() * polar.norm())
    after = (orthogonalize(steep) * polar).sum() / (orthogonalize(steep).norm() * polar.norm())
    assert start > 0.9
    assert before < 0.7 < 0.95 < after


def polar_step(weight: Tensor, gradient: Tensor, momentum: Tensor, rate: float, beta: float) -> Tensor:
    """Return the weight after a step as airbench94_muon.py writes it, with momentum as a sum; changes `momentum`."""
    momentum.mul_(beta).add_(gradient)
    direction = gradient + beta * momentum
    weight = weight * (len(weight) ** 0.5 / weight.norm())
    return weight - rate * orthogonalize(direction.reshape(1, len(weight), -1), 3).view(weight.shape)


def test_filters_are_normalized_before_each_step() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, bias=False)
    expected, momentum = layer.weight.detach().clone(), torch.zeros_like(layer.weight)
    optimizer = NormalizedMuon([{"params": [layer.weight], "muon": True}], lr=0.24, momentum=0.6)
    for _ in range(3):
        layer.weight.grad = torch.randn_like(layer.weight)
        expected = polar_step(expected, layer.weight.grad, momentum, 0.24, 0.6)
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), expected, atol=1e-5, rtol=1e-4)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert layer.weight.norm().item() == pytest.approx(4**0.5)


def test_other_parameters_have_sgd_with_nesterov_momentum() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 4))
    module[0].weight.requires_grad_(False)
    theirs = copy.deepcopy(module)
    rates = GroupSettings(output_learning_rate=0.02, bias_learning_rate=0.5, sgd_momentum=0.85)
    ours = make_optimizer("muon_sgd", module, learning_rate=0.2, weight_decay=0.004, momentum=0.6, **rates)
    groups = [
        {"params": [theirs[2].weight], "lr": 0.02, "weight_decay": 0.004 / 0.02},
        {"params": [theirs[0].bias, theirs[2].bias], "lr": 0.5, "weight_decay": 0.004 / 0.5},
    ]
    reference = torch.optim.SGD(groups, lr=9.0, momentum=0.85, nesterov=True)
    assert [group["lr_factor"] for group in ours.param_groups] == pytest.approx([0.1, 2.5])
    for _ in range(4):
        for p, q in zip(module.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p) if p.requires_grad else None
            q.grad = None if p.grad is None else p.grad.clone()
        ours.step()
        reference.step()
        for p, q in zip(module.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_rates_are_those_of_the_learning_rate_by_default() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = make_optimizer("muon_sgd", module, learning_rate=0.2, weight_decay=0.0, momentum=0.6)
    assert [(group["muon"], group["lr"], group["lr_factor"]) for group in optimizer.param_groups] == [
        (True, 0.2, 1.0),
        (False, 0.2, 1.0),
        (False, 0.2, 1.0),
    ]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 2]


def test_the_frozen_parts_of_airbench_are_in_no_group() -> None:
    with torch.device("meta"):
        classifier = make_classifier("airbench", 3, 32, 10)
    optimizer = make_optimizer(
        "muon_sgd", classifier, learning_rate=0.2, weight_decay=0.0, momentum=0.6, outputs=classifier.output_weights()
    )
    names = {id(p): name for name, p in classifier.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert groups[0] == [f"backbone.blocks.{block}.conv{number}.weight" for block in range(3) for number in (1, 2)]
    assert groups[1] == ["head.fc.weight"]
    norms = [f"backbone.blocks.{block}.norm{number}.bias" for block in range(3) for number in (1, 2)]
    assert groups[2] == ["backbone.whiten.bias", *norms]
