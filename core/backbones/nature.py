"""Plain networks of strided convolutions: the two networks of DQN, and that of data-efficient Rainbow.

`nips`: Mnih et al. 2013, "Playing Atari with Deep Reinforcement Learning", section 4.1: 16 8x8 filters of stride 4,
32 4x4 of stride 2, each with ReLU; its head is a hidden layer of 256.
`nature`: Mnih et al. 2015, "Human-level control through deep reinforcement learning", Methods: 32 8x8 of stride 4,
64 4x4 of stride 2, 64 3x3 of stride 1; its head is a hidden layer of 512.
`der`: van Hasselt et al. 2019, "When to use parametric models in reinforcement learning?", appendix (data-efficient
Rainbow): 32 5x5 filters of stride 5, 64 5x5 of stride 5; its head has hidden layers of 256. Padding is added so that
the output depends on every pixel: without it, the last 9 columns and rows of 84x84 would be ignored, which contain the
agent's paddle in Pong.
`stream`: Elsayed et al. 2024, "Streaming Deep Reinforcement Learning Finally Works", the published code for Atari: 32
8x8 filters of stride 5, 64 4x4 of stride 3, 64 3x3 of stride 2, each with leaky ReLU; its head is a hidden layer of
256.

The DQN of Dopamine is `nature` with `same_padding`: 84x84 becomes 21x21, 11x11, 11x11 instead of 20x20, 9x9, 7x7.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, same_margin
from zerokara.core.backbones.heads import FlatHead
from zerokara.core.layers import ChannelNorm, relu

MIN_CHANNELS = 16  # from this number on, a matrix product is faster than the library's convolution
MIN_PIXELS = 16  # from this number of output pixels on, a matrix product is faster for a single image


class _Conv(nn.Conv2d):
    """Convolution that is computed as a matrix product if its patches do not overlap, on the CPU in 16 bits.

    Weights are the same, and outputs are equal up to rounding. The library's kernels take three times as long for 32
    channels and stride 5 (docs/LOG.md). With few channels the library's kernel is used, because the product is slow.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        size = self.stride[0]
        in_16_bits_on_cpu = x_BCHW.dtype is torch.bfloat16 and x_BCHW.device.type == "cpu"
        if self.kernel_size[0] != size or self.in_channels < MIN_CHANNELS or not in_16_bits_on_cpu:
            return super().forward(x_BCHW)
        batch, channels, height, width = x_BCHW.shape
        margin = cast(int, self.padding[0])
        rows, columns = (height + 2 * margin) // size, (width + 2 * margin) // size
        # Pad below and to the right only to complete the last patch; a negative padding crops.
        x = F.pad(x_BCHW, (margin, columns * size - width - margin, margin, rows * size - height - margin))
        x = x.permute(0, 2, 3, 1)
        patches = x.reshape(batch, rows, size, columns, size, channels).transpose(2, 3).flatten(3)
        return F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias).permute(0, 3, 1, 2)


class _ImageConv(_Conv):
    """Convolution that computes a single float32 image on the CPU as a matrix product of its patches.

    Weights are the same, and outputs are equal up to rounding. Forward and backward pass of `stream` for an 84x84 image
    take 1.38 ms, and 1.87 ms with the library's convolutions: its first two layers take 190 and 213 microseconds, with
    the library 375 and 420. In its last layer, with few output pixels, the library's 104 microseconds are the shorter
    time (144 as a product; docs/LOG.md, 2026-11-30).
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        size, stride = self.kernel_size[0], self.stride[0]
        rows, columns = ((side - size) // stride + 1 for side in x_BCHW.shape[2:])
        single = x_BCHW.shape[0] == 1 and x_BCHW.dtype is torch.float32 and x_BCHW.device.type == "cpu"
        if not single or torch.compiler.is_compiling() or self.padding[0] or rows * columns < MIN_PIXELS:
            return super().forward(x_BCHW)
        if x_BCHW.requires_grad:
            patches = F.unfold(x_BCHW, size, stride=stride)[0]
        else:  # faster, but its backward pass is slower
            windows = x_BCHW[0].unfold(1, size, stride).unfold(2, size, stride)
            patches = windows.permute(0, 3, 4, 1, 2).reshape(-1, rows * columns)
        assert self.bias is not None
        return torch.addmm(self.bias[:, None], self.weight.flatten(1), patches).view(1, -1, rows, columns)


class _Strided(Backbone):
    """Convolutions, each followed by `activation`; `layers` lists (channels, kernel, stride, padding).

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels.
        layer_norm: normalize the channels of every pixel before the activation (Gallici et al. 2024, published code).
        same_padding: pad as SAME of TensorFlow and Flax, so that the output of a layer has ceil(size / stride) pixels.
    """

    default_input = (4, 84)
    default_classes = 18
    layers: ClassVar[tuple[tuple[int, int, int, int], ...]]
    hidden_units: ClassVar[int] = 256
    convolution: ClassVar[type[_Conv]] = _Conv

    def __init__(
        self,
        in_channels: int,
        image_size: int | tuple[int, int],
        *,
        width: float = 1.0,
        layer_norm: bool = False,
        same_padding: bool = False,
    ) -> None:
        super().__init__(in_channels, image_size)
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self._margins: list[tuple[int, int, int, int] | None] = []  # left, right, top, bottom, added before the layer
        rows, columns = self.image_size
        for channels, kernel, stride, own_padding in self.layers:
            out_channels = max(1, round(channels * width))
            margin: tuple[int, int, int, int] | None = None
            padding = own_padding
            if same_padding:
                margin = (*same_margin(columns, kernel, stride), *same_margin(rows, kernel, stride))
                rows, columns = -(-rows // stride), -(-columns // stride)
                padding, margin = (margin[0], None) if len(set(margin)) == 1 else (0, margin)
            self._margins.append(margin)
            self.convs.append(self.convolution(in_channels, out_channels, kernel, stride, padding))
            self.norms.append(ChannelNorm(out_channels, eps=1e-6) if layer_norm else nn.Identity())
            in_channels = out_channels
        self._measure()

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """Compute the activation of a layer."""
        return relu(x)

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: one hidden layer of `hidden_units`."""
        return FlatHead(self.out_channels, self.out_size, [self.hidden_units], classes, dropout or 0.0)

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for margin, conv, norm in zip(self._margins, self.convs, self.norms, strict=True):
            x = self.activation(norm(conv(x if margin is None else F.pad(x, margin))))
            maps.append(x)
        return maps


class Nips(_Strided):
    """Network of the 2013 paper, with a third of the multiply-adds of `nature`."""

    layers = ((16, 8, 4, 0), (32, 4, 2, 0))


class Nature(_Strided):
    """Network of the 2015 paper."""

    layers = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))
    hidden_units = 512


class Der(_Strided):
    """Network of data-efficient Rainbow, with a sixth of the multiply-adds and a tenth of the weights of `nature`."""

    layers = ((32, 5, 5, 1), (64, 5, 5, 2))


class Stream(_Strided):
    """Network of streaming Q(lambda), with 3.1 million multiply-adds and 78 thousand weights at 84x84."""

    layers = ((32, 8, 5, 0), (64, 4, 3, 0), (64, 3, 2, 0))
    convolution = _ImageConv

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """Compute the leaky ReLU with slope 0.01."""
        return F.leaky_relu(x)
