"""Augmentation: what may happen to a training image without changing what it shows.

    augment = Augment(rotation_degrees=10, shift=0.08)
    x = augment(x, generator)
    x, target = augment.mix(x, target, generator)

A batch is augmented at once, on its device, and every image by numbers of its own. What moves pixels by fractions
(rotation, shear, scale, shift, elastic distortion) is one map from pixels of the new image to places in the old one, so
that an image is interpolated once.

Shapes: B batch, C channels, H, W pixels, K classes, h, w knots of the elastic field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ELASTIC_SIGMA = 1 / 7  # of the side: the 4 pixels that Simard et al. found best on 28 x 28


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How much of everything. Zero is nothing, and with nothing at all an image stays what it is."""

    rotation_degrees: float = 0.0  # up to so many either way
    shift: float = 0.0  # up to this fraction of the side, either way
    scale: float = 0.0  # a factor from 1 - scale to 1 + scale
    shear_degrees: float = 0.0  # up to so many either way
    elastic_pixels: float = 0.0  # deviation of every pixel's displacement
    crop_pixels: int = 0  # margin on each side, out of which a window of the old size is cut
    flip: bool = False  # left to right, half of the images
    brightness: float = 0.0  # up to this added or taken away, in pixels of 0 to 1
    contrast: float = 0.0  # a factor from 1 - contrast to 1 + contrast on the distance from the image's mean
    cutout: float = 0.0  # side of a square of the image's mean colour, as a fraction of the image's side
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha

    def __call__(
        self, x_BCHW: Tensor, generator: torch.Generator, *, index_B: Tensor | None = None, epoch: int = 0
    ) -> Tensor:
        """Images changed at random, a function of the generator's state alone.

        Args:
            x_BCHW: pixels from 0 to 1.
            generator: on the device of the images.
            index_B: the images' places in their data set. With them, flips alternate: an image that is mirrored in one
                epoch is not in the next (airbench), so that two epochs show both sides of every image.
            epoch: which pass over the data this is.
        """
        if self.rotation_degrees or self.shift or self.scale or self.shear_degrees or self.elastic_pixels:
            x_BCHW = warp(x_BCHW, self._maps(x_BCHW, generator), self._field(x_BCHW, generator))
        if self.crop_pixels:
            corner_B2 = torch.randint(
                2 * self.crop_pixels + 1, (len(x_BCHW), 2), generator=generator, device=x_BCHW.device
            )
            x_BCHW = crop(x_BCHW, self.crop_pixels, corner_B2)
        if self.flip:
            x_BCHW = torch.where(_sides(x_BCHW, generator, index_B, epoch), x_BCHW.flip(3), x_BCHW)
        if self.brightness or self.contrast:
            x_BCHW = self._relight(x_BCHW, generator)
        if self.cutout:
            height, width = x_BCHW.shape[2:]
            centre_B2 = torch.rand(len(x_BCHW), 2, generator=generator, device=x_BCHW.device)
            side_B = x_BCHW.new_full((len(x_BCHW),), self.cutout)
            hole_B1HW = boxes(centre_B2, side_B, height, width)[:, None]
            x_BCHW = torch.where(hole_B1HW, x_BCHW.mean((2, 3), keepdim=True), x_BCHW)
        return x_BCHW

    def mix(self, x_BCHW: Tensor, target_BK: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every image mixed with another of the batch, and their labels in the same proportion.

        Mixup (Zhang et al. 2018) adds images, CutMix (Yun et al. 2019) puts a window of one into the other; where both
        are wanted a coin decides for every image. The share of the image itself is drawn from Beta(alpha, alpha).
        """
        if not (self.mixup or self.cutmix):
            return x_BCHW, target_BK
        batch, _, height, width = x_BCHW.shape
        device = x_BCHW.device
        partner_B = torch.randperm(batch, generator=generator, device=device)
        other_BCHW, share_B, mixed_BCHW = x_BCHW[partner_B], None, x_BCHW
        if self.mixup:
            share_B = _beta(self.mixup, x_BCHW, generator)
            mixed_BCHW = torch.lerp(other_BCHW, x_BCHW, share_B.view(-1, 1, 1, 1))
        if self.cutmix:
            centre_B2 = torch.rand(batch, 2, generator=generator, device=device)
            side_B = (1 - _beta(self.cutmix, x_BCHW, generator)).sqrt()
            window_BHW = boxes(centre_B2, side_B, height, width)
            cut_BCHW = torch.where(window_BHW[:, None], other_BCHW, x_BCHW)
            cut_share_B = 1 - window_BHW.to(x_BCHW.dtype).mean((1, 2))
            if share_B is None:
                mixed_BCHW, share_B = cut_BCHW, cut_share_B
            else:
                coin_B = torch.rand(batch, generator=generator, device=device) < 0.5
                mixed_BCHW = torch.where(coin_B.view(-1, 1, 1, 1), mixed_BCHW, cut_BCHW)
                share_B = torch.where(coin_B, share_B, cut_share_B)
        assert share_B is not None
        return mixed_BCHW, torch.lerp(target_BK[partner_B], target_BK, share_B[:, None].to(target_BK.dtype))

    def _maps(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """A random affine map (B, 2, 3) for every image."""
        height, width = x_BCHW.shape[2:]
        most = [
            math.radians(self.rotation_degrees),
            math.radians(self.shear_degrees),
            self.scale,
            self.shift * width,
            self.shift * height,
        ]
        random_5B = torch.rand(5, len(x_BCHW), generator=generator, device=x_BCHW.device).mul_(2).sub_(1)
        random_5B = random_5B * torch.tensor(most, device=x_BCHW.device)[:, None]
        angle_B, shear_B, scale_B, right_B, down_B = random_5B.unbind()
        return affine_maps(angle_B, shear_B, 1 + scale_B, right_B, down_B)

    def _field(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor | None:
        """A random displacement (B, 2, H, W) of every pixel, in pixels to the right and down, or none.

        Simard, Steinkraus and Platt 2003, section 2: white noise, smoothed by a Gaussian. Here the noise sits on knots
        one deviation apart rather than on every pixel, which gives the same fields at a hundredth of the numbers.
        """
        if not self.elastic_pixels:
            return None
        height, width = x_BCHW.shape[2:]
        spread_hH, spread_wW = (_bumps(side, x_BCHW.device) for side in (height, width))
        noise_B2hw = torch.randn(
            len(x_BCHW), 2, len(spread_hH), len(spread_wW), generator=generator, device=x_BCHW.device
        )
        return spread_hH.T @ (noise_B2hw @ (spread_wW * self.elastic_pixels))

    def _relight(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Other brightness and contrast, ends cut off."""
        random_2B = torch.rand(2, len(x_BCHW), generator=generator, device=x_BCHW.device).mul_(2).sub_(1)
        added_B, factor_B = (random_2B[0] * self.brightness, 1 + random_2B[1] * self.contrast)
        mean_B111 = x_BCHW.mean((1, 2, 3), keepdim=True)
        factor_B111, added_B111 = factor_B.view(-1, 1, 1, 1), added_B.view(-1, 1, 1, 1)
        return (x_BCHW * factor_B111 + (mean_B111 * (1 - factor_B111) + added_B111)).clamp_(0, 1)


def affine_maps(angle_B: Tensor, shear_B: Tensor, scale_B: Tensor, right_B: Tensor, down_B: Tensor) -> Tensor:
    """Maps (B, 2, 3) of pixels of the new image to places in the old one, seen from the middle, in pixels (x, y, 1).

    Args:
        angle_B: the picture turns clockwise by so many radians,
        shear_B: then what stands upright leans to the left by so many,
        scale_B: then it grows by this factor,
        right_B: then it moves to the right by so many pixels,
        down_B: and down.
    """
    cos_B, sin_B, lean_B = angle_B.cos(), angle_B.sin(), shear_B.tan()
    linear_B4 = torch.stack([cos_B, sin_B - cos_B * lean_B, -sin_B, cos_B + sin_B * lean_B], 1) / scale_B[:, None]
    linear_B22 = linear_B4.view(-1, 2, 2)
    shift_B21 = torch.stack([right_B, down_B], 1)[:, :, None]
    return torch.cat([linear_B22, -(linear_B22 @ shift_B21)], 2)


def warp(x_BCHW: Tensor, map_B23: Tensor, field_B2HW: Tensor | None = None) -> Tensor:
    """Images (B, C, H, W) with every pixel fetched from where its map (B, 2, 3), and a displacement, point to.

    What would come from outside continues the edge: black stays black around a digit.
    """
    batch, _, height, width = x_BCHW.shape
    device = x_BCHW.device
    x_W = torch.arange(width, device=device) - (width - 1) / 2
    y_H = torch.arange(height, device=device) - (height - 1) / 2
    pixel_3HW = torch.ones(3, height, width, device=device)
    pixel_3HW[0], pixel_3HW[1] = x_W, y_H[:, None]
    unit_12 = torch.tensor([2 / width, 2 / height], device=device)[:, None]  # grid_sample counts in half images
    map_B23 = map_B23 * unit_12
    place_B2HW = map_B23.view(-1, 3) @ pixel_3HW.view(3, -1)
    if field_B2HW is not None:
        place_B2HW = place_B2HW.view(batch, 2, -1).addcmul_(field_B2HW.view(batch, 2, -1), unit_12)
    place_BHW2 = place_B2HW.view(batch, 2, height, width).permute(0, 2, 3, 1)
    return F.grid_sample(x_BCHW, place_BHW2, padding_mode="border", align_corners=False)


def crop(x_BCHW: Tensor, margin_pixels: int, corner_B2: Tensor) -> Tensor:
    """Windows (B, C, H, W) of images whose edges go on in a margin; `corner_B2` (y, x) from 0 to twice the margin."""
    height, width = x_BCHW.shape[2:]
    padded = F.pad(x_BCHW, (margin_pixels,) * 4, mode="replicate")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (B, C, y, x, H, W): nothing is copied yet
    places_B = torch.arange(len(x_BCHW), device=x_BCHW.device)
    return windows[places_B, :, corner_B2[:, 0], corner_B2[:, 1]]


def boxes(centre_B2: Tensor, side_B: Tensor, height: int, width: int) -> Tensor:
    """Masks (B, H, W) of boxes in the image's proportions, cut off where they reach outside.

    Args:
        centre_B2: (y, x) from 0 to 1.
        side_B: as a fraction of the image's; the nearest whole number of pixels is taken.
        height: of the masks, in pixels.
        width: of the masks, in pixels.
    """
    inside = []
    for axis, length in enumerate((height, width)):
        side_B1 = (side_B[:, None] * length).round()
        first_B1 = (centre_B2[:, axis, None] * length - side_B1 / 2).round()
        pixel_1L = torch.arange(length, device=side_B.device)[None]
        inside.append((pixel_1L >= first_B1) & (pixel_1L < first_B1 + side_B1))
    return inside[0][:, :, None] & inside[1][:, None, :]


def _sides(x_BCHW: Tensor, generator: torch.Generator, index_B: Tensor | None, epoch: int) -> Tensor:
    """Which images to mirror (B, 1, 1, 1), at random or in turns."""
    if index_B is None:
        flip_B = torch.rand(len(x_BCHW), generator=generator, device=x_BCHW.device) < 0.5
    else:
        # Knuth's multiplicative hash: which turn an image begins with has nothing to do with its place.
        flip_B = ((index_B * 2_654_435_761 >> 16) + epoch) % 2 == 1
    return flip_B.view(-1, 1, 1, 1)


def _beta(alpha: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from Beta(alpha, alpha) for every image (B,)."""
    # float64: of a small alpha's gammas, float32 would round most to zero.
    alpha_2B = torch.full((2, len(like)), alpha, dtype=torch.float64, device=like.device)
    gamma_2B: Tensor = torch._standard_gamma(alpha_2B, generator)
    return (gamma_2B[0] / gamma_2B.sum(0)).to(like.dtype)


def _bumps(side: int, device: torch.device) -> Tensor:
    """Gaussians (knots, side) around knots one deviation apart, beyond the ends too.

    Squares over the knots sum to 1 at every pixel, so that noise of deviation 1 on the knots is so on the pixels.
    """
    sigma = side * ELASTIC_SIGMA
    knot_h1 = torch.arange(-2.5 * sigma, side + 2.5 * sigma, sigma, device=device)[:, None]
    bump_hH: Tensor = torch.exp(-(((torch.arange(side, device=device) - knot_h1) / sigma) ** 2) / 2)
    return bump_hH / bump_hH.square().sum(0).sqrt()
