"""Hadamax encoder: products of two branches, max-pooled.

Kooi et al. 2025, "Hadamax Encoding: Elevating Performance in Model-Free Atari", as in the published code of its PQN
agent (github.com/Jacobkooi/Hadamax, purejaxql/networks.py): three blocks, each

    max_pool(gelu(norm(conv_a(x))) * gelu(norm(conv_b(x))))

with 32 8x8 filters and a 4x4 pool of stride 4, 64 4x4 filters and a 2x2 pool of stride 2, 64 3x3 filters and a 3x3 pool
of stride 1. Convolutions have stride 1, and all padding is SAME, so 84x84 becomes 21x21, 11x11, 11x11: 153 million
multiply-adds, 20 times those of `nature`. The hidden layer of an agent has GELU, too.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, same_margin, scaled
from zerokara.core.backbones.heads import FlatHead
from zerokara.core.layers import ChannelNorm
from zerokara.core.max_pool import max_pool2d


class _Block(nn.Module):
    """Max-pool of the product of two branches, each a convolution with normalization and GELU.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        kernel: side of the filters.
        window: side of the windows of the pool.
        stride: stride of the pool; ceil(size / stride) pixels remain.
        layer_norm: normalize the channels of every pixel.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int, window: int, stride: int, *, layer_norm: bool
    ) -> None:
        super().__init__()
        self.kernel, self.window, self.stride = kernel, window, stride
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, channels, kernel, padding=(kernel - 1) // 2) for _ in "ab")
        self.norms = nn.ModuleList(ChannelNorm(channels, eps=1e-6) if layer_norm else nn.Identity() for _ in "ab")
        self.activation = _gelu()
        for conv in self.convs:
            nn.init.xavier_normal_(conv.get_parameter("weight"))
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel % 2 == 0:  # SAME pads one pixel more at the end than at the start
            x = F.pad(x, (0, 1, 0, 1))
        a, b = (self.activation(norm(conv(x))) for conv, norm in zip(self.convs, self.norms, strict=True))
        return _pool_same(a * b, self.window, self.stride)


class Hadamax(Backbone):
    """Six convolutions in three blocks. The feature maps are those of the first and of the last block.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels.
        layer_norm: normalize the channels of every pixel before the GELU.
    """

    default_input = (4, 84)
    default_classes = 18
    has_own_initialization = True
    # Channels, side of the filters, side of the windows of the pool, stride of the pool.
    blocks: ClassVar[tuple[tuple[int, int, int, int], ...]] = ((32, 8, 4, 4), (64, 4, 2, 2), (64, 3, 3, 1))

    def __init__(
        self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0, layer_norm: bool = True
    ) -> None:
        super().__init__(in_channels, image_size)
        self.layers = nn.ModuleList()
        for channels, *sizes in self.blocks:
            out_channels = scaled(channels, width)
            self.layers.append(_Block(in_channels, out_channels, *sizes, layer_norm=layer_norm))
            in_channels = out_channels
        self._measure()

    def hidden_activation(self) -> nn.Module:
        return _gelu()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: one hidden layer of 512 units, with ReLU."""
        return FlatHead(self.out_channels, self.out_size, [512], classes, dropout or 0.0)

    def stages(self, x: Tensor) -> list[Tensor]:
        first, second, third = self.layers
        x = first(x)
        return [x, third(second(x))]


def _gelu() -> nn.GELU:
    """Return the tanh approximation of GELU, which is flax's default."""
    return nn.GELU(approximate="tanh")


def _pool_same(x: Tensor, window: int, stride: int) -> Tensor:
    """Max-pool maps (B, C, H, W) with SAME padding, which is never a maximum: (B, C, ceil(H / s), ceil(W / s))."""
    height, width = x.shape[2:]
    margin = (*same_margin(width, window, stride), *same_margin(height, window, stride))
    if len(set(margin)) == 1:
        return max_pool2d(x, window, stride, margin[0])
    return max_pool2d(F.pad(x, margin, value=float("-inf")), window, stride)
