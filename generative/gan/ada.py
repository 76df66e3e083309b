"""Adaptive discriminator augmentation (ADA): transformations with a probability that follows the overfitting.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", section 3 and appendix B: pixel
blitting, geometric and color transformations are applied with probability p each to all images that the discriminator
gets, real and generated. With p below 1 they do not leak into the generated images: the distribution of untransformed
images can still be inferred. p rises while the discriminator is too certain of real training images.

Unlike the published code, images are resampled bilinearly without a low-pass filter before and after, which is faster
on a CPU and blurs transformed images a little, real and generated ones alike.

Shapes: B batch, C channels, H, W pixels from -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.distributed import World
from zerokara.generative.gan.config import Config

INTERVAL = 4  # updates between adjustments of the probability, as in the paper
MAX_SHIFT = 0.125  # of integer translations, and the standard deviation of others, as a fraction of the side
BRIGHTNESS_DEVIATION = 0.2
# Standard deviations of the logarithm to base 2 of factors.
SCALE_DEVIATION, CONTRAST_DEVIATION, SATURATION_DEVIATION = 0.2, 0.5, 1.0


def adjust(probability: Tensor, overfitting: Tensor, target: float, images: int, ramp_images: int) -> Tensor:
    """Return the probability after `images` more images: a step up if the overfitting is above the target, else down.

    Args:
        probability: p, from 0 to 1.
        overfitting: r_t = E[sign(D(x))] of real images x (section 3, equation 1), from -1 to 1.
        target: of r_t.
        images: real images since the last adjustment.
        ramp_images: images in which p rises from 0 to 1, if it always rises.
    """
    return (probability + (overfitting - target).sign() * (images / ramp_images)).clamp(0, 1)


class AdaptiveAugmentation:
    """Augmentation whose probability is adjusted every `INTERVAL` updates; a constant one if the target is 0.

    Attributes:
        probability: p (scalar), on the device.
        overfitting: r_t of the last adjustment (scalar).
    """

    def __init__(self, config: Config, world: World, device: torch.device) -> None:
        self._config, self._world = config, world
        # Tensors on the device, so that nothing is read in the hot loop and a change causes no recompilation.
        self.probability = torch.full((), config.ada_probability, device=device)
        self.overfitting = torch.zeros((), device=device)
        self._sum = torch.zeros((), device=device)

    def augment(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Transform images. The result depends only on the images, the probability and the generator's state."""
        return transform(x_BCHW, self._config.ada, self.probability, generator)

    def observe(self, accuracy_real: Tensor) -> None:
        """Add the fraction of real images (scalar) that the discriminator took for real in an update or a part of it.

        E[sign(D(x))] is 2 times this fraction minus 1, which is meaningful for every loss.
        """
        self._sum += accuracy_real

    def finish_update(self, updates: int) -> None:
        """Adjust the probability, the same in all processes, if `updates` (done so far) is a multiple of `INTERVAL`."""
        config = self._config
        if not config.ada_target or updates % INTERVAL:
            return
        self.overfitting.copy_(2 * self._world.mean(self._sum) / INTERVAL - 1)
        self._sum.zero_()
        images = INTERVAL * config.batch_size
        adjusted = adjust(self.probability, self.overfitting, config.ada_target, images, config.ada_images)
        self.probability.copy_(adjusted)

    def metrics(self) -> dict[str, Tensor]:
        """Return the probability and r_t, as tensors on the device."""
        return {"train/ada_probability": self.probability.clone(), "train/ada_overfitting": self.overfitting.clone()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors."""
        return {"probability": self.probability, "overfitting": self.overfitting, "sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.probability.copy_(state["probability"])
        self.overfitting.copy_(state["overfitting"])
        self._sum.copy_(state["sum"])


class Draws:
    """Random numbers of a batch, one for each image: neutral values for images that are not transformed."""

    def __init__(self, batch: int, probability: Tensor, generator: torch.Generator) -> None:
        """Draw for `batch` images, each of which is transformed with this probability (scalar)."""
        self._batch, self._probability, self._generator = batch, probability, generator
        self.zero_B = torch.zeros(batch, device=generator.device)

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw from a uniform distribution (B,)."""
        random_B = torch.rand(self._batch, generator=self._generator, device=self._generator.device)
        return low + (high - low) * random_B

    def integer(self, number: int) -> Tensor:
        """Draw from 0 to number - 1 (B,), as floats."""
        return self.uniform(0, number).floor()

    def normal(self, deviation: float) -> Tensor:
        """Draw from N(0, deviation^2) (B,)."""
        return torch.randn(self._batch, generator=self._generator, device=self._generator.device) * deviation

    def select(self, value_B: Tensor, neutral: float, probability: Tensor | None = None) -> Tensor:
        """Return the value with a probability (by default that of the batch) for each image, else the neutral value."""
        selected_B = self.uniform(0, 1) < (self._probability if probability is None else probability)
        return torch.where(selected_B, value_B, neutral)

    def rotation(self) -> Tensor:
        """Draw the angle (B,) of one of the two rotations of geometry, which together have the probability p."""
        return self.select(self.uniform(-math.pi, math.pi), 0.0, 1 - (1 - self._probability).sqrt())


def transform(x_BCHW: Tensor, kinds: Sequence[str], probability: Tensor, generator: torch.Generator) -> Tensor:
    """Apply the transformations `kinds` of blit, geometry and color, each with this probability for each image."""
    draws = Draws(len(x_BCHW), probability, generator)
    with torch.autocast(x_BCHW.device.type, enabled=False):  # 16 bits are too few for coordinates
        if "blit" in kinds or "geometry" in kinds:
            x_BCHW = resample(x_BCHW, draw_geometry(kinds, draws, *x_BCHW.shape[2:]))
        if "color" in kinds:
            x_BCHW = recolor(x_BCHW, *draw_color(draws, x_BCHW.shape[1]))
    return x_BCHW


def draw_geometry(kinds: Sequence[str], draws: Draws, height: int, width: int) -> Tensor:
    """Draw matrices (B, 2, 3) from coordinates (x, y, 1) in the transformed image to those in the original one.

    Coordinates are in pixels from the center. Each factor is the inverse of a transformation, in the order of
    appendix B: horizontal flips, rotations by multiples of 90 degrees and integer translations (blit); isotropic
    scaling, rotation, anisotropic scaling, another rotation and translation (geometry).
    """
    factors_B33 = []
    if "blit" in kinds:
        factors_B33.append(scaling(draws.select(1 - 2 * draws.integer(2), 1.0), draws.zero_B + 1))
        factors_B33.append(rotation(draws.select(draws.integer(4) * (math.pi / 2), 0.0)))
        shifts = [draws.uniform(-MAX_SHIFT, MAX_SHIFT) * side for side in (width, height)]
        both_B = draws.select(draws.zero_B + 1, 0.0)  # one choice for both axes
        factors_B33.append(translation(*(-(shift_B.round() * both_B) for shift_B in shifts)))
    if "geometry" in kinds:
        scale_B = draws.select(draws.normal(SCALE_DEVIATION).exp2(), 1.0)
        factors_B33.append(scaling(1 / scale_B, 1 / scale_B))
        factors_B33.append(rotation(draws.rotation()))
        scale_B = draws.select(draws.normal(SCALE_DEVIATION).exp2(), 1.0)
        factors_B33.append(scaling(1 / scale_B, scale_B))
        factors_B33.append(rotation(draws.rotation()))
        shifts = [draws.normal(MAX_SHIFT) * side for side in (width, height)]
        both_B = draws.select(draws.zero_B + 1, 0.0)
        factors_B33.append(translation(*(-(shift_B * both_B) for shift_B in shifts)))
    matrix_B33 = factors_B33[0]
    for factor_B33 in factors_B33[1:]:
        matrix_B33 = matrix_B33 @ factor_B33
    return matrix_B33[:, :2]


def _matrix(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Stack numbers (B,) to matrices (B, rows, columns)."""
    return torch.stack([torch.stack(list(row), 1) for row in rows], 1)


def scaling(x_B: Tensor, y_B: Tensor) -> Tensor:
    """Return matrices (B, 3, 3) that scale both axes."""
    zero_B, one_B = torch.zeros_like(x_B), torch.ones_like(x_B)
    return _matrix([[x_B, zero_B, zero_B], [zero_B, y_B, zero_B], [zero_B, zero_B, one_B]])


def rotation(angle_B: Tensor) -> Tensor:
    """Return matrices (B, 3, 3) that rotate x towards y by angles in radians."""
    zero_B, one_B, cos_B, sin_B = torch.zeros_like(angle_B), torch.ones_like(angle_B), angle_B.cos(), angle_B.sin()
    return _matrix([[cos_B, -sin_B, zero_B], [sin_B, cos_B, zero_B], [zero_B, zero_B, one_B]])


def translation(x_B: Tensor, y_B: Tensor) -> Tensor:
    """Return matrices (B, 3, 3) that add to both coordinates."""
    zero_B, one_B = torch.zeros_like(x_B), torch.ones_like(x_B)
    return _matrix([[one_B, zero_B, x_B], [zero_B, one_B, y_B], [zero_B, zero_B, one_B]])


def resample(x_BCHW: Tensor, matrix_B23: Tensor) -> Tensor:
    """Look up images bilinearly at transformed coordinates (see `draw_geometry`), mirrored beyond the border."""
    height, width = x_BCHW.shape[2:]
    half_2 = torch.tensor([width / 2, height / 2], device=x_BCHW.device)
    # affine_grid counts from -1 to 1 on each axis: divide the result by half the sides, multiply the argument.
    scaled_B23 = matrix_B23 / half_2.view(1, 2, 1) * torch.cat([half_2, torch.ones_like(half_2[:1])])
    grid_BHW2 = F.affine_grid(scaled_B23, list(x_BCHW.shape), align_corners=False)
    resampled_BCHW: Tensor = _Resample.apply(x_BCHW.float(), grid_BHW2)  # type: ignore[no-untyped-call]
    return resampled_BCHW.to(x_BCHW.dtype)


class _Resample(torch.autograd.Function):
    """Bilinear look-up. PyTorch's own has no second derivative, which R1 and R2 need; it is linear in the images."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, grid_BHW2: Tensor) -> Tensor:
        ctx.save_for_backward(grid_BHW2)
        ctx.shape = x_BCHW.shape
        return F.grid_sample(x_BCHW, grid_BHW2, "bilinear", "reflection", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grid_BHW2,) = ctx.saved_tensors
        return _ResampleTransposed.apply(grads[0], grid_BHW2, ctx.shape), None  # type: ignore[no-untyped-call]


class _ResampleTransposed(torch.autograd.Function):
    """Transpose of `_Resample`: from gradients of looked-up images to gradients of the images."""

    @staticmethod
    def forward(ctx: Any, grad_BCHW: Tensor, grid_BHW2: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid_BHW2)
        bilinear, reflection, corners, wanted = 0, 2, False, (True, False)
        grads = torch.ops.aten.grid_sampler_2d_backward(
            grad_BCHW, grad_BCHW.new_zeros(shape), grid_BHW2, bilinear, reflection, corners, wanted
        )
        images_BCHW: Tensor = grads[0]
        return images_BCHW

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grid_BHW2,) = ctx.saved_tensors
        return _Resample.apply(grads[0], grid_BHW2), None, None  # type: ignore[no-untyped-call]


def draw_color(draws: Draws, channels: int) -> tuple[Tensor, Tensor]:
    """Draw matrices (B, C, C) and offsets (B, C) of the channels, in the order of appendix B.

    Brightness, contrast, and reflection of the luma (the mean of the channels); with three channels, also rotation of
    the hue about the luma's axis, and saturation.
    """
    device = draws.zero_B.device
    eye_CC = torch.eye(channels, device=device)
    luma_CC = torch.full((channels, channels), 1 / channels, device=device)  # projection to the axis of gray
    brightness_B = draws.select(draws.normal(BRIGHTNESS_DEVIATION), 0.0)
    contrast_B = draws.select(draws.normal(CONTRAST_DEVIATION).exp2(), 1.0)
    reflected_B = draws.select(draws.integer(2), 0.0)
    matrix_BCC = eye_CC - 2 * reflected_B.view(-1, 1, 1) * luma_CC
    if channels == 3:
        angle_B11 = draws.select(draws.uniform(-math.pi, math.pi), 0.0).view(-1, 1, 1)
        cross_CC = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / 3**0.5
        hue_BCC = luma_CC + angle_B11.cos() * (eye_CC - luma_CC) + angle_B11.sin() * cross_CC  # Rodrigues' formula
        saturation_B11 = draws.select(draws.normal(SATURATION_DEVIATION).exp2(), 1.0).view(-1, 1, 1)
        matrix_BCC = (luma_CC + saturation_B11 * (eye_CC - luma_CC)) @ hue_BCC @ matrix_BCC
    matrix_BCC = matrix_BCC * contrast_B.view(-1, 1, 1)
    # matrix (contrast (x + brightness)), and brightness is equal in all channels
    return matrix_BCC, matrix_BCC.sum(2) * brightness_B.view(-1, 1)


def recolor(x_BCHW: Tensor, matrix_BCC: Tensor, offset_BC: Tensor) -> Tensor:
    """Multiply the channels of each pixel by its image's matrix and add the offset."""
    colors_BCHW = torch.einsum("bij,bjhw->bihw", matrix_BCC, x_BCHW.float()) + offset_BC[:, :, None, None]
    return colors_BCHW.to(x_BCHW.dtype)
