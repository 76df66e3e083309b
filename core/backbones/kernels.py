"""Equal trunks of other filters: what two 3x3 are worth against one 5x5, and three against one 7x7.

Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", section 2.3: stacked 3x3 filters see as far as one
larger one, with fewer weights for each pair of channels and a ReLU between them. A first 3x3 convolution gives the
channels, which stay the same, so that nothing but the filters differs; three stages of filters follow, a 2x2 pool after
each. `width` multiplies the 32 channels.
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
    """25 weights for a pair of channels."""

    kernels = (5,)


class Two3x3(_Stacked):
    """18 weights for a pair of channels, which see as far as `one5x5`."""

    kernels = (3, 3)


class One7x7(_Stacked):
    """49 weights for a pair of channels."""

    kernels = (7,)


class Three3x3(_Stacked):
    """27 weights for a pair of channels, which see as far as `one7x7`."""

    kernels = (3, 3, 3)


KERNELS: dict[str, type[_Stacked]] = {"one5x5": One5x5, "two3x3": Two3x3, "one7x7": One7x7, "three3x3": Three3x3}
