"""Tests of receptive fields against hand-computed values, gradients and the layer costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.cost import layer_costs
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.vision.studies.receptive_fields import Span, activations, evenly_spaced, feature_maps


def test_span_operations_against_hand_computed_values() -> None:
    pixel = Span(1, 0, 0)
    conv = pixel.after_window(kernel=3, stride=1, padding=1, dilation=1)
    assert conv == Span(1, -1, 1)
    pool = conv.after_window(kernel=2, stride=2, padding=0, dilation=1)
    assert (pool, pool.size, pool.pixels(3)) == (Span(2, -1, 2), 4, (5, 8))
    # Stride 2 on a map of stride 2 gives stride 4; dilation 2 on it gives taps 4 pixels apart.
    assert pool.after_window(kernel=3, stride=2, padding=2, dilation=2) == Span(4, -1 - 4, 2 + 2 * (4 - 2))
    assert pool.after_slice(1, step=2) == Span(4, 1, 4)
    assert pool.merged(Span(2, 0, 6)) == Span(2, -1, 6)
    with pytest.raises(ValueError, match="strides 2 and 4"):
        pool.merged(Span(4, 0, 6))


def test_deep_cnn_against_hand_computed_values() -> None:
    maps = feature_maps(make_backbone("deep_cnn", 1, 28), (1, 28, 28))
    assert [m.shape for m in maps] == [*((16, 28, 28), (16, 14, 14), (32, 14, 14), (32, 8, 8), (64, 8, 8), (64, 4, 4))]
    # Pairs of 3x3 convolutions with pooling after the second one. The fourth convolution has padding 2.
    assert [m.rows for m in maps] == [
        *(Span(1, -1, 1), Span(2, -2, 3), Span(2, -4, 5), Span(4, -8, 7), Span(4, -12, 11), Span(8, -16, 19))
    ]
    assert [m.columns for m in maps] == [m.rows for m in maps]


class MixedNetwork(nn.Module):
    """Network with branches, shortcuts, strides, dilation, and kernels and padding that differ by axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, (3, 5), (2, 1), (1, 0))
        self.norm = nn.BatchNorm2d(3)
        self.wide = nn.Conv2d(3, 3, 3, dilation=2, padding=2)
        self.narrow = nn.Conv2d(3, 3, 1)
        self.down = nn.Conv2d(6, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = torch.cat([self.wide(x), self.narrow(F.avg_pool2d(x, 3, 1, 1))], 1).relu()
        y = F.relu_(self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0)))
        return F.relu(F.pad(y, (1, 0, 2, 0))).mean((2, 3))


def gradient_bounds(
    network: nn.Module, shape: tuple[int, int, int], map_index: int, row: int, column: int
) -> tuple[int, ...]:
    """Return the first and last row and column of pixels with a nonzero gradient, over some random images."""
    nonzero = torch.zeros(shape[1:], dtype=torch.bool)
    for _ in range(30):  # the maximum of a pooling window may be at any pixel
        x = torch.rand(1, *shape, requires_grad=True)
        _, maps = activations(network, x)
        (gradient,) = torch.autograd.grad(maps[map_index][0, :, row, column].sum(), x)
        nonzero |= gradient[0].ne(0).any(0)
    rows, columns = torch.nonzero(nonzero.any(1)).flatten(), torch.nonzero(nonzero.any(0)).flatten()
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@pytest.mark.parametrize("name", ["mixed", "deep_cnn", "resnet8"])
def test_receptive_field_contains_exactly_the_pixels_with_a_gradient(name: str) -> None:
    shape = (1, 80, 96)
    network = MixedNetwork() if name == "mixed" else make_backbone(name, 1, shape[1:])
    with torch.no_grad():
        for parameter in network.parameters():  # positive weights, so that no ReLU is 0 and nothing cancels
            parameter.abs_().add_(0.01)
    maps = feature_maps(network.eval(), shape)
    assert len(maps) >= 4
    for map_index, feature_map in enumerate(maps):
        row, column = feature_map.shape[1] // 2, feature_map.shape[2] // 2
        top, bottom = feature_map.rows.pixels(row)
        left, right = feature_map.columns.pixels(column)
        expected = max(top, 0), min(bottom, 79), max(left, 0), min(right, 95)
        assert gradient_bounds(network, shape, map_index, row, column) == expected, feature_map


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "vgg11_bn", "googlenet", "resnet20", "resnet50"])
def test_receptive_fields_agree_with_layer_costs(name: str) -> None:
    network = make_backbone(name, 3, 96).eval()
    counted = [c for c in layer_costs(network, (1, 3, 96, 96)) if c.kind == "ReLU"]
    maps = feature_maps(network, (3, 96, 96))
    if counted:  # layer_costs only lists a ReLU that is a module
        assert [(m.rows.size, m.rows.jump) for m in maps] == [(c.receptive_field, c.stride) for c in counted]
    assert maps[-1].rows.size == max(
        c.receptive_field for c in layer_costs(network, (1, 3, 96, 96)) if c.kind == "Conv2d"
    )


def test_feature_maps_and_activations_have_the_same_shapes() -> None:
    network = make_backbone("resnet8", 3, 32).eval()
    _, maps = activations(network, torch.rand(2, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [m.shape for m in feature_maps(network, (3, 32, 32))]
    assert all(bool((m >= 0).all()) and m.requires_grad for m in maps)


def test_feature_maps_does_not_change_the_network() -> None:
    network = make_backbone("deep_cnn", 1, 28)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    feature_maps(network, (1, 28, 28))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(not module._forward_pre_hooks for module in network.modules())


def test_unsupported_networks_are_rejected() -> None:
    class Rotated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x.rot90(1, (2, 3)))

    with pytest.raises(UserError, match=r"cannot be computed: it contains the operation \w+"):
        feature_maps(Rotated(), (1, 8, 8))
    with pytest.raises(UserError, match="has no feature map after a ReLU"):
        feature_maps(nn.Conv2d(1, 1, 3), (1, 8, 8))


def test_number_of_feature_maps_of_resnet20() -> None:
    assert len(feature_maps(make_backbone("resnet20", 3, 32), (3, 32, 32))) == 19


def test_evenly_spaced_indices() -> None:
    assert evenly_spaced(19, 4) == [0, 6, 12, 18]
    assert evenly_spaced(19, 1) == [18]
    assert evenly_spaced(3, 4) == [0, 1, 2]
