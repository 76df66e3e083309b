"""Input normalization that published weights of other programs expect, such as torchvision's.

    config = decide_normalization(config, channels=3)   # a new run: by the files of weights that it names
    if config.published_normalization:
        run.print(format_normalization(config.backbone))

A model file of zerokara has its own normalization in its metadata (`core.models.model_file.NormalizedMetadata`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from zerokara.core.backbones.registry import BackboneName, find_backbone, is_custom
from zerokara.core.config import UserError
from zerokara.core.models.model_file import is_foreign
from zerokara.core.models.weights import is_checkpoint
from zerokara.core.zoo import registry as zoo

ConfigT = TypeVar("ConfigT", bound=Any)


def is_published(path: Path) -> bool:
    """Return True for weights that another program saved; False for a run folder and for a file of zerokara.

    Raises:
        UserError: the file is missing or damaged.
    """
    if path.is_dir():
        return False
    return is_foreign(path) if path.suffix == ".safetensors" else not is_checkpoint(path)


def decide_normalization(config: ConfigT, channels: int) -> ConfigT:
    """Return the config of a run with True or False for --published-normalization, by its files of weights.

    A resumed run keeps what it was started with; None is that of a run of an older release.

    Args:
        config: has the fields published_normalization, backbone, pretrained_backbone and resume, perhaps weights.
        channels: of the images.

    Raises:
        UserError: a file is missing or damaged, or the option is given for images that are not in color.
    """
    if config.resume or config.published_normalization is False:
        return config
    fits = channels == len(find_backbone(config.backbone).published_mean)
    if config.published_normalization:
        if not fits:
            raise UserError(
                f"--published-normalization is for images with three color channels, but these have {channels}: leave "
                f"it out, or leave out --grayscale."
            )
        return config
    weights = getattr(config, "weights", "")
    files = [Path(weights).expanduser()] if weights else []
    if config.pretrained_backbone:
        files.append(zoo.find_weights(config.pretrained_backbone))
    published = fits and not is_custom(config.backbone) and any(map(is_published, files))
    return replace(config, published_normalization=published)


def published_moments(backbone: BackboneName) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel that published weights of a backbone expect."""
    found = find_backbone(backbone)
    return found.published_mean, found.published_std


def format_normalization(backbone: BackboneName) -> str:
    """Return the line that says how inputs are normalized for published weights."""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in published_moments(backbone))
    return (
        f"inputs are normalized by mean {mean} and standard deviation {std}, as published weights of "
        f"{find_backbone(backbone).name} expect (--no-published-normalization: not)"
    )
