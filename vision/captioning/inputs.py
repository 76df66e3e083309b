"""Inputs of vision.caption: images with captions, their split, and the backbone with the source of its weights.

Shapes: N images, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.registry import option_names
from zerokara.core.config import UserError, format_count
from zerokara.core.data.captions import CaptionSet, load_captions
from zerokara.core.data.moments import channel_moments
from zerokara.core.data.reading_rules import rules_of
from zerokara.core.data.splits import VALIDATION_IS_TEST, AnySplit, describe_without_split
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.model_file import lists_to_tuples
from zerokara.core.models.normalization import expected_moments
from zerokara.core.models.weights import LoadReport, load_into, load_pretrained_backbone, read_tensors
from zerokara.core.progress import loading
from zerokara.core.run import Run
from zerokara.core.run_inputs import check_origin, resumed_extra
from zerokara.core.zoo import registry as zoo
from zerokara.vision.captioning.config import Config

SPLIT_NAMES: tuple[AnySplit, ...] = ("train", "val", "test")
SAVED = "backbone"  # key of the backbone in `extra` of config.json


@dataclass(frozen=True)
class Data:
    """Training, validation and test images with captions. No image is in two of them."""

    train: CaptionSet
    validation: CaptionSet
    test: CaptionSet

    @classmethod
    def load(cls, config: Config) -> Data:
        """Load and split the data set of a config.

        Raises:
            UserError: the data set is missing, damaged or too small.
        """
        folder = Path(config.data_dir) if config.data_dir else None
        with loading(config.quiet) as progress, rules_of(config):
            dataset = load_captions(
                config.data,
                image_size=config.image_size,
                data_dir=folder,
                background=config.background,
                progress=progress,
            )
        return cls.split(dataset, config)

    @classmethod
    def split(cls, dataset: CaptionSet, config: Config) -> Data:
        """Split a data set by image: by its folders or files, if they are named after splits, else at random.

        The random split depends on `config.split_seed` and not on the other seed.

        Raises:
            UserError: fewer training images than one batch would be left, or named splits lack train or test.
        """
        if config.named_splits and dataset.splits:
            return cls._named(dataset, config)
        held_out = config.validation_images + config.test_images
        if len(dataset) - held_out < config.batch_size:
            raise UserError(
                f"{dataset.source} has {format_count(len(dataset), 'image')}: with {config.validation_images} to "
                f"validate and {config.test_images} to test, too few training images are left for a batch of "
                f"{config.batch_size}; lower --validation-images, --test-images or --batch-size."
            )
        order = np.random.default_rng(config.split_seed).permutation(len(dataset)).tolist()
        test, validation = order[: config.test_images], order[config.test_images : held_out]
        return cls(dataset.take(sorted(order[held_out:])), dataset.take(sorted(validation)), dataset.take(test))

    @classmethod
    def _named(cls, dataset: CaptionSet, config: Config) -> Data:
        """Return the named splits; without a test split, that for validation is the test split.

        Without validation images, some of the training images are held out.
        """
        if unused := [name for name, part in zip(dataset.names, dataset.splits, strict=True) if part is None]:
            remark = describe_without_split(unused)
            dataset = replace(dataset, messages=(*dataset.messages, remark))
        indices = {name: [i for i, part in enumerate(dataset.splits) if part == name] for name in SPLIT_NAMES}
        if not indices["test"]:
            indices["test"], indices["val"] = indices["val"], []
            dataset = replace(dataset, messages=(*dataset.messages, VALIDATION_IS_TEST))
        held_out = 0 if indices["val"] else config.validation_images
        if len(indices["train"]) - held_out < config.batch_size or not indices["test"]:
            found = ", ".join(f"{len(rows):,} {name}" for name, rows in indices.items())
            raise UserError(
                f"{dataset.source} has folders or files named after splits, but too few images in them ({found}) for "
                f"{held_out} validation images and a batch of {config.batch_size}: add images, lower "
                f"--validation-images or --batch-size, or split at random with --no-named-splits."
            )
        if held_out:
            order = np.random.default_rng(config.split_seed).permutation(indices["train"]).tolist()
            indices["val"], indices["train"] = sorted(order[:held_out]), sorted(order[held_out:])
        return cls(*(dataset.take(indices[name]) for name in SPLIT_NAMES))


@dataclass(frozen=True)
class BackboneSource:
    """Architecture of the backbone and normalization of its inputs."""

    backbone: str
    options: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_config(cls, config: Config, train: CaptionSet) -> BackboneSource:
        """Return the backbone that a config describes; of a resumed run, the one that its folder describes.

        A run of an older release has no such description: it is made from the config and the file again.

        Raises:
            UserError: both --weights and --pretrained-backbone are given; the pretrained backbone has grayscale inputs;
                a weights file cannot be read (`core.models.weights`).
        """
        if config.weights and config.pretrained_backbone:
            raise UserError(
                "--weights and --pretrained-backbone both give the weights of the backbone: leave one of them out."
            )
        if saved := resumed_extra(config).get(SAVED):
            return cls(**lists_to_tuples(saved))
        check_origin(config, config.pretrained_backbone)
        supported = option_names(config.backbone)
        requested = {"width": config.width_multiplier, "stem": config.stem}
        defaults = {"width": 1.0, "stem": "paper"}
        options = {name: value for name, value in requested.items() if name in supported or value != defaults[name]}
        if zoo.is_classifier(config.pretrained_backbone):
            metadata, _ = ClassifierMetadata.read(zoo.find_file(config.pretrained_backbone))
            if metadata.channels != 3:
                raise UserError(
                    f"The inputs of {config.pretrained_backbone} are grayscale images: give a network that was "
                    f"trained on color images."
                )
            mean, std = metadata.mean, metadata.std
            if config.published_normalization:
                mean, std = expected_moments(config, metadata.backbone)
            return cls(metadata.backbone, metadata.options, mean, std)
        # In runs of older releases it is None, and only --weights had a normalization of their own.
        if config.published_normalization or (config.published_normalization is None and config.weights):
            mean, std = expected_moments(config)
        else:
            mean, std = (tuple(moment_C.tolist()) for moment_C in channel_moments(train.images))
        return cls(config.backbone, options, mean, std)

    def save(self, run: Run) -> None:
        """Save the description in config.json, from which a resumed run reads it. All processes must call this."""
        if SAVED not in run.extra:
            run.save_extra(**{SAVED: asdict(self)})


def load_weights(config: Config, backbone: Backbone) -> LoadReport | None:
    """Load the weights that a config names into the backbone; None if it names none.

    Raises:
        UserError: they are missing or damaged, or do not fit.
    """
    if config.weights:
        return load_pretrained_backbone(backbone, Path(config.weights).expanduser())
    if not config.pretrained_backbone:
        return None
    if zoo.is_classifier(config.pretrained_backbone):
        return _load_own_backbone(backbone, zoo.find_file(config.pretrained_backbone))
    return load_pretrained_backbone(backbone, zoo.find_weights(config.pretrained_backbone))


def _load_own_backbone(backbone: Backbone, path: Path) -> LoadReport:
    """Load the backbone of a classifier of zerokara. The architecture is that of the file, so all names match."""
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): x for name, x in read_tensors(path).items() if name.startswith(prefix)}
    return load_into(backbone, tensors, path)
