"""Receptive fields: by hand, against gradients, and against another count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.cost import layer_costs
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.vision.studies.receptive_fields import Span, activations, depths_of, spread


def test_windows_by_hand() -> None:
    pixel = Span(1, 0, 0)
    conv = pixel.windowed(kernel=3, stride=1, padding=1, dilation=1)
    assert conv == Span(1, -1, 1)
    pool = conv.windowed(kernel=2, stride=2, padding=0, dilation=1)
    assert (pool, pool.size, pool.at(3)) == (Span(2, -1, 2), 4, (5, 8))
    # Every other position of the pool, two pixels apart, so 4 pixels each way.
    assert pool.windowed(kernel=3, stride=2, padding=2, dilation=2) == Span(4, -1 - 4, 2 + 2 * (4 - 2))
    assert pool.shifted(1, step=2) == Span(4, 1, 4)
    assert pool.joined(Span(2, 0, 6)) == Span(2, -1, 6)
    with pytest.raises(ValueError, match="strides 2 and 4"):
        pool.joined(Span(4, 0, 6))


def test_the_books_network_by_hand() -> None:
    depths = depths_of(make_backbone("deep_cnn", 1, 28), (1, 28, 28))
    assert [depth.shape for depth in depths] == [
        *((16, 28, 28), (16, 14, 14), (32, 14, 14), (32, 8, 8), (64, 8, 8), (64, 4, 4))
    ]
    # Pairs of 3x3 filters, the second followed by a pool; the fourth convolution is padded by 2.
    assert [depth.rows for depth in depths] == [
        *(Span(1, -1, 1), Span(2, -2, 3), Span(2, -4, 5), Span(4, -8, 7), Span(4, -12, 11), Span(8, -16, 19))
    ]
    assert [depth.columns for depth in depths] == [depth.rows for depth in depths]


class Crooked(nn.Module):
    """Everything that can be followed: branches, shortcuts, strides, dilation, uneven kernels and padding."""

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


def sees(network: nn.Module, shape: tuple[int, int, int], place: int, row: int, column: int) -> tuple[int, ...]:
    """First and last row, first and last column of the pixels with a gradient, over some random images."""
    seen = torch.zeros(shape[1:], dtype=torch.bool)
    for _ in range(30):  # a pool's maximum lies anywhere
        x = torch.rand(1, *shape, requires_grad=True)
        _, maps = activations(network, x)
        (gradient,) = torch.autograd.grad(maps[place][0, :, row, column].sum(), x)
        seen |= gradient[0].ne(0).any(0)
    rows, columns = torch.nonzero(seen.any(1)).flatten(), torch.nonzero(seen.any(0)).flatten()
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@pytest.mark.parametrize("name", ["crooked", "deep_cnn", "resnet8"])
def test_what_has_a_gradient_is_what_is_seen(name: str) -> None:
    shape = (1, 80, 96)
    network = Crooked() if name == "crooked" else make_backbone(name, 1, shape[1:])
    with torch.no_grad():
        for parameter in network.parameters():  # so that nothing is cut off by ReLU, nor cancels
            parameter.abs_().add_(0.01)
    depths = depths_of(network.eval(), shape)
    assert len(depths) >= 4
    for place, depth in enumerate(depths):
        row, column = depth.shape[1] // 2, depth.shape[2] // 2
        top, bottom = depth.rows.at(row)
        left, right = depth.columns.at(column)
        expected = max(top, 0), min(bottom, 79), max(left, 0), min(right, 95)
        assert sees(network, shape, place, row, column) == expected, depth


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "vgg11_bn", "googlenet", "resnet20", "resnet50"])
def test_another_count_of_the_fields_agrees(name: str) -> None:
    network = make_backbone(name, 3, 96).eval()
    counted = [c for c in layer_costs(network, (1, 3, 96, 96)) if c.kind == "ReLU"]
    depths = depths_of(network, (3, 96, 96))
    if counted:  # where ReLU is no module of its own, the other count cannot see it
        assert [(depth.rows.size, depth.rows.jump) for depth in depths] == [
            (c.receptive_field, c.stride) for c in counted
        ]
    assert depths[-1].rows.size == max(
        c.receptive_field for c in layer_costs(network, (1, 3, 96, 96)) if c.kind == "Conv2d"
    )


def test_depths_and_activations_are_the_same_maps() -> None:
    network = make_backbone("resnet8", 3, 32).eval()
    _, maps = activations(network, torch.rand(2, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [depth.shape for depth in depths_of(network, (3, 32, 32))]
    assert all(bool((m >= 0).all()) and m.requires_grad for m in maps)


def test_looking_leaves_the_network_alone() -> None:
    network = make_backbone("deep_cnn", 1, 28)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    depths_of(network, (1, 28, 28))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(not module._forward_pre_hooks for module in network.modules())


def test_what_cannot_be_followed_is_refused() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x.rot90(1, (2, 3)))

    with pytest.raises(UserError, match=r"not known: it contains the operation \w+"):
        depths_of(Turned(), (1, 8, 8))
    with pytest.raises(UserError, match="has no ReLU"):
        depths_of(nn.Conv2d(1, 1, 3), (1, 8, 8))


def test_spread_depths_begin_and_end_with_the_network() -> None:
    depths = depths_of(make_backbone("resnet20", 3, 32), (3, 32, 32))
    assert len(depths) == 19
    assert spread(depths, 4) == [0, 6, 12, 18]
    assert spread(depths, 1) == [18]
    assert spread(depths[:3], 4) == [0, 1, 2]
