"""Data augmentation: random changes of training images that keep their label.

    augment = Augment(rotation_degrees=10, shift=0.08)
    x = augment(x, generator)
    x, target = augment.mix(x, target, generator)

A whole batch is augmented at once, on its device, with random numbers drawn per image. All geometric transforms
(rotation, shear, scale, shift, elastic distortion) are combined into one map from output pixels to input positions, so
that each image is interpolated only once.

Shapes: B batch, C channels, H, W pixels, K classes, h, w knots of the elastic field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CropPadding = Literal["edge", "reflect"]
ELASTIC_SIGMA = 1 / 7  # fraction of the side; Simard et al. found 4 pixels best on 28 x 28


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Strength of each random transform. 0 (or False) disables a transform; with all disabled, images are unchanged."""

    rotation_degrees: float = 0.0  # uniform in [-rotation_degrees, rotation_degrees]
    shift: float = 0.0  # uniform in [-shift, shift], as a fraction of the side
    scale: float = 0.0  # factor, uniform in [1 - scale, 1 + scale]
    shear_degrees: float = 0.0  # uniform in [-shear_degrees, shear_degrees]
    elastic_pixels: float = 0.0  # standard deviation of every pixel's displacement
    crop_pixels: int = 0  # padding on each side, from which a crop of the original size is taken
    crop_padding: CropPadding = "edge"  # edge: repeat the pixels of the edge; reflect: mirror at the edge
    flip: bool = False  # mirror half of the images left to right
    brightness: float = 0.0  # added to all pixels, uniform in [-brightness, brightness]; pixels are 0 to 1
    contrast: float = 0.0  # factor on the distance from the image's mean, uniform in [1 - contrast, 1 + contrast]
    cutout: float = 0.0  # side of a square filled with the image's mean color, as a fraction of the image's side
    mixup: float = 0.0  # alpha of the Beta distribution
    cutmix: float = 0.0  # alpha of the Beta distribution

    def __call__(
        self, x_BCHW: Tensor, generator: torch.Generator, *, index_B: Tensor | None = None, epoch: int = 0
    ) -> Tensor:
        """Augment a batch of images. The result depends only on the arguments and the state of the generator.

        Args:
            x_BCHW: pixels from 0 to 1.
            generator: random generator on the device of the images.
            index_B: indices of the images in their data set. If given, flips alternate (airbench): an image that is
                mirrored in one epoch is not mirrored in the next, so that two epochs contain both versions.
            epoch: number of the current pass over the data.
        """
        if self.rotation_degrees or self.shift or self.scale or self.shear_degrees or self.elastic_pixels:
            x_BCHW = warp(x_BCHW, self._sample_maps(x_BCHW, generator), self._sample_field(x_BCHW, generator))
        if self.crop_pixels:
            x_BCHW = shift_at_random(x_BCHW, self.crop_pixels, generator, self.crop_padding)
        if self.flip:
            x_BCHW = torch.where(_flip_mask(x_BCHW, generator, index_B, epoch), x_BCHW.flip(3), x_BCHW)
        if self.brightness or self.contrast:
            x_BCHW = self._adjust_brightness_and_contrast(x_BCHW, generator)
        if self.cutout:
            height, width = x_BCHW.shape[2:]
            center_B2 = torch.rand(len(x_BCHW), 2, generator=generator, device=x_BCHW.device)
            side_B = x_BCHW.new_full((len(x_BCHW),), self.cutout)
            hole_B1HW = boxes(center_B2, side_B, height, width)[:, None]
            x_BCHW = torch.where(hole_B1HW, x_BCHW.mean((2, 3), keepdim=True), x_BCHW)
        return x_BCHW

    def mix(self, x_BCHW: Tensor, target_BK: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix every image with another image of the batch, and their labels in the same proportion.

        Mixup (Zhang et al. 2018) averages two images; CutMix (Yun et al. 2019) copies a rectangle of one into the
        other. If both are enabled, one of them is chosen at random for every image. The fraction of the image itself
        is drawn from Beta(alpha, alpha).
        """
        if not (self.mixup or self.cutmix):
            return x_BCHW, target_BK
        batch, _, height, width = x_BCHW.shape
        device = x_BCHW.device
        partner_B = torch.randperm(batch, generator=generator, device=device)
        other_BCHW, fraction_B, mixed_BCHW = x_BCHW[partner_B], None, x_BCHW
        if self.mixup:
            fraction_B = _beta(self.mixup, x_BCHW, generator)
            mixed_BCHW = torch.lerp(other_BCHW, x_BCHW, fraction_B.view(-1, 1, 1, 1))
        if self.cutmix:
            center_B2 = torch.rand(batch, 2, generator=generator, device=device)
            side_B = (1 - _beta(self.cutmix, x_BCHW, generator)).sqrt()
            window_BHW = boxes(center_B2, side_B, height, width)
            cut_BCHW = torch.where(window_BHW[:, None], other_BCHW, x_BCHW)
            cut_fraction_B = 1 - window_BHW.to(x_BCHW.dtype).mean((1, 2))
            if fraction_B is None:
                mixed_BCHW, fraction_B = cut_BCHW, cut_fraction_B
            else:
                use_mixup_B = torch.rand(batch, generator=generator, device=device) < 0.5
                mixed_BCHW = torch.where(use_mixup_B.view(-1, 1, 1, 1), mixed_BCHW, cut_BCHW)
                fraction_B = torch.where(use_mixup_B, fraction_B, cut_fraction_B)
        assert fraction_B is not None
        return mixed_BCHW, torch.lerp(target_BK[partner_B], target_BK, fraction_B[:, None].to(target_BK.dtype))

    def _sample_maps(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Sample a random affine map (B, 2, 3) for every image."""
        height, width = x_BCHW.shape[2:]
        limits = [
            math.radians(self.rotation_degrees),
            math.radians(self.shear_degrees),
            self.scale,
            self.shift * width,
            self.shift * height,
        ]
        random_5B = torch.rand(5, len(x_BCHW), generator=generator, device=x_BCHW.device).mul_(2).sub_(1)
        random_5B = random_5B * torch.tensor(limits, device=x_BCHW.device)[:, None]
        angle_B, shear_B, scale_B, right_B, down_B = random_5B.unbind()
        return affine_maps(angle_B, shear_B, 1 + scale_B, right_B, down_B)

    def _sample_field(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor | None:
        """Sample a displacement field (B, 2, H, W), in pixels to the right and down; None if elastic_pixels is 0.

        Simard, Steinkraus and Platt 2003, section 2: white noise, smoothed by a Gaussian. Here the noise is drawn on
        knots that are one standard deviation apart instead of on every pixel, which gives the same kind of field with
        a hundredth of the random numbers.
        """
        if not self.elastic_pixels:
            return None
        height, width = x_BCHW.shape[2:]
        gaussian_hH, gaussian_wW = (_gaussians(side, x_BCHW.device) for side in (height, width))
        noise_B2hw = torch.randn(
            len(x_BCHW), 2, len(gaussian_hH), len(gaussian_wW), generator=generator, device=x_BCHW.device
        )
        return gaussian_hH.T @ (noise_B2hw @ (gaussian_wW * self.elastic_pixels))

    def _adjust_brightness_and_contrast(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Change brightness and contrast at random; the result is clamped to [0, 1]."""
        random_2B = torch.rand(2, len(x_BCHW), generator=generator, device=x_BCHW.device).mul_(2).sub_(1)
        brightness_B, factor_B = (random_2B[0] * self.brightness, 1 + random_2B[1] * self.contrast)
        mean_B111 = x_BCHW.mean((1, 2, 3), keepdim=True)
        factor_B111, brightness_B111 = factor_B.view(-1, 1, 1, 1), brightness_B.view(-1, 1, 1, 1)
        return (x_BCHW * factor_B111 + (mean_B111 * (1 - factor_B111) + brightness_B111)).clamp_(0, 1)


def affine_maps(angle_B: Tensor, shear_B: Tensor, scale_B: Tensor, right_B: Tensor, down_B: Tensor) -> Tensor:
    """Compute maps (B, 2, 3) from output pixels to input positions, as (x, y, 1) in pixels from the image's center.

    The transforms are applied to the image in the order of the arguments.

    Args:
        angle_B: clockwise rotation, in radians.
        shear_B: shear of vertical lines to the left, in radians.
        scale_B: magnification factor.
        right_B: shift to the right, in pixels.
        down_B: shift down, in pixels.
    """
    cos_B, sin_B, tan_shear_B = angle_B.cos(), angle_B.sin(), shear_B.tan()
    linear_B4 = (
        torch.stack([cos_B, sin_B - cos_B * tan_shear_B, -sin_B, cos_B + sin_B * tan_shear_B], 1) / scale_B[:, None]
    )
    linear_B22 = linear_B4.view(-1, 2, 2)
    shift_B21 = torch.stack([right_B, down_B], 1)[:, :, None]
    return torch.cat([linear_B22, -(linear_B22 @ shift_B21)], 2)


def warp(x_BCHW: Tensor, map_B23: Tensor, field_B2HW: Tensor | None = None) -> Tensor:
    """Resample images (B, C, H, W) bilinearly at the positions given by maps (B, 2, 3) and a displacement field.

    Positions outside of the image take the nearest edge pixel, so that the background of a digit stays black.
    """
    batch, _, height, width = x_BCHW.shape
    device = x_BCHW.device
    x_W = torch.arange(width, device=device) - (width - 1) / 2
    y_H = torch.arange(height, device=device) - (height - 1) / 2
    pixel_3HW = torch.ones(3, height, width, device=device)
    pixel_3HW[0], pixel_3HW[1] = x_W, y_H[:, None]
    unit_12 = torch.tensor([2 / width, 2 / height], device=device)[
        :, None
    ]  # grid_sample expects units of half an image
    map_B23 = map_B23 * unit_12
    position_B2HW = map_B23.view(-1, 3) @ pixel_3HW.view(3, -1)
    if field_B2HW is not None:
        position_B2HW = position_B2HW.view(batch, 2, -1).addcmul_(field_B2HW.view(batch, 2, -1), unit_12)
    position_BHW2 = position_B2HW.view(batch, 2, height, width).permute(0, 2, 3, 1)
    return F.grid_sample(x_BCHW, position_BHW2, padding_mode="border", align_corners=False)


def shift_at_random(x_BCHW: Tensor, pixels: int, generator: torch.Generator, padding: CropPadding = "edge") -> Tensor:
    """Shift each image (B, C, H, W) by up to `pixels` in each direction, uniformly; `padding` as in `crop`."""
    corner_B2 = torch.randint(2 * pixels + 1, (len(x_BCHW), 2), generator=generator, device=x_BCHW.device)
    return crop(x_BCHW, pixels, corner_B2, padding)


def crop(x_BCHW: Tensor, margin_pixels: int, corner_B2: Tensor, padding: CropPadding = "edge") -> Tensor:
    """Pad images and crop to the original size (B, C, H, W).

    Args:
        x_BCHW: images of any data type.
        margin_pixels: padding on each side.
        corner_B2: top left corner (y, x) of each crop in the padded image, from 0 to twice the margin.
        padding: "edge" repeats the pixels of the edge; "reflect" mirrors the image at them, which needs floats.
    """
    height, width = x_BCHW.shape[2:]
    if x_BCHW.is_floating_point():
        mode = "replicate" if padding == "edge" else "reflect"
        padded = F.pad(x_BCHW, (margin_pixels,) * 4, mode=mode)
    else:  # integers, for which PyTorch has no such kernel on a GPU
        padded = x_BCHW
        for axis in (2, 3):
            first, last = (padded.narrow(axis, at, 1) for at in (0, padded.shape[axis] - 1))
            padded = torch.cat([*[first] * margin_pixels, padded, *[last] * margin_pixels], axis)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (B, C, y, x, H, W), without a copy
    index_B = torch.arange(len(x_BCHW), device=x_BCHW.device)
    return windows[index_B, :, corner_B2[:, 0], corner_B2[:, 1]]


def boxes(center_B2: Tensor, side_B: Tensor, height: int, width: int) -> Tensor:
    """Make boolean masks (B, H, W) of boxes with the image's aspect ratio, clipped to the image.

    Args:
        center_B2: centers (y, x) from 0 to 1.
        side_B: sides as a fraction of the image's side; rounded to whole pixels.
        height: of the masks, in pixels.
        width: of the masks, in pixels.
    """
    inside = []
    for axis, length in enumerate((height, width)):
        side_B1 = (side_B[:, None] * length).round()
        first_B1 = (center_B2[:, axis, None] * length - side_B1 / 2).round()
        pixel_1L = torch.arange(length, device=side_B.device)[None]
        inside.append((pixel_1L >= first_B1) & (pixel_1L < first_B1 + side_B1))
    return inside[0][:, :, None] & inside[1][:, None, :]


def _flip_mask(x_BCHW: Tensor, generator: torch.Generator, index_B: Tensor | None, epoch: int) -> Tensor:
    """Choose the images to mirror (B, 1, 1, 1), at random or, if indices are given, in alternating epochs."""
    if index_B is None:
        flip_B = torch.rand(len(x_BCHW), generator=generator, device=x_BCHW.device) < 0.5
    else:
        # Knuth's multiplicative hash makes the choice in the first epoch independent of the order of the data set.
        flip_B = ((index_B * 2_654_435_761 >> 16) + epoch) % 2 == 1
    return flip_B.view(-1, 1, 1, 1)


def _beta(alpha: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """Sample from Beta(alpha, alpha) for every image (B,)."""
    # float64, because float32 would round most gamma samples of a small alpha to zero.
    alpha_2B = torch.full((2, len(like)), alpha, dtype=torch.float64, device=like.device)
    gamma_2B: Tensor = torch._standard_gamma(alpha_2B, generator)
    return (gamma_2B[0] / gamma_2B.sum(0)).to(like.dtype)


def _gaussians(side: int, device: torch.device) -> Tensor:
    """Compute Gaussians (knots, side) centered on knots one standard deviation apart, also beyond the image's ends.

    The squares over the knots sum to 1 at every pixel, so that noise of standard deviation 1 on the knots gives noise
    of standard deviation 1 on the pixels.
    """
    sigma = side * ELASTIC_SIGMA
    knot_h1 = torch.arange(-2.5 * sigma, side + 2.5 * sigma, sigma, device=device)[:, None]
    gaussian_hH: Tensor = torch.exp(-(((torch.arange(side, device=device) - knot_h1) / sigma) ** 2) / 2)
    return gaussian_hH / gaussian_hH.square().sum(0).sqrt()
