"""The fields of a segmenter's run and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. Updates are gradient steps, an epoch
is one pass over the training images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.backbones.base import Stem
from zerokara.core.compute import Precision, Switch
from zerokara.core.config import Range, UserError
from zerokara.vision.segmentation.augment import JointAugment
from zerokara.vision.segmentation.networks import NetworkName

Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
Pixels = Annotated[tuple[int, ...], Range(8, 4096)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Semantic segmentation: a class for every pixel."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "grey": "grayscale",
        "width": "width_multiplier",
        "init_backbone": "pretrained_backbone",
        "accumulate": "accumulation_steps",
    }
    """Renamed fields, old name to new name. Old names are still accepted in saved configs and on the command line."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""
    data: str = "camvid"
    """Images with masks: a folder or zip by path, or by its name in --data-dir; CamVid's form, PASCAL VOC's, or any
    pair of folders."""
    masks: str = ""
    """Folder or zip of the masks, where they do not lie with the images."""
    data_dir: str = ""
    """Where named data lie; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty: what the data say."""
    unlabelled: Annotated[int | None, Range(0, 255)] = None
    """Number in the masks of pixels that nobody labelled; None: 11 for CamVid's classes, else 255."""
    image_size: Pixels = ()
    """Height and width in pixels to which images and masks are brought; none: as they are."""
    grayscale: bool = False
    """Grey images."""
    train_images: OptionalCount = 0
    """Train on so many images, spread over all of them; 0: on all."""
    test: bool = True
    """Read the test set, once, when training is over; --no-test while one is still choosing."""
    name: str = ""
    """Folder under runs/; empty: made of data, network, preset and seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything that is random."""
    epochs: Count = 120
    """Length of the run."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    # --- the network -----------------------------------------------------------------------------------------------
    network: NetworkName = "fcn2s"
    """FCN, by the stride of the finest map that its scores come from, or SegNet."""
    backbone: str = "resnet18"
    """The eye, by its name in core.backbones; SegNet takes VGG. python -m core.backbones lists them."""
    width_multiplier: Annotated[float, Range(0.1, 16)] = 0.45
    """Factor on the backbone's channels, where it has that option."""
    stem: Stem = "medium"
    """The backbone's first layers, where it has that option: paper is made for 224 pixels, medium for 64 to 128, small
    for 32 to 64; the smaller, the finer the maps."""
    hidden_units: Annotated[int | None, Range(0, 65536)] = None
    """Units of FCN's hidden layers fc6 and fc7; None: the paper's on VGG and AlexNet, none on others; 0: none."""
    dropout: Fraction = 0.5
    """Probability with which these drop a unit."""
    decoder_channels: OptionalCount = 64
    """Channels in which FCN's maps are summed, with a 3x3 convolution behind each sum; 0: scores are summed, as in the
    paper."""
    pretrained_backbone: str = ""
    """Start the eye from a run's folder, a file of weights, or a name of the zoo."""
    weights: str = ""
    """Start from weights published by torchvision (.pth or .safetensors), and feed images as they expect it."""

    # --- learning --------------------------------------------------------------------------------------------------
    batch_size: Count = 8
    """Images in an update."""
    accumulation_steps: Count = 1
    """Parts in which the batch goes through the network, for less memory; gradients are summed."""
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "adamw"
    """Nesterov's SGD, Adam, AdamW, or Muon for the matrices and AdamW for the rest."""
    learning_rate: Positive = 2e-3
    """Step size of the optimiser at its peak."""
    momentum: Fraction = 0.9
    """Momentum of SGD and Muon."""
    weight_decay: NotNegative = 0.01
    """Decay of weights; biases and normalisation are left alone."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup_epochs: NotNegative = 3.0
    """Epochs over which the learning rate rises to its peak, linearly."""
    balance: Fraction = 0.5
    """How much rare classes are preferred: the power of their median-frequency weight; 0: not at all, 1: SegNet's."""
    max_grad_norm: Annotated[float | None, Range(0, low_open=True)] = 5.0
    """Norm to which gradients are clipped; None: not clipped."""
    ema_half_life_updates: NotNegative = 0.0
    """Half-life of the averaged weights, which are then what is evaluated and kept; 0: none."""
    select: Literal["last", "best"] = "best"
    """The weights that count in the end: the last, or those with the largest validation mean IoU."""

    # --- augmentation, of image and mask together ------------------------------------------------------------------
    scale_low: Annotated[float, Range(0.1, 1)] = 0.75
    """Smallest factor by which training images are scaled."""
    scale_high: Annotated[float, Range(1, 10)] = 2.0
    """Largest factor."""
    crop_size: Pixels = ()
    """Height and width in pixels of the window that is cut out of a scaled image; none: the image's own."""
    rotation_degrees: NotNegative = 0.0
    """Rotation up to so many degrees either way."""
    flip: bool = True
    """Mirror half of the images, left to right."""
    brightness: Fraction = 0.1
    """Brightness more or less by up to this."""
    contrast: Fraction = 0.2
    """Contrast more or less by up to this fraction."""
    colour: Fraction = 0.2
    """Saturation and every channel more or less by up to this fraction."""

    # --- evaluation and keeping ------------------------------------------------------------------------------------
    tta_views: Literal[1, 2] = 1
    """Views of each image whose logits are averaged in evaluation: 2 mirrors."""
    eval_batch_size: Count = 8
    """Images that are evaluated together."""
    validate_every_epochs: Count = 2
    """Epochs between validations; the last epoch always has one."""
    log_every_updates: Count = 20
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 200
    """Updates between checkpoints; each validation is followed by one as well."""

    # --- the machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the network; auto: what a short measurement finds fastest."""
    compile: Switch = "auto"
    """Compile the update; auto: where a short measurement finds that it pays."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""

    def augment(self) -> JointAugment:
        """What is done to training images and masks."""
        return JointAugment(
            scale=(self.scale_low, self.scale_high),
            rotation_degrees=self.rotation_degrees,
            crop_size=sides(self.crop_size, "--crop-size"),
            flip=self.flip,
            brightness=self.brightness,
            contrast=self.contrast,
            colour=self.colour,
        )


def sides(pixels: tuple[int, ...], flag: str) -> tuple[int, int] | None:
    """(H, W) of what a flag was given: nothing, one number for a square, or two.

    Raises:
        UserError: more than two numbers.
    """
    if len(pixels) > 2:
        raise UserError(
            f"{flag} cannot be {' '.join(map(str, pixels))}: it takes height and width, as in {flag} 180 240."
        )
    return (pixels[0], pixels[-1]) if pixels else None


NO_AUGMENTATION: Mapping[str, Any] = {
    "scale_low": 1.0,
    "scale_high": 1.0,
    "flip": False,
    "brightness": 0.0,
    "contrast": 0.0,
    "colour": 0.0,
}
SEGNET: Mapping[str, Any] = {"network": "segnet", "backbone": "vgg16_bn"}
# Shelhamer et al. 2015, section 4.3: batches of 20, a fixed rate, no balancing (section 4.4) and no augmentation. Start
# it from torchvision's VGG16 by --weights; its pictures have some 500 pixels.
FCN: Mapping[str, Any] = {
    "backbone": "vgg16",
    "width_multiplier": 1.0,
    "decoder_channels": 0,
    "batch_size": 20,
    "optimizer": "sgd",
    "learning_rate": 1e-4,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "balance": 0.0,
    "max_grad_norm": None,
    **NO_AUGMENTATION,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # FCN on a slim ResNet for two CPU cores and pictures of 240x180, its maps summed in 64 channels.
    "fast": {},
    # SegNet on the VGG of photographs-vgg in the zoo, with smaller steps; docs/LOG.md has what larger ones gave.
    "segnet-slim": {"network": "segnet", "backbone": "vgg13_bn", "width_multiplier": 0.45, "learning_rate": 5e-4},
    "fcn32s": {"network": "fcn32s", **FCN},
    "fcn16s": {"network": "fcn16s", **FCN},
    "fcn8s": {"network": "fcn8s", **FCN},
    # Badrinarayanan et al. 2017, section 4: batches of 12, SGD at a fixed 0.1, weights by median frequency. Start it
    # from torchvision's VGG16 with BatchNorm by --weights; CamVid at --image-size 360 480.
    "segnet": {
        **SEGNET,
        "width_multiplier": 1.0,
        "batch_size": 12,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "balance": 1.0,
        "max_grad_norm": None,
        **NO_AUGMENTATION,
    },
}
