"""Config and presets of vision.binary: the command line, config.json and the hparams of TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.config import NamesOrPath, Range
from zerokara.core.run_config import configure
from zerokara.core.run_options import BatchNormOptions
from zerokara.vision.binarization import names
from zerokara.vision.classification import config as classify_config

KIND = "binary"  # of the runs of vision/binary.py

Count = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class Config(BatchNormOptions):
    """Config of a run that trains a binary network."""

    RENAMED: ClassVar = names.RENAMED
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES
    REQUIRES: ClassVar = names.REQUIRES
    GROUPS: ClassVar = names.GROUPS
    COMMON: ClassVar = names.COMMON
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES

    preset: str = "mlp"
    """Named set of defaults for the other options."""
    data: str = "glyphs"
    """Data set. glyphs (synthetic digits), mnist, fashion-mnist, cifar10, cifar100, or a folder or zip file of class
    folders."""
    data_dir: str = ""
    """Folder of named data sets. Missing ones are downloaded into it. Empty: $ZEROKARA_DATA, else
    ~/.cache/zerokara."""
    image_size: Annotated[int | None, Range(8, 1024)] = None
    """Height and width of images, in pixels; None: the size of the data set."""
    validation_images: Annotated[int, Range(0)] = 0
    """Training images held out for validation; 0: one twelfth of the training set (5,000 of MNIST's 60,000)."""
    train_images: Annotated[int, Range(0)] = 0
    """Training images to use; 0: all that are not held out. They are chosen at random by the seed."""
    test: bool = True
    """Evaluate the test set once, at the end; use --no-test while choosing settings."""
    epochs: Count = 50
    """Length of the run in epochs."""

    network: Literal["mlp", "cnn"] = "mlp"
    """Architecture. mlp: fully connected layers; cnn: the convolutional network of the paper for CIFAR-10."""
    hidden_units: Count = 1_024
    """Units of each hidden layer; in the cnn, of each hidden fully connected layer."""
    num_hidden_layers: Count = 3
    """Number of hidden layers of the mlp."""
    width_multiplier: Annotated[float, Range(0, 16, low_open=True)] = 1.0
    """Factor on the 128 to 512 channels of the cnn."""
    loss: Annotated[str, NamesOrPath(("cross_entropy", "squared_hinge"))] = "cross_entropy"
    """Loss function; the paper uses the squared hinge loss. One of your own: file.py:function (docs/backbones.md)."""
    batch_size: Count = 250
    """Images in an update."""
    learning_rate: Annotated[float, Range(0, low_open=True)] = 5e-3
    """Initial learning rate of Adam; cosine decay to 0."""
    rotation_degrees: Annotated[float, Range(0, 180)] = 5.0
    """Maximum random rotation, in degrees; in either direction."""
    shift: Annotated[float, Range(0, 1)] = 0.04
    """Maximum random translation; a fraction of the image side."""
    scale: Annotated[float, Range(0, 0.9)] = 0.05
    """Maximum random scaling up or down, as a fraction."""
    shear_degrees: Annotated[float, Range(0, 80)] = 5.0
    """Maximum random shear, in degrees."""
    crop_pixels: Annotated[int, Range(0)] = 0
    """Random crop: padding of each side, in pixels. An image of the original size is cut out at random. 0: no crop."""
    flip: bool = False
    """Horizontal flip of half of the images. An image that is flipped in one epoch is not flipped in the next."""

    eval_batch_size: Count = 500
    """Batch size in evaluation."""
    log_every_updates: Count = 50
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 500
    """Updates between checkpoints. Every epoch ends with a checkpoint as well."""

    def for_data(self) -> classify_config.Config:
        """Return the config of vision.classify with the same data, for the functions that read images."""
        shared = ("data", "data_dir", "image_size", "validation_images", "train_images", "seed", "name", "resume")
        return classify_config.Config(**{name: getattr(self, name) for name in shared})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {},
    # The convolutional network of section 2.2 with half the channels, for photographs.
    "cnn": {
        "network": "cnn",
        "width_multiplier": 0.5,
        "batch_size": 100,
        "rotation_degrees": 0.0,
        "shift": 0.0,
        "scale": 0.0,
        "shear_degrees": 0.0,
        "crop_pixels": 4,
        "flip": True,
    },
}

read_config = partial(configure, Config, PRESETS, kind=KIND, name_fields=("data", "network", "seed"))
"""Reads the config from the command line; with --resume, from the run's folder."""
