"""Shapes of feature maps are determined without a forward pass and without importing PyTorch's compiler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError


def test_a_kernel_that_is_larger_than_the_image_is_an_error() -> None:
    with pytest.raises(UserError, match="Images of 30x90 pixels are too small for the backbone nature"):
        make_backbone("nature", 3, (30, 90))


class Strided(Backbone):
    """Backbone with padding, dilation, groups and different strides."""

    def __init__(self, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__(in_channels, image_size)
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, 4, (3, 5), stride=(2, 1), padding=(0, 3), dilation=(2, 1)),
            nn.Conv2d(4, 6, 3, groups=2, padding="same"),
            nn.Conv2d(6, 8, 2, stride=3, bias=False),
        )
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        return [x := conv(x) for conv in self.convs]


@pytest.mark.parametrize("image_size", [(17, 23), (12, 9)])
def test_shapes_of_convolutions_are_those_of_a_forward_pass(image_size: tuple[int, int]) -> None:
    backbone = Strided(3, image_size)
    maps = backbone.stages(torch.zeros(2, 3, *image_size))
    assert backbone.stage_shapes == [tuple(map_.shape[1:]) for map_ in maps]


class Odd(Backbone):
    """Backbone with additions that change the shape, and with one of a number."""

    def __init__(self, in_channels: int, image_size: int) -> None:
        super().__init__(in_channels, image_size)
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.weight = nn.Parameter(torch.ones(2, 1, 4, 1, 1))
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.conv(x)) + 1
        return [x, (x + self.weight).flatten(0, 1)]


@pytest.mark.parametrize("image_size", [9, 12])
def test_additions_that_broadcast_change_the_shape(image_size: int) -> None:
    backbone = Odd(3, image_size)
    maps = backbone.stages(torch.zeros(2, 3, image_size, image_size))
    assert backbone.stage_shapes == [tuple(map_.shape[1:]) for map_ in maps]


class Pools(Backbone):
    """Backbone with poolings of all kinds, and a concatenation."""

    def __init__(self, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__(in_channels, image_size)
        self.pools = nn.ModuleList(
            [
                nn.MaxPool2d(3, (2, 1), (1, 0)),
                nn.MaxPool2d((2, 3), 2, ceil_mode=True),
                nn.MaxPool2d(2, 1, dilation=2),
                nn.MaxPool2d(3, 2, 1, ceil_mode=True),
                nn.MaxPool2d(2),
            ]
        )
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = [x := pool(x) for pool in self.pools]
        return [
            *maps,
            torch.cat([maps[-1]] * 3, 1),
            torch.cat(maps[-1:] * 2, dim=-1),
            nn.functional.interpolate(x, (5, 9)),
            maps[0].mean((2, -1), keepdim=True),
            maps[0].mean(3, keepdim=True),
        ]


@pytest.mark.parametrize("image_size", [(37, 41), (40, 36), (41, 39), (44, 42)])
def test_shapes_of_poolings_are_those_of_a_forward_pass(image_size: tuple[int, int]) -> None:
    backbone = Pools(3, image_size)
    maps = backbone.stages(torch.zeros(2, 3, *image_size))
    assert backbone.stage_shapes == [tuple(map_.shape[1:]) for map_ in maps]


def test_a_map_that_is_smaller_than_the_pooling_is_an_error() -> None:
    with pytest.raises(UserError, match="Images of 9x8 pixels are too small for the backbone"):
        Pools(3, (9, 8))
