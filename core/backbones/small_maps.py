"""Convolutions and transposed convolutions of stride 2, computed as matrix products on small maps.

4x4 kernels, stride 2, padding 1, as in DCGAN. On a CPU with 16-bit matrix units, the library's kernels for layers with
many channels on maps of 4x4 and 8x8 have a tenth of the speed of a matrix product of the same size (docs/dcgan.md). In
this case the map is cut into patches and multiplied; in all others the library's layers are used. Weights are the same,
outputs are equal up to rounding, and derivatives of any order are supported.

Shapes: B batch, C channels in, O channels out, H, W pixels of the larger map, h, w of the smaller one, K = 16 taps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SMALL_MAP_PIXELS = 8 * 8  # pixels of the smaller map up to which matrix products are faster
MIN_CHANNELS = 64  # channels from which matrix products are faster


def halve(x_BCHW: Tensor, weight_OC44: Tensor) -> Tensor:
    """Compute `F.conv2d(x, weight, stride=2, padding=1)` as one product: (B, O, h, w), channels last."""
    batch, _, height, width = x_BCHW.shape
    patches: Tensor = _Patches.apply(x_BCHW.permute(0, 2, 3, 1))  # type: ignore[no-untyped-call]
    rows = patches @ _flat(weight_OC44).t()
    return rows.view(batch, height // 2, width // 2, -1).permute(0, 3, 1, 2)


def double(x_BChw: Tensor, weight_CO44: Tensor) -> Tensor:
    """Compute `F.conv_transpose2d(x, weight, stride=2, padding=1)` as one product: (B, O, H, W), channels last."""
    batch, channels, height, width = x_BChw.shape
    rows = x_BChw.permute(0, 2, 3, 1).reshape(-1, channels) @ _flat(weight_CO44)
    maps: Tensor = _Overlay.apply(rows, batch, height, width)  # type: ignore[no-untyped-call]
    return maps.permute(0, 3, 1, 2)


class Halve(nn.Conv2d):
    """4x4 convolution of stride 2 and padding 1."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 4, 2, 1, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        even = height % 2 == 0 and width % 2 == 0
        if not even or not _pays(x_BCHW, height * width // 4, min(self.in_channels, self.out_channels)):
            return super().forward(x_BCHW)
        y = halve(*_in_16_bits(x_BCHW, self.weight))
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class Double(nn.ConvTranspose2d):
    """4x4 transposed convolution of stride 2 and padding 1."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 4, 2, 1, bias=bias)

    def forward(self, x_BChw: Tensor, output_size: list[int] | None = None) -> Tensor:
        height, width = x_BChw.shape[2:]
        if not _pays(x_BChw, height * width, min(self.in_channels, self.out_channels)):
            return super().forward(x_BChw, output_size)
        y = double(*_in_16_bits(x_BChw, self.weight))
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


def _pays(x: Tensor, small_pixels: int, channels: int) -> bool:
    on_cpu_in_16_bits = x.device.type == "cpu" and (
        x.dtype is torch.bfloat16
        or (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16)
    )
    return on_cpu_in_16_bits and small_pixels <= MAX_SMALL_MAP_PIXELS and channels >= MIN_CHANNELS


def _in_16_bits(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.to(torch.bfloat16), weight.to(torch.bfloat16)


def _flat(weight: Tensor) -> Tensor:
    """Reshape (first, second, 4, 4) to (first, K * second): a view if the weights are channels last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


class _Patches(torch.autograd.Function):
    """Extract patches (B * h * w, K * C) of maps (B, H, W, C): 4x4 pixels, stride 2, padding 1."""

    @staticmethod
    def forward(ctx: Any, x_BHWC: Tensor) -> Tensor:
        batch, height, width, channels = x_BHWC.shape
        ctx.shape = (batch, height // 2, width // 2)
        padded = F.pad(x_BHWC, (0, 0, 1, 1, 1, 1))
        image, row, column, _ = padded.stride()
        patches = padded.as_strided(
            (batch, height // 2, width // 2, 4, 4, channels), (image, 2 * row, 2 * column, row, column, 1)
        )
        return patches.reshape(-1, 16 * channels)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Overlay.apply(grads[0], *ctx.shape)  # type: ignore[no-untyped-call]


class _Overlay(torch.autograd.Function):
    """Transpose of `_Patches`: add overlapping patches (B * h * w, K * C) into maps (B, H, W, C)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, batch: int, height: int, width: int) -> Tensor:
        channels = rows.shape[1] // 16
        # Tap 2 a + p of a patch at y lies in row 2 (y + a) + p of the padded map, so four blocks cover all taps.
        taps = rows.view(batch, height, width, 2, 2, 2, 2, channels)
        out = rows.new_zeros(batch, height + 1, 2, width + 1, 2, channels)
        for a in (0, 1):
            for b in (0, 1):
                out[:, a : a + height, :, b : b + width] += taps[:, :, :, a, :, b].transpose(2, 3)
        return out.view(batch, 2 * height + 2, 2 * width + 2, channels)[:, 1:-1, 1:-1].contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Patches.apply(grads[0]), None, None, None  # type: ignore[no-untyped-call]
