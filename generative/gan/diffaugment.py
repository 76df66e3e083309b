"""Differentiable augmentation, which keeps a discriminator from memorizing a small data set.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", section 3.2 and its published code: the
same random transformations are applied to real and to generated images, and gradients pass through them. Every image
gets its own random numbers.

Shapes: B batch, C channels, H, W pixels from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zerokara.generative.gan.config import Version

MAX_SHIFT = 0.125  # in each direction, as a fraction of the side
HOLE = 0.5  # side of the rectangle that is cut out, as a fraction of the image's side


def augment(x_BCHW: Tensor, kinds: Sequence[str], generator: torch.Generator, version: Version = "published") -> Tensor:
    """Apply the augmentations `kinds` in order. The result depends only on the images and the generator's state."""
    for kind in kinds:
        x_BCHW = KINDS[kind](x_BCHW, generator, version)
    return x_BCHW


def jitter_color(x_BCHW: Tensor, generator: torch.Generator, _: Version = "published") -> Tensor:
    """Shift brightness by -.5 to .5; scale saturation by 0 to 2 and contrast by .5 to 1.5."""
    random_3B = torch.rand(3, len(x_BCHW), generator=generator, device=x_BCHW.device).to(x_BCHW.dtype)
    brightness, saturation, contrast = random_3B.view(3, -1, 1, 1, 1)
    x_BCHW = x_BCHW + (brightness - 0.5)
    grayscale = x_BCHW.mean(1, keepdim=True)
    x_BCHW = grayscale + (x_BCHW - grayscale) * (2 * saturation)
    mean = x_BCHW.mean((1, 2, 3), keepdim=True)
    jittered_BCHW: Tensor = mean + (x_BCHW - mean) * (contrast + 0.5)
    return jittered_BCHW


def translate(x_BCHW: Tensor, generator: torch.Generator, version: Version = "published") -> Tensor:
    """Shift images by up to an eighth of the side. The uncovered border becomes zero, which is gray."""
    batch, _, height, width = x_BCHW.shape
    device = x_BCHW.device
    indices = []
    for length in (height, width):
        max_shift = round_side(length * MAX_SHIFT, version)
        shift_B1 = torch.randint(-max_shift, max_shift + 1, (batch, 1), generator=generator, device=device)
        # One pixel of padding, to which all indices outside of the image are clamped.
        indices.append((torch.arange(length, device=device) + shift_B1 + 1).clamp(0, length + 1))
    padded = torch.nn.functional.pad(x_BCHW, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    images = torch.arange(batch, device=device)[:, None, None]
    return padded[images, indices[0][:, :, None], indices[1][:, None, :]].permute(0, 3, 1, 2)


def cutout(x_BCHW: Tensor, generator: torch.Generator, version: Version = "published") -> Tensor:
    """Set a rectangle of half the image's sides to zero. It may reach beyond the border by half of its own side."""
    batch, _, height, width = x_BCHW.shape
    device = x_BCHW.device
    inside = []
    for length in (height, width):
        hole = round_side(length * HOLE, version)
        # A hole of even side reaches beyond both borders equally far, which 0.1 left out on one side.
        positions = length + 1 - hole % 2 if version == "published" else length
        first_B1 = torch.randint(-(hole // 2), positions - hole // 2, (batch, 1), generator=generator, device=device)
        pixel_1L = torch.arange(length, device=device)[None]
        inside.append((pixel_1L >= first_B1) & (pixel_1L < first_B1 + hole))
    hole_BHW = inside[0][:, :, None] & inside[1][:, None, :]
    return x_BCHW.masked_fill(hole_BHW[:, None], 0.0)


def round_side(pixels: float, version: Version) -> int:
    """Round to whole pixels. Halves are rounded up; 0.1 rounded them to even numbers."""
    return int(pixels + 0.5) if version == "published" else round(pixels)


KINDS: dict[str, Callable[[Tensor, torch.Generator, Version], Tensor]] = {
    "color": jitter_color,
    "translation": translate,
    "cutout": cutout,
}
