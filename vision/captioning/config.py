"""Config and presets of vision.caption, the split of the data, and the source of the backbone's weights.

The same config object is the command line, runs/<name>/config.json and the hparams of TensorBoard. An update is one
gradient step, an epoch is one pass over the training images.

Shapes: N images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from zerokara.core.backbones.base import Backbone, Stem
from zerokara.core.backbones.registry import option_names
from zerokara.core.config import Range, UserError
from zerokara.core.data.captions import CaptionSet, load_captions
from zerokara.core.data.moments import channel_moments
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.normalization import NormalizationOptions, published_moments
from zerokara.core.models.weights import LoadReport, load_into, load_pretrained_backbone, read_tensors
from zerokara.core.progress import loading
from zerokara.core.run_options import RunOptions
from zerokara.core.zoo import registry as zoo
from zerokara.vision.captioning import names

Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Config(NormalizationOptions, RunOptions):
    """Config of an image captioning run."""

    RENAMED: ClassVar = names.RENAMED
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES
    REQUIRES: ClassVar = names.REQUIRES
    GROUPS: ClassVar = names.GROUPS
    COMMON: ClassVar = names.COMMON
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES

    preset: str = "fast"
    """Named set of defaults for the other options."""
    data: str = "flickr8k-1000"
    """Images with captions. Path of a folder or zip file, or its name in --data-dir. Formats: captions.txt, *.token.txt
    (Flickr8k) or captions_*.json (COCO)."""
    data_dir: str = ""
    """Folder of named data sets; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_size: Annotated[int, Range(16, 1024)] = 128
    """Height and width of images, in pixels. Larger images are resized and center-cropped."""
    split_seed: Annotated[int, Range(0, 10**6)] = 0
    """Random seed of the data split. It determines the training, validation and test images. vision.caption_splits
    summarizes runs with different splits."""
    validation_images: Count = 100
    """Number of validation images. The best epoch is selected on them."""
    test_images: Count = 100
    """Number of test images. They are evaluated once, at the end."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Random seed of everything except the split."""
    epochs: Count = 30
    """Length of the run in epochs."""

    # --- backbone --------------------------------------------------------------------------------------------------
    backbone: str = "resnet18"
    """Name of the backbone; python -m core.backbones lists them. Ignored if --pretrained-backbone is a classifier of
    zerokara, whose backbone is used."""
    width_multiplier: Annotated[float, Range(0.01, 16)] = 1.0
    """Factor on the number of channels; only for backbones that have this option."""
    stem: Stem = "paper"
    """First layers of the backbone; only for backbones that have this option. paper: for images of 224 pixels; medium:
    64 to 128; small: 32 to 64."""
    pretrained_backbone: str = ""
    """Weights of the backbone: run, file or zoo name; empty: random initialization."""
    weights: str = ""
    """Weights of the backbone: file of torchvision. For example resnet18-f37072fd.pth; empty: random initialization."""
    finetune_backbone: bool | None = None
    """Train the backbone as well (None: if it starts from random weights)."""

    # --- decoder ---------------------------------------------------------------------------------------------------
    min_word_count: Count = 3
    """Minimum word frequency for the vocabulary. Rarer words of the training captions are unknown words."""
    max_length: Annotated[int, Range(1, 100)] = 20
    """Maximum number of words in a caption."""
    embedding_dim: Count = 512
    """Dimension of the word and image embeddings."""
    hidden_units: Count = 512
    """Hidden units of the LSTM."""
    dropout: Annotated[float, Range(0, 0.95)] = 0.3
    """Dropout probability before and after the LSTM."""
    beam_size: Annotated[int, Range(1, 100)] = 5
    """Partial captions kept after every word; 1: greedy search."""
    length_penalty: Annotated[float, Range(0, 2)] = 0.7
    """Exponent of the length normalization. The log probability of a caption is divided by its length to this power; 0:
    no normalization, which favors short captions."""

    # --- training --------------------------------------------------------------------------------------------------
    batch_size: Count = 32
    """Images in an update, each with all of its captions."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of the decoder."""
    backbone_learning_rate: Positive = 3e-4
    """Peak learning rate of the backbone. Used if the backbone is trained."""
    weight_decay: Annotated[float, Range(0)] = 0.01
    """Weight decay; not applied to biases and normalization layers."""
    max_grad_norm: Positive = 5.0
    """Maximum norm for gradient clipping."""
    select: Literal["bleu", "loss", "last"] = "bleu"
    """Weights to evaluate and save. bleu: highest validation BLEU-4; loss: lowest validation loss; last: last epoch."""
    log_every_updates: Count = 20
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 500
    """Updates between checkpoints. Every epoch ends with a checkpoint as well."""

    @property
    def trains_backbone(self) -> bool:
        """True if the backbone is trained: by --finetune-backbone, or by default if it has no pretrained weights."""
        if self.finetune_backbone is None:
            return not (self.weights or self.pretrained_backbone)
        return self.finetune_backbone


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {},
    # Vinyals et al. 2015, sections 3 and 4: words that occur five times, sum of log probabilities, a beam of 20.
    "paper": {"min_word_count": 5, "beam_size": 20, "length_penalty": 0.0, "image_size": 224},
}


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
        with loading(config.quiet) as progress:
            dataset = load_captions(config.data, image_size=config.image_size, data_dir=folder, progress=progress)
        return cls.split(dataset, config)

    @classmethod
    def split(cls, dataset: CaptionSet, config: Config) -> Data:
        """Split a data set by image, at random. The split depends on `config.split_seed` and not on the other seed.

        Raises:
            UserError: fewer training images than one batch would be left.
        """
        held_out = config.validation_images + config.test_images
        if len(dataset) - held_out < config.batch_size:
            raise UserError(
                f"{dataset.source} has {len(dataset):,} images: with {config.validation_images} validation images and "
                f"{config.test_images} test images, too few training images are left for a batch of "
                f"{config.batch_size}; lower --validation-images, --test-images or --batch-size."
            )
        order = np.random.default_rng(config.split_seed).permutation(len(dataset)).tolist()
        test, validation = order[: config.test_images], order[config.test_images : held_out]
        return cls(dataset.take(sorted(order[held_out:])), dataset.take(sorted(validation)), dataset.take(test))


