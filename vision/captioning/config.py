"""Config and presets of vision.caption.

The same object is the command line, runs/<name>/config.json and the hparams of TensorBoard. An update is one
gradient step, an epoch is one pass over the training images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.choices import Stem
from zerokara.core.config import Range
from zerokara.core.run_config import configure, refuse_whitening
from zerokara.core.run_options import BackgroundOptions, BatchNormOptions, NormalizationOptions
from zerokara.vision.captioning import names

KIND = "caption"  # of the runs of vision/caption.py

Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Config(BackgroundOptions, NormalizationOptions, BatchNormOptions):
    """Config of an image captioning run."""

    RENAMED: ClassVar = names.RENAMED
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES
    REQUIRES: ClassVar = names.REQUIRES
    GROUPS: ClassVar = names.GROUPS
    COMMON: ClassVar = names.COMMON
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES
    VALUES_BEFORE: ClassVar[Mapping[str, Any]] = {"named_splits": False}

    preset: str = "fast"
    """Named set of defaults for the other options."""
    data: str = "flickr8k-1000"
    """Images with captions. Path of a folder or zip file, or its name in --data-dir. Formats: captions.txt, *.token.txt
    (Flickr8k) or captions_*.json (COCO)."""
    data_dir: str = ""
    """Folder of named data sets; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_size: Annotated[int, Range(16, 1024)] = 128
    """Height and width of images, in pixels. Larger images are resized and center-cropped."""
    named_splits: bool = True
    """Use the splits that folders or files are named after, if any. Otherwise images are split by --split-seed."""
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
    """Weights of the backbone: run, file, zoo name or lite0; empty: random initialization. lite0: ImageNet weights of
    --backbone efficientnet_lite0; needs the extra scores."""
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

read_config = partial(
    configure,
    Config,
    PRESETS,
    kind=KIND,
    name_fields=("data", "backbone", "preset", "split_seed", "seed"),
    adjust=refuse_whitening,
)
"""Reads the config from the command line; with --resume, from the run's folder."""
