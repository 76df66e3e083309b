"""The fields of a style transfer and its presets, and the two pictures that it is about.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams.

Shapes: H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from zerokara.core.compute import Precision
from zerokara.core.config import Positional, Range, UserError
from zerokara.core.programs import program_command
from zerokara.generative.style.perceptual import BackboneOptions
from zerokara.generative.style.pictures import read_picture, sizes

NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]


@dataclass(frozen=True, kw_only=True)
class Config(BackboneOptions):
    """Two pictures, and how one is painted after the other."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""
    pictures: Annotated[tuple[str, ...], Positional("content.jpg style.jpg")] = ()
    """The picture whose content is kept, and the one whose style it gets."""
    out: str = ""
    """PNG file that gets the result too, beside runs/<name>/result.png."""
    name: str = ""
    """Folder under runs/; empty: made of both pictures and the seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of noise and of random weights."""
    size: Annotated[int, Range(0)] = 512
    """Longer side of the result in pixels; 0: as the content picture has it."""
    style_scale: Annotated[float, Range(0.05, 8)] = 1.0
    """Longer side of the style picture, as a factor on the result's: larger makes larger strokes."""
    iterations: Count = 300
    """Steps of L-BFGS, shared by all sizes evenly."""
    scales: Annotated[int, Range(1, 8)] = 2
    """Sizes at which it is painted, each half of the next; the last is --size."""
    start: Literal["content", "noise"] = "content"
    """What the pixels are at first."""
    keep_color: bool = False
    """Only brightness is painted, and the content picture's colours are kept."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    # --- the loss --------------------------------------------------------------------------------------------------
    content_weight: NotNegative = 1.0
    """Weight of the content layers' mean loss."""
    style_weight: NotNegative = 50.0
    """Weight of the style layers' mean loss."""
    variation_weight: NotNegative = 5.0
    """Weight of total variation, which smooths."""
    history: Annotated[int, Range(1, 100)] = 10
    """Steps that L-BFGS remembers; each costs two pictures' memory."""

    # --- what is kept ----------------------------------------------------------------------------------------------
    log_every_iterations: Count = 10
    """Iterations between lines of metrics."""
    video_every_iterations: OptionalCount = 5
    """Iterations between frames of the film; 0: no film."""
    image_every_iterations: OptionalCount = 100
    """Iterations between pictures in TensorBoard and media/; 0: only the result."""
    checkpoint_every_iterations: Count = 50
    """Iterations between checkpoints."""

    # --- the machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the eye; auto: what a short measurement finds fastest."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {},
    # Section 2: VGG-19 with average pooling, white noise at first, one size, no total variation.
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
class Pictures:
    """What is painted (H, W, 3) uint8, after what, and at which sizes (H, W)."""

    content: np.ndarray
    style: np.ndarray
    sizes: list[tuple[int, int]]

    @classmethod
    def read(cls, config: Config) -> Pictures:
        """Both files.

        Raises:
            UserError: not two, or they cannot be read.
        """
        if len(config.pictures) != 2:
            raise UserError(
                f"Two pictures are needed, content and style, and {len(config.pictures)} were named: "
                f"type {program_command('generative.style_transfer')} content.jpg style.jpg."
            )
        content, style = (read_picture(Path(word).expanduser()) for word in config.pictures)
        return cls(content, style, sizes(content.shape[0], content.shape[1], config.size, config.scales))

    def style_size(self, place: int, scale: float) -> tuple[int, int]:
        """(H, W) of the style picture beside the size at `place`: its longer side is `scale` times the content's."""
        longest = max(1, round(max(self.sizes[place]) * scale))
        return sizes(self.style.shape[0], self.style.shape[1], longest, 1)[0]
