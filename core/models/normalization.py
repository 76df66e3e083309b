"""Input normalization that published weights of other programs expect, such as torchvision's.

    config = decide_normalization(config, channels=3)   # a new run: by the files of weights that it names
    if config.published_normalization:
        mean, std = expected_moments(config)
        run.print(format_normalization(config))

Most files expect the images of their backbone's paper (`Backbone.published_mean`). Others bring their own: those of
timm and Transformers in a JSON file beside them, and one of torchvision, which is known by its checksum.

A model file of zerokara has its own normalization in its metadata (`core.models.model_file.NormalizedMetadata`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from zerokara.core.backbones.registry import BackboneName, find_backbone, is_custom
from zerokara.core.config import UserError, error_summary
from zerokara.core.models.model_file import is_foreign
from zerokara.core.models.weights import is_checkpoint
from zerokara.core.zoo import registry as zoo

ConfigT = TypeVar("ConfigT", bound=Any)
Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""
MAX_MOMENT = 1e6  # NaN and Inf are refused
CONFIG_FILES = {
    "config.json": ("pretrained_cfg", "mean", "std"),
    "preprocessor_config.json": ("", "image_mean", "image_std"),
}
"""Files beside weights of timm and Transformers, with the keys of a mapping inside ("": the file itself), and of its
mean and standard deviation."""
KNOWN_FILES: Mapping[str, tuple[str, Moments]] = {
    # torchvision's vgg16_features-amdegroot-88682ab5.pth: values of Caffe, from 0 to 255
    "vgg16": ("88682ab5", ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3)),
}
"""Backbone -> first digits of the SHA-256 of a published file with a normalization of its own, and that."""


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

    If such a file brings a normalization of its own, it is --published-mean and --published-std of the config. A
    resumed run keeps what it was started with; None is that of a run of an older release.

    Args:
        config: has the fields of NormalizationOptions, backbone, pretrained_backbone and resume, perhaps weights.
        channels: of the images.

    Raises:
        UserError: a file is missing or damaged, the option is given for images that are not in color, or
            --published-mean and --published-std are not three numbers each.
    """
    if config.resume:
        return config
    _check_moments(config)
    if config.published_normalization is False:
        return config
    fits = channels == len(find_backbone(config.backbone).published_mean)
    if config.published_normalization and not fits:
        raise UserError(
            f"--published-normalization is for images with three color channels, but these have {channels}: leave "
            f"it out, or leave out --grayscale."
        )
    weights = getattr(config, "weights", "")
    files = [Path(weights).expanduser()] if weights else []
    if config.pretrained_backbone:
        files.append(zoo.find_weights(config.pretrained_backbone))
    published = [path for path in files if is_published(path)] if fits and not is_custom(config.backbone) else []
    if config.published_normalization is None:
        config = replace(config, published_normalization=bool(published))
    if config.published_mean or not published or (own := _moments_of(published[0], config.backbone)) is None:
        return config
    return replace(config, published_mean=own[0], published_std=own[1])


def _check_moments(config: Any) -> None:
    """Check --published-mean and --published-std.

    Raises:
        UserError: they are not three numbers each, or a standard deviation is not above 0.
    """
    mean, std = config.published_mean, config.published_std
    if (mean or std) and not (len(mean) == len(std) == 3 and min(std) > 0):
        raise UserError(
            f"--published-mean and --published-std take three numbers each, the latter above 0, as in --published-mean "
            f"0.5 0.5 0.5 --published-std 0.5 0.5 0.5; got {mean} and {std}."
        )
    if mean and config.published_normalization is False:
        raise UserError("--published-mean contradicts --no-published-normalization: leave out one of them.")


def _moments_of(path: Path, backbone: BackboneName) -> Moments | None:
    """Return the normalization that a published file brings; None if it is that of its backbone.

    Raises:
        UserError: the JSON file beside it is damaged.
    """
    for name, keys in CONFIG_FILES.items():
        file = path.with_name(name)
        if file.is_file() and (found := _read_moments(file, keys)):
            return found
    if not isinstance(backbone, str) or backbone not in KNOWN_FILES:
        return None
    prefix, moments = KNOWN_FILES[backbone]
    with path.open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    return moments if digest.startswith(prefix) else None


def _read_moments(file: Path, keys: tuple[str, str, str]) -> Moments | None:
    """Read a normalization from a JSON file; None if it has none.

    Raises:
        UserError: the file is damaged, or its normalization is not three numbers each.
    """
    inside, mean_key, std_key = keys
    try:
        content = json.loads(file.read_text("utf-8"))
        content = content[inside] if inside and inside in content else content
        if not isinstance(content, dict):
            raise ValueError("it has no mapping")
        if mean_key not in content or std_key not in content:
            return None
        mean, std = (tuple(float(value) for value in content[key]) for key in (mean_key, std_key))
        within = all(abs(m) < MAX_MOMENT and 0 < s < MAX_MOMENT for m, s in zip(mean, std, strict=False))
        if not (len(mean) == len(std) == 3 and within):
            raise ValueError(f"{mean_key} and {std_key} are not three numbers each")
    except (AttributeError, OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} beside the weights has no readable normalization ({error_summary(error)}): correct it, or give "
            f"--published-mean and --published-std."
        ) from None
    return mean, std


def published_moments(backbone: BackboneName) -> Moments:
    """Return the mean and standard deviation of each channel that most published weights of a backbone expect."""
    found = find_backbone(backbone)
    return found.published_mean, found.published_std


def expected_moments(config: Any, backbone: BackboneName | None = None) -> Moments:
    """Return the mean and standard deviation of each channel that the published weights of a config expect.

    Args:
        config: has the fields of NormalizationOptions and backbone.
        backbone: None: that of the config.
    """
    mean, std = published_moments(config.backbone if backbone is None else backbone)
    return config.published_mean or mean, config.published_std or std


def format_normalization(config: Any, backbone: BackboneName | None = None) -> str:
    """Return the line that says how inputs are normalized for published weights."""
    moments = expected_moments(config, backbone)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in moments)
    name = find_backbone(config.backbone if backbone is None else backbone).name
    weights = f"these weights of {name}" if config.published_mean else f"published weights of {name}"
    return (
        f"inputs are normalized by mean {mean} and standard deviation {std}, as {weights} expect "
        f"(--no-published-normalization: not)"
    )
