"""Configuration of the training of a style network, and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.config import Range
from zerokara.core.run_config import configure
from zerokara.core.run_options import DataParallelOptions
from zerokara.generative.style import names
from zerokara.generative.style.config import BackboneOptions

KIND = "fast_style"  # of the runs of generative/fast_style.py

NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class Config(BackboneOptions, DataParallelOptions):
    """Configuration of the training of a style network."""

    # Names of older releases, accepted on the command line and in saved configs.
    RENAMED: ClassVar[Mapping[str, str]] = {
        "stylist_width": "style_network_width",
        "show_every_updates": "image_every_updates",
    }
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_FAST
    REQUIRES: ClassVar = names.REQUIRES_FAST
    GROUPS: ClassVar = names.GROUPS_FAST
    COMMON: ClassVar = names.COMMON_FAST
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES_FAST

    preset: str = "fast"
    """Named set of defaults for all other options."""
    style: str = ""
    """Style image."""
    data: str = "flickr8k-1000"
    """Training photographs: a folder or zip file, by path or name. Names are those in --data-dir. The images may have
    any size."""
    data_dir: str = ""
    """Folder of named data sets (none: $ZEROKARA_DATA or ~/.cache/zerokara)."""
    image_size: Annotated[int, Range(32, 256)] = 256
    """Resize training photographs to this side, in pixels. The trained network accepts larger images."""
    style_size: Annotated[int, Range(0, 4096)] = 0
    """Longer side of the style image in pixels (0: twice --image-size). Larger values give larger brush strokes."""
    style_network_width: Annotated[float, Range(0.05, 4)] = 1.0
    """Multiplier on the channels of the style network."""
    updates: Count = 2_000
    """Number of updates to train for."""
    batch_size: Count = 4
    """Number of photographs per update."""
    learning_rate: Annotated[float, Range(0, low_open=True)] = 3e-3
    """Initial learning rate of Adam."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate schedule: constant, or cosine decay to a hundredth."""
    content_weight: NotNegative = 1.0
    """Weight of the content loss, the mean over the content layers."""
    style_weight: NotNegative = 50.0
    """Weight of the style loss, the mean over the style layers."""
    variation_weight: NotNegative = 5.0
    """Weight of the total variation loss, which smooths the result."""
    held_out_images: Count = 8
    """Number of photographs held out for evaluation and logged images."""
    log_every_updates: Count = 20
    """Updates between logged metrics."""
    image_every_updates: Count = 200
    """Updates between evaluations on held-out photographs. They log images."""
    checkpoint_every_updates: Count = 100
    """Updates between checkpoints."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {},
    # Johnson et al. 2016, section 4.1: layers of VGG-16, Adam 1e-3, batches of 4, two epochs of 80,000 photographs.
    "paper": {
        "pooling": "max",
        "learning_rate": 1e-3,
        "style_weight": 1_000.0,
        "variation_weight": 1.0,
        "content_layers": ("relu2_2",),
        "style_layers": ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        "schedule": "constant",
        "updates": 40_000,
    },
}

read_config = partial(configure, Config, PRESETS, kind=KIND, name_fields=("style", "seed"))
"""Reads the config from the command line; with --resume, from the run's folder."""
