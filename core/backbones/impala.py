"""Residual network of IMPALA.

Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL", figure 3 (right): three sections of 16, 32, 32 channels,
each with a 3x3 convolution, a 3x3 max-pool of stride 2 and two residual blocks; ReLU at the end.

Options of later papers: `width` multiplies the channels (Cobbe et al. 2019); spectral normalization of the residual
blocks (Bjorck et al. 2021, "Towards Deeper Deep Reinforcement Learning with Spectral Normalization"); a max-pool at the
end (Schmidt and Schmied 2021, "Fast and Data-Efficient Training of Rainbow"); a mean over all pixels at the end, called
global average pooling (Trumpp et al. 2025, "Impoola: The Power of Average Pooling for Image-Based Deep Reinforcement
Learning"; Sokar and Castro 2025, "Mind the GAP! The Challenges of Scale in Pixel-based Deep Reinforcement Learning").
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.heads import FlatHead
from zerokara.core.layers import spectral_norm as normalize
from zerokara.core.max_pool import max_pool2d


class _Residual(nn.Module):
    """Residual block: x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return x + out


class _Section(nn.Module):
    """Convolution, max-pool and two residual blocks. Halves height and width."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList([_Residual(channels), _Residual(channels)])

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(self.conv(x), 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return x


class _GlobalMean(nn.Module):
    """Mean over all pixels: (B, C, H, W) to (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Impala(Backbone):
    """Fifteen convolutions; 84x84 becomes 11x11.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels.
        spectral_norm: divide the weights of the residual blocks by their largest singular value.
        pool: max: pool the last map to `pool_size`; mean: to one pixel.
        pool_size: height and width to which the last map is max-pooled; 0: no pooling.
    """

    default_input = (4, 84)
    default_classes = 18

    def __init__(
        self,
        in_channels: int,
        image_size: int | tuple[int, int],
        *,
        width: float = 1.0,
        spectral_norm: bool = False,
        pool: Literal["max", "mean"] = "max",
        pool_size: int = 0,
    ) -> None:
        super().__init__(in_channels, image_size)
        self.pool: nn.Module = nn.AdaptiveMaxPool2d(pool_size) if pool_size else nn.Identity()
        if pool == "mean":
            self.pool = _GlobalMean()
        self.sections = nn.ModuleList()
        for channels in (16, 32, 32):
            out_channels = max(1, round(channels * width))
            self.sections.append(_Section(in_channels, out_channels))
            in_channels = out_channels
        if spectral_norm:
            for section in self.sections:
                normalize(section.get_submodule("blocks"))
        self._measure()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: one hidden layer of 256 units."""
        return FlatHead(self.out_channels, self.out_size, [256], classes, dropout or 0.0)

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for section in self.sections:
            x = section(x)
            maps.append(x)
        maps[-1] = self.pool(F.relu(maps[-1]))
        return maps
