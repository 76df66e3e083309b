"""Differentiable augmentation: what keeps a discriminator from learning few images by heart.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", section 3.2 and its published code: the
same kinds of change befall real and painted images, and gradients pass through them. Every image by numbers of its own.

Shapes: B batch, C channels, H, W pixels from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SHIFT = 0.125  # of the side, at most, either way
HOLE = 0.5  # side of the square that is cut out, as a fraction of the image's


def augment(x_BCHW: Tensor, kinds: Sequence[str], generator: torch.Generator) -> Tensor:
    """Images changed by every kind in turn, a function of the generator's state alone."""
    for kind in kinds:
        x_BCHW = KINDS[kind](x_BCHW, generator)
    return x_BCHW


def recolour(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness by up to .5 more or less, saturation by a factor up to 2, contrast by a factor from .5 to 1.5."""
    random_3B = torch.rand(3, len(x_BCHW), generator=generator, device=x_BCHW.device).to(x_BCHW.dtype)
    brightness, saturation, contrast = random_3B.view(3, -1, 1, 1, 1)
    x_BCHW = x_BCHW + (brightness - 0.5)
    grayscale = x_BCHW.mean(1, keepdim=True)
    x_BCHW = grayscale + (x_BCHW - grayscale) * (2 * saturation)
    mean = x_BCHW.mean((1, 2, 3), keepdim=True)
    relit_BCHW: Tensor = mean + (x_BCHW - mean) * (contrast + 0.5)
    return relit_BCHW


def translate(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Moved by up to an eighth of the side; zeros, which are grey, come in."""
    batch, _, height, width = x_BCHW.shape
    device = x_BCHW.device
    place = []
    for length in (height, width):
        most = round(length * SHIFT)
        shift_B1 = torch.randint(-most, most + 1, (batch, 1), generator=generator, device=device)
        # One pixel of margin, to which everything from outside is sent.
        place.append((torch.arange(length, device=device) + shift_B1 + 1).clamp(0, length + 1))
    padded = torch.nn.functional.pad(x_BCHW, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    images = torch.arange(batch, device=device)[:, None, None]
    return padded[images, place[0][:, :, None], place[1][:, None, :]].permute(0, 3, 1, 2)


def cut_out(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle of half the sides, anywhere, set to zero; it may reach outside."""
    batch, _, height, width = x_BCHW.shape
    device = x_BCHW.device
    inside = []
    for length in (height, width):
        hole = round(length * HOLE)
        first_B1 = torch.randint(-(hole // 2), length - hole // 2, (batch, 1), generator=generator, device=device)
        pixel_1L = torch.arange(length, device=device)[None]
        inside.append((pixel_1L >= first_B1) & (pixel_1L < first_B1 + hole))
    hole_BHW = inside[0][:, :, None] & inside[1][:, None, :]
    return x_BCHW.masked_fill(hole_BHW[:, None], 0.0)


KINDS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "colour": recolour,
    "translation": translate,
    "cutout": cut_out,
}