@dataclass(frozen=True)
class BackboneSource:
    """Architecture of the backbone, normalization of its inputs, and the function that loads its weights."""

    backbone: str
    options: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    load_weights: Callable[[Backbone], LoadReport] | None  # None: random initialization

    @classmethod
    def from_config(cls, config: Config, train: CaptionSet) -> BackboneSource:
        """Return the backbone that a config describes.

        Raises:
            UserError: both --weights and --pretrained-backbone are given; the pretrained backbone has grayscale inputs;
                a weights file cannot be read (`core.models.weights`).
        """
        if config.weights and config.pretrained_backbone:
            raise UserError(
                "--weights and --pretrained-backbone both give the weights of the backbone: leave one of them out."
            )
        supported = option_names(config.backbone)
        requested = {"width": config.width_multiplier, "stem": config.stem}
        defaults = {"width": 1.0, "stem": "paper"}
        options = {name: value for name, value in requested.items() if name in supported or value != defaults[name]}
        if config.pretrained_backbone:
            metadata = _classifier_metadata(config.pretrained_backbone)
            if metadata is not None:
                path = zoo.find_file(config.pretrained_backbone)
                if metadata.channels != 3:
                    raise UserError(
                        f"The inputs of {config.pretrained_backbone} are grayscale images: give a network that was "
                        f"trained on color images."
                    )
                mean, std = metadata.mean, metadata.std
                if config.published_normalization:
                    mean, std = published_moments(metadata.backbone)
                return cls(
                    metadata.backbone,
                    metadata.options,
                    mean,
                    std,
                    lambda backbone: _load_own_backbone(backbone, path),
                )
        # In runs of older releases it is None, and only --weights had a normalization of their own.
        if config.published_normalization or (config.published_normalization is None and config.weights):
            mean, std = published_moments(config.backbone)
        else:
            mean, std = (tuple(moment_C.tolist()) for moment_C in channel_moments(train.images))
        if source := config.weights or config.pretrained_backbone:
            file = Path(source).expanduser()
            return cls(config.backbone, options, mean, std, lambda backbone: load_pretrained_backbone(backbone, file))
        return cls(config.backbone, options, mean, std, None)


def _classifier_metadata(source: str) -> ClassifierMetadata | None:
    """Metadata of a classifier of zerokara; None if `source` is another kind of weights."""
    if zoo.lacks_metadata(Path(source).expanduser()):
        return None
    metadata, _ = ClassifierMetadata.read(zoo.find_file(source))
    return metadata


def _load_own_backbone(backbone: Backbone, path: Path) -> LoadReport:
    """Load the backbone of a classifier of zerokara. The architecture is that of the file, so all names match."""
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): x for name, x in read_tensors(path).items() if name.startswith(prefix)}
    return load_into(backbone, tensors, path)
