"""Augmentation of images together with their masks: what moves a pixel moves its class.

    augment = JointAugment(scale=(0.5, 2.0), crop_size=(180, 240), flip=True, colour=0.1)
    x, mask = augment(x, mask, generator)

An image is scaled, turned and cut by one map and interpolated once; of its mask the nearest pixel is taken, so that
every number stays that of a class. What comes from outside the image is unlabelled.

Shapes: B batch, C channels, H, W pixels, h, w pixels of the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.augment import Augment, affine_maps
from zerokara.core.data.masks import UNLABELLED


@dataclass(frozen=True, kw_only=True)
class JointAugment:
    """How much of everything. As it is by default, images and masks stay what they are."""

    scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest factor; its logarithm is uniform
    rotation_degrees: float = 0.0  # up to so many either way
    crop_size: tuple[int, int] | None = None  # (h, w) of the window that is cut out; None: the image's own
    flip: bool = False  # left to right, half of the images
    brightness: float = 0.0  # as `Augment` has it
    contrast: float = 0.0
    colour: float = 0.0  # saturation and each channel by a factor of up to this more or less

    def __call__(self, x_BCHW: Tensor, mask_BHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, C, h, w) and masks (B, h, w) int64, changed at random, a function of the generator's state alone.

        Args:
            x_BCHW: pixels from 0 to 1.
            mask_BHW: uint8, classes or UNLABELLED.
            generator: on the device of the images.
        """
        size = self.crop_size or (x_BCHW.shape[2], x_BCHW.shape[3])
        if self.scale != (1.0, 1.0) or self.rotation_degrees or size != x_BCHW.shape[2:]:
            map_B23 = self._maps(x_BCHW, size, generator)
            x_BCHW, mask_BHW = window(x_BCHW, mask_BHW, map_B23, size)
        if self.flip:
            turn_B = torch.rand(len(x_BCHW), generator=generator, device=x_BCHW.device) < 0.5
            x_BCHW = torch.where(turn_B.view(-1, 1, 1, 1), x_BCHW.flip(3), x_BCHW)
            mask_BHW = torch.where(turn_B.view(-1, 1, 1), mask_BHW.flip(2), mask_BHW)
        if self.colour:
            x_BCHW = self._recolour(x_BCHW, generator)
        x_BCHW = Augment(brightness=self.brightness, contrast=self.contrast)(x_BCHW, generator)
        return x_BCHW, mask_BHW.long()

    def _maps(self, x_BCHW: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Maps (B, 2, 3) from pixels of the window to places in the image.

        The window lies anywhere inside the scaled image, or the image anywhere inside the window, whichever is larger.
        """
        random_4B = torch.rand(4, len(x_BCHW), generator=generator, device=x_BCHW.device)
        low, high = (math.log(factor) for factor in self.scale)
        scale_B = (low + (high - low) * random_4B[0]).exp()
        angle_B = (2 * random_4B[1] - 1) * math.radians(self.rotation_degrees)
        down_B, right_B = (
            (2 * random_4B[2 + axis] - 1) * (x_BCHW.shape[2 + axis] * scale_B - size[axis]).abs() / 2 for axis in (0, 1)
        )
        return affine_maps(angle_B, torch.zeros_like(angle_B), scale_B, right_B, down_B)

    def _recolour(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Other saturation and balance of the channels, ends cut off."""
        batch, channels = x_BCHW.shape[:2]
        random = torch.rand(batch, 1 + channels, 1, 1, generator=generator, device=x_BCHW.device)
        factor = 1 + (2 * random - 1) * self.colour
        grayscale = x_BCHW.mean(1, keepdim=True)
        return ((grayscale + (x_BCHW - grayscale) * factor[:, :1]) * factor[:, 1:]).clamp_(0, 1)


def window(x_BCHW: Tensor, mask_BHW: Tensor, map_B23: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images (B, C, h, w) and masks (B, h, w) uint8 whose pixels are fetched from where maps point to.

    Outside, an image goes on as its edge is, and its mask is UNLABELLED.

    Args:
        map_B23: from pixels of the window to places in the image, each seen from its middle, in pixels (x, y, 1).
        size: (h, w).
    """
    (height, width), device = size, x_BCHW.device
    pixel_3hw = torch.ones(3, height, width, device=device)
    pixel_3hw[0] = torch.arange(width, device=device) - (width - 1) / 2
    pixel_3hw[1] = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    unit_2 = torch.tensor([2 / x_BCHW.shape[3], 2 / x_BCHW.shape[2]], device=device)  # grid_sample: in half images
    place_B2hw = (map_B23 * unit_2[:, None]).view(-1, 3) @ pixel_3hw.view(3, -1)
    place_Bhw2 = place_B2hw.view(-1, 2, height, width).permute(0, 2, 3, 1)
    x = F.grid_sample(x_BCHW, place_Bhw2, padding_mode="border", align_corners=False)
    # One more, so that the zeros from outside are told from the class 0.
    numbers = (mask_BHW.to(torch.int16) + 1).to(x_BCHW.dtype)[:, None]
    fetched = F.grid_sample(numbers, place_Bhw2, mode="nearest", padding_mode="zeros", align_corners=False)
    mask = fetched[:, 0].round().to(torch.int16) - 1
    return x, torch.where(mask < 0, UNLABELLED, mask).to(torch.uint8)
