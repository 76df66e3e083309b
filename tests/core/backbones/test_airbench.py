"""Tests of airbench's network against the published architecture and numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.backbones.airbench import WHITENING_IMAGES, Airbench, Whitening, whitening_filters
from zerokara.core.backbones.cost import layer_costs
from zerokara.core.backbones.heads import MaxPooledHead
from zerokara.core.models.classifier import make_classifier


def test_sizes_of_the_published_network() -> None:
    classifier = make_classifier("airbench", 3, 32, 10)
    assert classifier.backbone.stage_shapes == [(24, 31, 31), (64, 15, 15), (256, 7, 7), (256, 3, 3)]
    assert Airbench(3, 32, width=0.5).stage_shapes == [(24, 31, 31), (32, 15, 15), (128, 7, 7), (128, 3, 3)]
    filters = [24 * 64, 64 * 64, 64 * 256, 256 * 256, 256 * 256, 256 * 256]  # each times 3 x 3
    assert sum(layer.multiply_adds for layer in layer_costs(classifier, (1, 3, 32, 32))) == (
        31 * 31 * 24 * 12
        + 9 * sum(size**2 * number for size, number in zip((31, 15, 15, 7, 7, 3), filters, strict=True))
        + 256 * 10
    )
    trained = {name for name, p in classifier.named_parameters() if p.requires_grad}
    parameters = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
    assert parameters == 24 + 9 * sum(filters) + 2 * (64 + 256 + 256) + 2560
    assert "backbone.whiten.weight" not in trained
    assert "backbone.whiten.bias" in trained
    norms = [layer for layer in classifier.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(not n.weight.requires_grad and n.bias.requires_grad and n.weight.eq(1).all() for n in norms)
    norms[0].train()(torch.full((2, 64, 1, 1), 5.0))
    assert norms[0].running_mean is not None
    assert norms[0].running_mean.tolist() == [2.0] * 64, "0.6 of the old mean, 0, and 0.4 of the new one"


def test_whitening_by_hand() -> None:
    x = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    filters = whitening_filters(x, 1, epsilon=0.25)
    # The second moment of 1 and 3 is 5: the mean is not subtracted.
    assert sorted(filters.flatten().tolist()) == pytest.approx([-(5.25**-0.5), 5.25**-0.5])


def test_whitened_patches_are_uncorrelated() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3, 6, 6)
    x[:, 1] += 2 * x[:, 0]
    x[:, 2, :, 1:] += x[:, 2, :, :-1].clone()
    filters = whitening_filters(x, 2, epsilon=0.1)
    assert torch.equal(filters[12:], -filters[:12])
    out_PM = nn.functional.conv2d(x, filters[:12]).transpose(0, 1).reshape(12, -1)
    moments = out_PM @ out_PM.T / out_PM.shape[1]
    variances = moments.diagonal()
    torch.testing.assert_close(moments, torch.diag(variances), atol=1e-4, rtol=0)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True), "v / (v + epsilon), from the largest v on"
    patches = nn.functional.unfold(x, 2).transpose(0, 1).reshape(12, -1)
    values = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1]).flip(0)
    torch.testing.assert_close(variances, values / (values + 0.1), atol=1e-4, rtol=0)


def test_whitening_takes_evenly_spaced_images() -> None:
    """Images of a folder are in the order of their classes."""
    backbone = Airbench(1, 16, width=1 / 64)
    number = 2 * WHITENING_IMAGES + 1
    images = torch.full((number, 1, 16, 16), 255, dtype=torch.uint8)
    images[::2] = torch.randint(256, (WHITENING_IMAGES + 1, 1, 16, 16), dtype=torch.uint8)
    images[-1] = 0
    seen: list[Tensor] = []

    def normalize(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return pixels / 255

    backbone.initialize_from_images(images, normalize)
    assert torch.equal(seen[0], images[:-1:2])
    assert torch.equal(backbone.whiten.weight, whitening_filters(images[:-1:2] / 255, 2))


def test_the_first_filters_are_the_identity() -> None:
    block = Airbench(3, 32, width=0.25).blocks[0]
    first, second = block.get_submodule("conv1"), block.get_submodule("conv2")
    assert isinstance(second, nn.Conv2d)
    assert isinstance(first, nn.Conv2d)
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(second(x), x)
    y = torch.randn(2, 24, 5, 5)  # more channels than filters
    assert torch.equal(first(y), y[:, :16])
    more = Airbench(3, 32, width=0.5).blocks[0].get_submodule("conv1")
    assert torch.equal(more(y)[:, :24], y)
    assert not torch.equal(more(y)[:, 24:], torch.zeros(2, 8, 5, 5))


def test_a_block_by_hand() -> None:
    """Two images whose maxima, 4 and 8, are normalized to -1 and 1, and so are the GELU of -1 and of 1."""
    block = Airbench(1, 16, width=1 / 64).blocks[1].train()
    x = torch.zeros(2, 1, 2, 2)
    x[0, 0] = torch.tensor([[1.0, 4.0], [2.0, 3.0]])
    x[1, 0] = torch.tensor([[8.0, 5.0], [6.0, 7.0]])
    for name in ("conv1.weight", "conv2.weight"):
        weight = block.get_parameter(name).data
        weight.zero_()
        weight[0, 0, 1, 1] = 1
    normal = 0.841344746  # distribution function of the normal distribution at 1
    assert block(x)[:, 0].flatten().tolist() == pytest.approx([normal - 1, normal], abs=1e-5)


def test_a_frozen_bias_gets_no_gradient_and_changes_no_output() -> None:
    torch.manual_seed(0)
    layer = Whitening(2)
    x = torch.randn(3, 2, 5, 5)
    trained = layer(x)
    layer.trains_bias = False
    frozen = layer(x)
    assert torch.equal(trained, frozen)
    assert trained.requires_grad
    assert not frozen.requires_grad, "nothing before the second layer needs a backward pass"
    trained.sum().backward()
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [3.0 * 4 * 4] * 16
    assert layer.weight.grad is None


def test_the_head_takes_the_maximum_and_has_small_weights() -> None:
    torch.manual_seed(0)
    head = MaxPooledHead(256, 200)
    assert [name for name, _ in head.named_parameters()] == ["fc.weight"]
    assert head.fc.weight.std().item() == pytest.approx(1 / 256, rel=0.01)
    head.fc.weight.data.fill_(0.5)
    x = torch.zeros(1, 256, 3, 3)
    x[0, 0] = torch.arange(9.0).view(3, 3)
    x[0, 1, 2, 0] = 2.0
    assert head(x)[0, 0].item() == 0.5 * (8 + 2)
