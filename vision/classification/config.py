"""The fields of a classifier's run and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. Updates are gradient steps, an epoch
is one pass over the training images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.augment import Augment
from zerokara.core.backbones.base import Stem
from zerokara.core.compute import Precision, Switch
from zerokara.core.config import Range

Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Classification of images."""

    RENAMED: ClassVar[Mapping[str, str]] = {"accumulate": "accumulation_steps"}
    """Fields that earlier releases called otherwise: old name to new name."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""
    data: str = "glyphs"
    """Images: glyphs (drawn here), mnist, fashion-mnist, cifar10, cifar100, or a folder or zip of class folders."""
    data_dir: str = ""
    """Where named data lie or are downloaded to; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_size: Annotated[int | None, Range(8, 1024)] = None
    """Height and width to which images are brought, in pixels; None: as they are."""
    grayscale: bool | None = None
    """Grey images; None: as they are."""
    validation_images: OptionalCount = 0
    """Images held out of the training set to choose on; 0: a twelfth of it (5,000 of MNIST's 60,000)."""
    train_images: OptionalCount = 0
    """Train on so many of the remaining images, chosen by the seed; 0: on all."""
    test: bool = True
    """Read the test set, once, when training is over; --no-test while one is still choosing."""
    name: str = ""
    """Folder under runs/; empty: made of data, backbone, preset and seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything that is random."""
    epochs: Count = 15
    """Length of the run."""
    minutes: NotNegative = 0.0
    """Length of the run by the clock: as many epochs as a short measurement at its start finds to fit, which a run that
    goes on keeps; 0: --epochs."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    # --- the network -----------------------------------------------------------------------------------------------
    backbone: str = "deep_cnn"
    """The eye, by its name in core.backbones; python -m core.backbones lists them."""
    width_multiplier: Annotated[float, Range(0.1, 16)] = 1.0
    """Factor on the backbone's channels, where it has that option."""
    head: Literal["paper", "pooled"] = "paper"
    """The classifier's head: its paper's own, or the mean over the last feature map and one layer."""
    stem: Stem = "paper"
    """The backbone's first layers, where it has that option: paper is made for 224 pixels, medium for 64 to 128, small
    for 32 to 64."""
    dropout: Annotated[float | None, Range(0, 1)] = None
    """Probability with which the head drops a unit; None: the paper's."""
    output_dropout: Fraction = 0.0
    """Probability with which an output is dropped in training, as the book's code does."""
    pretrained_backbone: str = ""
    """Start the eye from a run's folder or a file of weights."""
    weights: str = ""
    """Start from weights published by torchvision (.pth or .safetensors)."""

    # --- learning --------------------------------------------------------------------------------------------------
    batch_size: Count = 100
    """Images in an update."""
    accumulation_steps: Count = 1
    """Parts in which the batch goes through the network, for less memory; gradients are summed."""
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "adamw"
    """Nesterov's SGD, Adam, AdamW, or Muon for the matrices and AdamW for the rest."""
    learning_rate: Positive = 5e-3
    """Step size of the optimiser at its peak."""
    momentum: Fraction = 0.9
    """Momentum of SGD and Muon."""
    weight_decay: NotNegative = 0.02
    """Decay of weights; biases and normalisation are left alone."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup_epochs: NotNegative = 2.0
    """Epochs over which the learning rate rises to its peak, linearly."""
    label_smoothing: Fraction = 0.1
    """Probability mass that a label gives to all classes."""
    max_grad_norm: Annotated[float | None, Range(0, low_open=True)] = None
    """Norm to which gradients are clipped; None: not clipped."""
    ema_half_life_updates: NotNegative = 0.0
    """Half-life of the averaged weights, which are then what is evaluated and kept; 0: none."""
    select: Literal["last", "best"] = "last"
    """The weights that count in the end: the last, or those with the least validation error."""
    patience_epochs: OptionalCount = 0
    """End after so many epochs without a better validation error; 0: never."""

    # --- augmentation ----------------------------------------------------------------------------------------------
    rotation_degrees: Annotated[float, Range(0, 180)] = 10.0
    """Rotation up to so many degrees either way."""
    shift: Fraction = 0.08
    """Shift up to this fraction of the side."""
    scale: Annotated[float, Range(0, 0.9)] = 0.1
    """Scaling by up to this fraction more or less."""
    shear_degrees: Annotated[float, Range(0, 80)] = 10.0
    """Shear up to so many degrees."""
    elastic_pixels: NotNegative = 0.0
    """Strength of elastic distortion, in pixels."""
    crop_pixels: OptionalCount = 0
    """Padding on each side of which a window of the old size is cut out at random."""
    flip: bool = False
    """Mirror every other image, left to right."""
    brightness: Fraction = 0.0
    """Brightness more or less by up to this."""
    contrast: Fraction = 0.0
    """Contrast more or less by up to this fraction."""
    cutout: Fraction = 0.0
    """Side of a grey square laid over the image, as a fraction of its side."""
    mixup: NotNegative = 0.0
    """Alpha of mixup; 0: none."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix; 0: none."""

    # --- evaluation and keeping ------------------------------------------------------------------------------------
    tta_views: Literal[1, 2, 5, 10] = 1
    """Views of each image whose probabilities are averaged in the end: 2 mirrors, 5 shifts, 10 does both. Validations
    on the way see one, which saves their time."""
    eval_batch_size: Count = 500
    """Images that are evaluated together."""
    log_every_updates: Count = 50
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 500
    """Updates between checkpoints; each epoch ends with one as well."""

    # --- the machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the network; auto: what a short measurement finds fastest."""
    compile: Switch = "auto"
    """Compile the update; auto: where a short measurement finds that it pays."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""

    def augment(self) -> Augment:
        """What is done to training images."""
        return Augment(
            rotation_degrees=self.rotation_degrees,
            shift=self.shift,
            scale=self.scale,
            shear_degrees=self.shear_degrees,
            elastic_pixels=self.elastic_pixels,
            crop_pixels=self.crop_pixels,
            flip=self.flip,
            brightness=self.brightness,
            contrast=self.contrast,
            cutout=self.cutout,
            mixup=self.mixup,
            cutmix=self.cutmix,
        )


NO_AUGMENTATION: Mapping[str, Any] = {"rotation_degrees": 0.0, "shift": 0.0, "scale": 0.0, "shear_degrees": 0.0}

# Today's training of digits. So small a network does not learn distorted ones by heart: it needs little dropout, and
# gains by averages.
_DIGITS: Mapping[str, Any] = {
    "dropout": 0.2,
    "learning_rate": 3e-3,
    "warmup_epochs": 3.0,
    "ema_half_life_updates": 300.0,
    "tta_views": 5,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The chapter's network within six minutes on two cores; docs/LOG.md has what it gave.
    "fast": {**_DIGITS, "epochs": 24, "elastic_pixels": 0.7},
    # The chapter's own settings: Adam, 20 epochs, batches of 100, nothing else.
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
    # The least error on digits that one network gives here: the chapter's network twice as wide, digits turned and
    # moved far but not bent (An et al. 2020, "An Ensemble of Simple Convolutional Neural Network Models for MNIST Digit
    # Recognition"). docs/LOG.md has what else was tried.
    "best": {
        **_DIGITS,
        **NO_AUGMENTATION,
        "width_multiplier": 2.0,
        "epochs": 20,
        "rotation_degrees": 20.0,
        "shift": 0.2,
    },
    # Residual networks on small photographs, after He et al. 2016, section 4.2, on a shorter schedule.
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
}
