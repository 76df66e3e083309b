"""Centered RMSprop by hand and against float64, Muon by hand and against PyTorch, CompiledAdam against PyTorch."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from zerokara.core.models.classifier import make_classifier
from zerokara.core.muon import orthogonalize
from zerokara.core.optim import (
    CenteredRMSprop,
    CompiledAdam,
    OptimizerName,
    clip_and_step,
    make_optimizer,
)


def test_centered_rmsprop_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = CenteredRMSprop([w], lr=0.1, decay=0.9, eps=0.01)
    w.grad = torch.tensor([2.0])
    optimizer.step()
    # Mean 0.1 * 2 = 0.2, mean square 0.1 * 4 = 0.4, variance 0.4 - 0.04 = 0.36.
    first = 1 - 0.1 * 2 / math.sqrt(0.36 + 0.01)
    assert w.item() == pytest.approx(first, rel=1e-6)
    w.grad = torch.tensor([-1.0])
    optimizer.step()
    # Mean 0.18 - 0.1 = 0.08, mean square 0.36 + 0.1 = 0.46, variance 0.46 - 0.0064.
    assert w.item() == pytest.approx(first + 0.1 / math.sqrt(0.46 - 0.0064 + 0.01), rel=1e-6)


def test_centered_rmsprop_epsilon_is_inside_the_root() -> None:
    w = nn.Parameter(torch.tensor([0.0]))
    optimizer = CenteredRMSprop([w], lr=1.0, decay=0.95, eps=0.01)
    w.grad = torch.tensor([1e-4])
    optimizer.step()
    # A small gradient is divided by sqrt(0.01) = 0.1. With epsilon outside of the root, the divisor would be 0.01.
    assert w.item() == pytest.approx(-1e-3, rel=1e-3)


def test_centered_rmsprop_matches_float64() -> None:
    rng = np.random.default_rng(3)
    shapes = [(3, 4), (5,), (2, 2, 3)]
    params = [nn.Parameter(torch.from_numpy(rng.normal(size=shape)).float()) for shape in shapes]
    expected = [p.detach().double().numpy().copy() for p in params]
    mean = [np.zeros(shape) for shape in shapes]
    square = [np.zeros(shape) for shape in shapes]
    optimizer = CenteredRMSprop(params, lr=2.5e-3)
    for _ in range(60):
        for i, p in enumerate(params):
            g = rng.normal(size=shapes[i]).astype(np.float32)
            p.grad = torch.from_numpy(g.copy())
            mean[i] = 0.95 * mean[i] + 0.05 * g.astype(np.float64)
            square[i] = 0.95 * square[i] + 0.05 * g.astype(np.float64) ** 2
            expected[i] -= 2.5e-3 * g / np.sqrt(square[i] - mean[i] ** 2 + 0.01)
        optimizer.step()
    for p, e in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), e, rtol=1e-4, atol=1e-5)


def test_centered_rmsprop_variance_is_never_negative() -> None:
    w = nn.Parameter(torch.zeros(1000))
    optimizer = CenteredRMSprop([w], lr=1e-4, decay=0.5, eps=1e-12)
    gradient = torch.rand(1000) * 1000
    for _ in range(200):
        w.grad = gradient.clone()
        optimizer.step()
    assert w.isfinite().all()


def test_parameters_without_gradient_are_not_changed() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = CenteredRMSprop([a, b], lr=0.1)
    optimizer.step()
    assert torch.equal(a, torch.ones(2))
    a.grad = torch.ones(2)
    optimizer.step()
    assert (a < 1).all()
    assert torch.equal(b, torch.ones(2))
    assert torch.equal(a.grad, torch.ones(2)), "gradients are not modified"


def test_centered_rmsprop_resumes_exactly() -> None:
    torch.manual_seed(0)
    one = nn.Linear(4, 3)
    optimizer = CenteredRMSprop(one.parameters(), lr=0.01)
    gradients = torch.randn(20, 15)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> None:
        weight, bias = module.parameters()
        weight.grad, bias.grad = gradients[i, :12].view(3, 4).clone(), gradients[i, 12:].clone()
        optimizer.step()

    for i in range(10):
        step(one, optimizer, i)
    two = copy.deepcopy(one)
    restored = CenteredRMSprop(two.parameters(), lr=0.5, decay=0.1, eps=1.0)  # replaced by the values of the state
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in range(10, 20):
        step(one, optimizer, i)
        step(two, restored, i)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(5, 2, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()


NAMES: list[OptimizerName] = ["sgd", "adam", "adamw", "muon"]


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_of_matrices_and_filters_only(name: OptimizerName) -> None:
    """With zero gradients, a step changes only the parameters with weight decay."""
    module = network()
    before = copy.deepcopy(module.state_dict())
    optimizer = make_optimizer(name, module, learning_rate=0.1, weight_decay=0.5, momentum=0.9)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for key, p in module.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, before[key]), key
        elif name == "adam":  # L2 term in the gradient: the first step has the size of the learning rate
            torch.testing.assert_close(p, before[key] - 0.1 * before[key].sign(), atol=1e-4, rtol=1e-4)
        else:
            rate = 0.01 if name == "muon" and key == "6.weight" else 0.1
            rate *= 1.9 if name == "sgd" else 1.0  # Nesterov momentum applies to the decay too
            torch.testing.assert_close(p, before[key] * (1 - rate * 0.5))


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        ("deep_cnn", {"head.classifier.3.weight"}),
        ("resnet20", {"head.fc.weight"}),
        ("googlenet", {"head.fc.weight", "head.aux1.fc2.weight", "head.aux2.fc2.weight"}),
    ],
)
def test_muon_updates_output_layers_with_adamw(backbone: str, names: set[str]) -> None:
    with torch.device("meta"):
        classifier = make_classifier(backbone, 3, 64, 10)
    optimizer = make_optimizer(
        "muon", classifier, learning_rate=0.02, weight_decay=0.0, momentum=0.9, outputs=classifier.output_weights()
    )
    adamw_ids = {id(p) for group in optimizer.param_groups if not group["muon"] for p in group["params"]}
    matrices = {name: p for name, p in classifier.named_parameters() if p.ndim >= 2}
    assert {name for name, p in matrices.items() if id(p) in adamw_ids} == names


@pytest.mark.parametrize("name", [*NAMES, "muon_sgd"])
def test_each_parameter_is_updated_and_in_one_group(name: OptimizerName) -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    optimizer = make_optimizer(name, module, learning_rate=0.01, weight_decay=0.0, momentum=0.9)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(module.parameters()))
    train(module, optimizer, 3)
    assert all(not torch.equal(p, before[key]) for key, p in module.named_parameters())


def test_frozen_weights_are_excluded() -> None:
    module = network()
    module[0].requires_grad_(False)
    optimizer = make_optimizer("muon", module, learning_rate=0.01, weight_decay=0.0, momentum=0.9)
    # Two parameters of BatchNorm, and two of each linear layer.
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


def test_sgd_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    optimizer = make_optimizer("sgd", layer, learning_rate=0.1, weight_decay=0.0, momentum=0.5)
    for gradient, expected in ((2.0, 1 - 0.1 * (2 + 0.5 * 2)), (-1.0, 0.7 - 0.1 * (-1 + 0.5 * (0.5 * 2 - 1)))):
        layer.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        assert layer.weight.item() == pytest.approx(expected)
    plain = make_optimizer("sgd", layer, learning_rate=0.1, weight_decay=0.0, momentum=0.0)
    assert not plain.param_groups[0]["nesterov"]


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(4, *shape)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices)
    values = left.mT @ result @ right.mT  # diagonal, because the singular vectors are unchanged
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.25
    torch.testing.assert_close(values, torch.diag_embed(diagonal), atol=1e-3, rtol=0)
    assert orthogonalize(torch.zeros(1, 2, 2)).isfinite().all()


def test_newton_schulz_by_hand() -> None:
    # diag(3, 4) / 5 = diag(0.6, 0.8); each singular value s becomes 3.4445 s - 4.775 s^3 + 2.0315 s^5
    once = orthogonalize(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]), steps=1)
    expected = [3.4445 * s - 4.775 * s**3 + 2.0315 * s**5 for s in (0.6, 0.8)]
    assert once[0].diagonal().tolist() == pytest.approx(expected, rel=1e-5)


def test_muon_matches_pytorch_on_matrices() -> None:
    """PyTorch's Muon computes in bfloat16, which limits the agreement to three digits."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 9, bias=False), nn.Linear(9, 9, bias=False), nn.Linear(9, 2, bias=False))
    reference_network = copy.deepcopy(network)
    optimizer = make_optimizer("muon", network, learning_rate=0.02, weight_decay=0.1, momentum=0.9)
    *matrices, outputs = reference_network.parameters()
    theirs = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=True)
    last = torch.optim.AdamW([outputs], lr=0.002, weight_decay=0.1)
    for _ in range(4):
        for p, q in zip(network.parameters(), reference_network.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for each in (optimizer, theirs, last):
            each.step()
    *weights, ours = network.parameters()
    for weight, matrix in zip(weights, matrices, strict=True):
        torch.testing.assert_close(weight, matrix, atol=2e-3, rtol=0)
    torch.testing.assert_close(ours, outputs)


def test_muon_flattens_filters_in_any_memory_format() -> None:
    torch.manual_seed(0)
    filters = torch.randn(4, 3, 2, 2)
    updates = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = nn.Conv2d(3, 4, 2, bias=False)
        layer.weight.data = torch.zeros(4, 3, 2, 2).to(memory_format=layout)
        layers = nn.Sequential(layer, nn.Linear(2, 2, bias=False))
        optimizer = make_optimizer("muon", layers, learning_rate=1.0, weight_decay=0.0, momentum=0.0)
        layer.weight.grad = filters.to(memory_format=layout)
        optimizer.step()
        updates.append(layer.weight.detach().contiguous())
    torch.testing.assert_close(updates[0].view(4, 12), -orthogonalize(filters.view(1, 4, 12))[0])
    assert torch.equal(updates[0], updates[1])


@pytest.mark.parametrize("name", [*NAMES, "muon_sgd"])
def test_optimizers_resume_exactly_from_a_file(name: OptimizerName, tmp_path: Path) -> None:
    one = network()
    optimizer = make_optimizer(name, one, learning_rate=0.01, weight_decay=0.1, momentum=0.9)
    train(one, optimizer, 5)
    torch.save({"module": one.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    two = network()
    two.load_state_dict(state["module"])
    restored = make_optimizer(name, two, learning_rate=9.0, weight_decay=0.0, momentum=0.1)
    restored.load_state_dict(state["optimizer"])
    assert [g.get("lr_factor") for g in restored.param_groups] == [g.get("lr_factor") for g in optimizer.param_groups]
    train(one, optimizer, 5, seed=1)
    train(two, restored, 5, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def compiled_adam(
    net: nn.Module, copy_: nn.Module, limit: float | None = None, *, rectified: bool = False
) -> CompiledAdam:
    return CompiledAdam(
        list(net.parameters()),
        list(copy_.parameters()),
        lr=0.01,
        eps=1e-5,
        max_grad_norm=limit,
        function=lambda step: step,
        rectified=rectified,
    )


@pytest.mark.parametrize("limit", [None, 0.5, 1e6])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RAdam])
def test_compiled_adam_matches_pytorch_with_clipping(
    kind: type[torch.optim.Adam] | type[torch.optim.RAdam], limit: float | None
) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    reference_network = copy.deepcopy(net)
    ours = compiled_adam(net, net, limit, rectified=kind is torch.optim.RAdam)
    theirs = kind(reference_network.parameters(), lr=0.01, eps=1e-5)
    for i in range(20):
        x = torch.randn(32, 8)
        for network in (net, reference_network):
            network.zero_grad()
            (network(x).square().mean() * (20 if i % 2 else 0.1)).backward()
        norm, expected = clip_and_step(ours, limit), clip_and_step(theirs, limit)
        torch.testing.assert_close(norm, expected, rtol=1e-4, atol=1e-6)
    for actual, expected in zip(net.parameters(), reference_network.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    theirs.load_state_dict(ours.state_dict())  # the states are interchangeable
    assert float(theirs.state[next(reference_network.parameters())]["step"]) == 20


def test_bfloat16_copies_follow_the_float32_weights() -> None:
    net = nn.Linear(4, 3)
    used = copy.deepcopy(net).to(torch.bfloat16)
    optimizer = compiled_adam(net, used)
    for _ in range(50):  # updates that bfloat16 weights alone would round to zero
        used.zero_grad()
        used(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        before = net.weight.detach().clone()
        optimizer.param_groups[0]["lr"] = 1e-5
        optimizer.clip_and_step()
        assert bool((net.weight != before).all())
        assert torch.equal(used.weight, net.weight.to(torch.bfloat16))
        assert torch.equal(used.bias, net.bias.to(torch.bfloat16))
    with torch.no_grad():
        net.weight.fill_(2.0)
    optimizer.refresh()
    assert bool((used.weight == 2).all())


def test_compiled_adam_skips_parameters_without_gradient() -> None:
    used, idle = nn.Linear(2, 1), nn.Linear(2, 1)
    net, before = nn.ModuleList([used, idle]), idle.weight.detach().clone()
    optimizer = compiled_adam(net, net)
    used(torch.ones(1, 2)).sum().backward()
    optimizer.clip_and_step()
    assert torch.equal(idle.weight, before)
    assert len(optimizer.state_dict()["state"]) == 2
