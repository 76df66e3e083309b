"""Configuration of a style transfer, its presets, and the options of its loss network.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.config import Positional, Range
from zerokara.core.run_config import configure
from zerokara.core.run_options import NormalizationOptions, RunOptions
from zerokara.generative.style import names

Pooling = Literal["max", "average"]
KIND = "style_transfer"  # of the runs of generative/style_transfer.py

NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(NormalizationOptions):
    """Options of the loss network and its layers."""

    # Names of older releases, accepted on the command line and in saved configs.
    RENAMED: ClassVar[Mapping[str, str]] = {
        "init_backbone": "pretrained_backbone",
        "width": "width_multiplier",
        "eye": "loss_network",
    }

    backbone: str = "vgg16"
    """Architecture of the loss network, for weights without metadata. python -m core.backbones lists the names."""
    weights: str = ""
    """Weights file of torchvision for --backbone, such as vgg16-397923af.pth."""
    pretrained_backbone: str = ""
    """Weights of a run: a folder runs/<name>, or a file in it."""
    loss_network: str = ""
    """Zoo network, or random for random weights (none: photographs-vgg). With random, --backbone names the network.
    photographs-vgg is a narrow VGG-13. --weights and --pretrained-backbone replace it."""
    width_multiplier: Annotated[float, Range(0.01, 4)] = 1.0
    """Multiplier on the channels of --backbone. Only for weights that do not contain it."""
    content_layers: tuple[str, ...] = ()
    """Layers of the content loss, such as relu4_2 (none: by the network). Defaults: relu4_2 for VGG weights of
    torchvision; relu3_1 for a VGG of a run or of the zoo; the second-last stage of other backbones, which have stage1,
    stage2 and so on."""
    style_layers: tuple[str, ...] = ()
    """Layers of the style loss (none: relu1_1 to relu5_1, or all stages)."""
    pooling: Pooling = "average"
    """Pooling of a VGG. average gives smoother results (Gatys et al. 2016, section 2)."""


@dataclass(frozen=True, kw_only=True)
class Config(BackboneOptions, RunOptions):
    """Configuration of a style transfer between two images."""

    # Names of older releases, accepted on the command line and in saved configs.
    RENAMED: ClassVar[Mapping[str, str]] = {
        "keep_colour": "keep_color",
        "film_every_iterations": "video_every_iterations",
        "show_every_iterations": "image_every_iterations",
    }
    CHANGEABLE: ClassVar = frozenset({"out"})
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

read_config = partial(configure, Config, PRESETS, kind=KIND, name_fields=("pictures", "seed"))
"""Reads the config from the command line; with --resume, from the run's folder."""
