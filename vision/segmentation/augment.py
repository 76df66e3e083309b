"""Data augmentation of images together with their masks: geometric transforms are applied to both.

    augment = JointAugment(scale=(0.5, 2.0), crop_size=(180, 240), flip=True, color_jitter=0.1)
    x, mask = augment(x, mask, generator)

Scaling, rotation and cropping are combined into one map, so that each image is interpolated only once (bilinear). Masks
are sampled with nearest-neighbor interpolation, so that every value stays a class index. Pixels outside of the original
image are unlabeled.

Shapes: B batch, C channels, H, W pixels of the input, h, w pixels of the crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.augment import Augment, affine_maps
from zerokara.core.data.masks import UNLABELED


@dataclass(frozen=True, kw_only=True)
class JointAugment:
    """Strength of each random transform. With the defaults, images and masks are unchanged."""

    scale: tuple[float, float] = (1.0, 1.0)  # smallest and largest factor; log-uniform between them
    rotation_degrees: float = 0.0  # uniform in [-rotation_degrees, rotation_degrees]
    crop_size: tuple[int, int] | None = None  # (h, w) of the crop; None: the size of the input
    flip: bool = False  # mirror half of the images left to right
    brightness: float = 0.0  # as in `core.augment.Augment`
    contrast: float = 0.0  # as in `core.augment.Augment`
    color_jitter: float = 0.0  # saturation and each channel: factors, uniform in [1 - color_jitter, 1 + color_jitter]

    def __call__(self, x_BCHW: Tensor, mask_BHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment a batch. The result depends only on the arguments and the state of the generator.

        Args:
            x_BCHW: pixels from 0 to 1.
            mask_BHW: uint8, class indices or UNLABELED.
            generator: random generator on the device of the images.

        Returns:
            Images (B, C, h, w) and masks (B, h, w) int64.
        """
        size = self.crop_size or (x_BCHW.shape[2], x_BCHW.shape[3])
        if self.scale != (1.0, 1.0) or self.rotation_degrees or size != x_BCHW.shape[2:]:
            map_B23 = self._sample_maps(x_BCHW, size, generator)
            x_BCHW, mask_BHW = warp_with_masks(x_BCHW, mask_BHW, map_B23, size)
        if self.flip:
            flip_B = torch.rand(len(x_BCHW), generator=generator, device=x_BCHW.device) < 0.5
            x_BCHW = torch.where(flip_B.view(-1, 1, 1, 1), x_BCHW.flip(3), x_BCHW)
            mask_BHW = torch.where(flip_B.view(-1, 1, 1), mask_BHW.flip(2), mask_BHW)
        if self.color_jitter:
            x_BCHW = self._jitter_colors(x_BCHW, generator)
        x_BCHW = Augment(brightness=self.brightness, contrast=self.contrast)(x_BCHW, generator)
        return x_BCHW, mask_BHW.long()

    def _sample_maps(self, x_BCHW: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Sample affine maps (B, 2, 3) from pixels of the crop to positions in the image.

        The position of the crop is uniform. Along each axis the crop lies inside the scaled image or, if it is larger,
        the scaled image lies inside the crop.
        """
        random_4B = torch.rand(4, len(x_BCHW), generator=generator, device=x_BCHW.device)
        low, high = (math.log(factor) for factor in self.scale)
        scale_B = (low + (high - low) * random_4B[0]).exp()
        angle_B = (2 * random_4B[1] - 1) * math.radians(self.rotation_degrees)
        down_B, right_B = (
            (2 * random_4B[2 + axis] - 1) * (x_BCHW.shape[2 + axis] * scale_B - size[axis]).abs() / 2 for axis in (0, 1)
        )
        return affine_maps(angle_B, torch.zeros_like(angle_B), scale_B, right_B, down_B)

    def _jitter_colors(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Change the saturation and the balance of the channels at random; the result is clamped to [0, 1]."""
        batch, channels = x_BCHW.shape[:2]
        random = torch.rand(batch, 1 + channels, 1, 1, generator=generator, device=x_BCHW.device)
        factor = 1 + (2 * random - 1) * self.color_jitter
        grayscale = x_BCHW.mean(1, keepdim=True)
        return ((grayscale + (x_BCHW - grayscale) * factor[:, :1]) * factor[:, 1:]).clamp_(0, 1)


def warp_with_masks(x_BCHW: Tensor, mask_BHW: Tensor, map_B23: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Warp images and their masks with affine maps.

    Outside of the input, the pixels at the edge of an image are repeated, and its mask is UNLABELED.

    Args:
        x_BCHW: images.
        mask_BHW: uint8, class indices or UNLABELED.
        map_B23: maps from output pixels to input positions, both relative to the center, in pixels (x, y, 1).
        size: (h, w) of the output.

    Returns:
        Images (B, C, h, w) and masks (B, h, w) uint8.
    """
    (height, width), device = size, x_BCHW.device
    pixel_3hw = torch.ones(3, height, width, device=device)
    pixel_3hw[0] = torch.arange(width, device=device) - (width - 1) / 2
    pixel_3hw[1] = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    # grid_sample measures positions in half images: from -1 to 1.
    unit_2 = torch.tensor([2 / x_BCHW.shape[3], 2 / x_BCHW.shape[2]], device=device)
    position_B2hw = (map_B23 * unit_2[:, None]).view(-1, 3) @ pixel_3hw.view(3, -1)
    position_Bhw2 = position_B2hw.view(-1, 2, height, width).permute(0, 2, 3, 1)
    x = F.grid_sample(x_BCHW, position_Bhw2, padding_mode="border", align_corners=False)
    # Class indices are shifted by 1, because grid_sample pads with 0, which would otherwise be a class.
    shifted = (mask_BHW.to(torch.int16) + 1).to(x_BCHW.dtype)[:, None]
    sampled = F.grid_sample(shifted, position_Bhw2, mode="nearest", padding_mode="zeros", align_corners=False)
    mask = sampled[:, 0].round().to(torch.int16) - 1
    return x, torch.where(mask < 0, UNLABELED, mask).to(torch.uint8)
