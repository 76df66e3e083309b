"""Backbones that differ only in their filters, to compare two 3x3 filters with one 5x5, and three with one 7x7.

Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", section 2.3: stacked 3x3 filters have the receptive
field of one larger filter, with fewer weights per pair of channels and with ReLUs in between. A first 3x3 convolution
produces the channels, whose number stays constant; three stages of filters follow, each with a 2x2 max-pool at its end.
`width` multiplies the 32 channels.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, scaled

CHANNELS = 32
STAGES = 3


class _Stacked(Backbone):
    """Stages of convolutions with these kernel sizes, each followed by ReLU."""

    kernels: ClassVar[tuple[int, ...]]

    def __init__(self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0) -> None:
        super().__init__(in_channels, image_size)
        channels = scaled(CHANNELS, width)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.convs = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for kernel in self.kernels)
            for _ in range(STAGES)
        )
        he_init(self)
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.stem(x))
        maps = []
        for convs in self.convs.children():
            for conv in convs.children():
                x = F.relu(conv(x))
            x = F.max_pool2d(x, 2)
            maps.append(x)
        return maps


class One5x5(_Stacked):
    """One 5x5 filter per stage: 25 weights per pair of channels."""

    kernels = (5,)


class Two3x3(_Stacked):
    """Two 3x3 filters per stage: 18 weights per pair of channels, with the receptive field of `one5x5`."""

    kernels = (3, 3)


class One7x7(_Stacked):
    """One 7x7 filter per stage: 49 weights per pair of channels."""

    kernels = (7,)


class Three3x3(_Stacked):
    """Three 3x3 filters per stage: 27 weights per pair of channels, with the receptive field of `one7x7`."""

    kernels = (3, 3, 3)


KERNELS: dict[str, type[_Stacked]] = {"one5x5": One5x5, "two3x3": Two3x3, "one7x7": One7x7, "three3x3": Three3x3}
