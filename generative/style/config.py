"""Configuration of a style transfer, its presets, and its two images.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams.

Shapes: H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from zerokara.core.config import Positional, Range, UserError
from zerokara.core.programs import program_command
from zerokara.core.run_options import RunOptions
from zerokara.generative.style import names
from zerokara.generative.style.perceptual import BackboneOptions
from zerokara.generative.style.pictures import read_image, sizes

NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]


@dataclass(frozen=True, kw_only=True)
class Config(BackboneOptions, RunOptions):
    """Configuration of a style transfer between two images."""

    # Names of older releases, accepted on the command line and in saved configs.
    RENAMED: ClassVar[Mapping[str, str]] = {
        "keep_colour": "keep_color",
        "film_every_iterations": "video_every_iterations",
        "show_every_iterations": "image_every_iterations",
    }
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_TRANSFER
    REQUIRES: ClassVar = names.REQUIRES_TRANSFER
    GROUPS: ClassVar = names.GROUPS_TRANSFER
    COMMON: ClassVar = names.COMMON_TRANSFER
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES_TRANSFER

    preset: str = "fast"
    """Named set of defaults for all other options."""
    pictures: Annotated[tuple[str, ...], Positional("content.jpg style.jpg")] = ()
    """Content image and style image."""
    out: str = ""
    """PNG file to which the result is also written. It is always written to runs/<name>/result.png."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of the initial noise and of random weights."""
    size: Annotated[int, Range(0)] = 512
    """Longer side of the result in pixels (0: that of the content image)."""
    style_scale: Annotated[float, Range(0.05, 8)] = 1.0
    """Longer side of the style image relative to the result's. Larger values give larger brush strokes."""
    iterations: Count = 300
    """L-BFGS steps, distributed evenly over the scales."""
    scales: Annotated[int, Range(1, 8)] = 2
    """Number of image sizes, from coarse to fine; each is half of the next, and the last is --size."""
    start: Literal["content", "noise"] = "content"
    """Initial image: the content image, or noise."""
    keep_color: bool = False
    """Transfer luminance only, and keep the colors of the content image."""

    # --- the loss --------------------------------------------------------------------------------------------------
    content_weight: NotNegative = 1.0
    """Weight of the content loss, the mean over the content layers."""
    style_weight: NotNegative = 50.0
    """Weight of the style loss, the mean over the style layers."""
    variation_weight: NotNegative = 5.0
    """Weight of the total variation loss, which smooths the result."""
    history: Annotated[int, Range(1, 100)] = 10
    """Steps that L-BFGS stores. Each needs the memory of two images."""

    # --- logging ---------------------------------------------------------------------------------------------------
    log_every_iterations: Count = 10
    """Iterations between logged metrics."""
    video_every_iterations: OptionalCount = 5
    """Iterations between frames of the video (0: no video)."""
    image_every_iterations: OptionalCount = 100
    """Iterations between images in TensorBoard (0: only the result). They are also written to media/."""
    checkpoint_every_iterations: Count = 50
    """Iterations between checkpoints."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {},
    # Gatys et al. 2016, section 2: VGG-19 with average pooling, initial noise, one size, no total variation.
    "paper": {
        "backbone": "vgg19",
        "start": "noise",
        "scales": 1,
        "style_weight": 1_000.0,
        "variation_weight": 0.0,
        "iterations": 500,
    },
}


@dataclass(frozen=True)
class ImagePair:
    """Content and style image (H, W, 3) uint8, and the sizes (H, W) of the optimization."""

    content: np.ndarray
    style: np.ndarray
    sizes: list[tuple[int, int]]

    @classmethod
    def read(cls, config: Config) -> ImagePair:
        """Read both files.

        Raises:
            UserError: not exactly two files, or they cannot be read.
        """
        if len(config.pictures) != 2:
            raise UserError(
                f"Two images are needed, content and style, and {len(config.pictures)} were named: "
                f"type {program_command('generative.style_transfer')} content.jpg style.jpg."
            )
        content, style = (read_image(Path(word).expanduser()) for word in config.pictures)
        return cls(content, style, sizes(content.shape[0], content.shape[1], config.size, config.scales))

    def style_size(self, index: int, scale: float) -> tuple[int, int]:
        """Return (H, W) of the style image at size `index`: its longer side is `scale` times the content image's."""
        max_side = max(1, round(max(self.sizes[index]) * scale))
        return sizes(self.style.shape[0], self.style.shape[1], max_side, 1)[0]
