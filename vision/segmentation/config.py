"""Config and presets of vision.segment.

The same object is the command line, runs/<name>/config.json and the hparams of TensorBoard. An update is one gradient
step, an epoch is one pass over the training images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from zerokara.core.choices import Stem, Switch
from zerokara.core.config import Range, UserError
from zerokara.core.run_config import configure, refuse_whitening
from zerokara.core.run_options import BackgroundOptions, BatchNormOptions, NormalizationOptions
from zerokara.vision.segmentation import names

if TYPE_CHECKING:
    from zerokara.vision.segmentation.augment import JointAugment

KIND = "segment"  # of the runs of vision/segment.py

STRENGTH = 0.6  # opacity of the class colors over an image
NetworkName = Literal["fcn32s", "fcn16s", "fcn8s", "fcn4s", "fcn2s", "segnet"]
Count = Annotated[int, Range(1)]
OptionalCount = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
Pixels = Annotated[tuple[int, ...], Range(8, 4096)]


@dataclass(frozen=True, kw_only=True)
class Config(BackgroundOptions, NormalizationOptions, BatchNormOptions):
    """Config of a semantic segmentation run."""

    RENAMED: ClassVar = names.RENAMED
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES
    REQUIRES: ClassVar = names.REQUIRES
    GROUPS: ClassVar = names.GROUPS
    COMMON: ClassVar = names.COMMON
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES

    preset: str = "fast"
    """Named set of defaults for the other options."""
    data: str = "camvid"
    """Data set: a path, or a name in --data-dir. A folder or zip file of images with masks, in the layout of CamVid, of
    PASCAL VOC, or any pair of folders."""
    masks: str = ""
    """Folder or zip file of the masks; empty: they are in --data."""
    data_dir: str = ""
    """Folder of named data sets; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty: from the data set."""
    unlabeled: Annotated[int | None, Range(0, 255)] = None
    """Value of unlabeled pixels in the mask files; None: 11 for the classes of CamVid, else 255."""
    mask_values: Annotated[tuple[int, ...], Range(0, 255)] = ()
    """Values of the classes in the mask files, in their order, such as 0 255; empty: 0, 1, 2, ..."""
    image_size: Pixels = ()
    """Resize to this height and width in pixels. One number is the side of a square; none: the size of the files."""
    grayscale: bool = False
    """Convert images to grayscale."""
    train_images: OptionalCount = 0
    """Number of training images to use; 0: all. They are evenly spaced over the training set."""
    test: bool = True
    """Evaluate once on the test set when training ends; use --no-test while choosing settings."""
    epochs: Count = 120
    """Length of the run in epochs."""

    # --- network -----------------------------------------------------------------------------------------------------
    network: NetworkName = "fcn2s"
    """Segmentation network: FCN or SegNet. The number in the name of an FCN is the stride of the finest feature map
    that it uses."""
    backbone: str = "resnet18"
    """Name of the backbone (SegNet: a VGG); python -m core.backbones lists them."""
    width_multiplier: Annotated[float | None, Range(0.1, 16)] = None
    """Factor on the number of channels; None: 0.45 for resnet18, else 1. Only for backbones that have this option."""
    stem: Stem = "medium"
    """First layers of the backbone. paper is for images of 224 pixels, medium for 64 to 128, small for 32 to 64. A
    stem for smaller images has finer feature maps. Only for backbones that have this option."""
    hidden_units: Annotated[int | None, Range(0, 65536)] = None
    """Units of FCN's hidden layers fc6 and fc7; None: as in the paper on VGG and AlexNet, no hidden layers on other
    backbones; 0: no hidden layers."""
    dropout: Fraction = 0.5
    """Dropout probability of FCN's hidden layers."""
    decoder_channels: OptionalCount = 64
    """Channels of FCN's decoder. Each sum of feature maps is followed by a 3x3 convolution. 0: scores are summed, as in
    the paper."""
    pretrained_backbone: str = ""
    """Source of the backbone's weights. A run folder, a weights file, a zoo name or lite0 (ImageNet weights of
    --backbone efficientnet_lite0; needs the extra scores); empty: random initialization."""
    weights: str = ""
    """Weights file of torchvision. The backbone and FCN's fc6 and fc7 are loaded from this file (.pth or .safetensors),
    and images are normalized as for ImageNet. Empty: random initialization."""

    # --- training ----------------------------------------------------------------------------------------------------
    batch_size: Count = 8
    """Images in an update."""
    accumulation_steps: Count = 1
    """Gradient accumulation: parts of each batch. More parts need less memory."""
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "adamw"
    """Optimizer. sgd has Nesterov momentum; muon is Muon for weight matrices and AdamW for the rest."""
    learning_rate: Positive = 2e-3
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """Momentum of SGD and Muon."""
    weight_decay: NotNegative = 0.01
    """Weight decay; not applied to biases and normalization layers."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate schedule after the warm-up. constant, or cosine: decay to 0."""
    warmup_epochs: NotNegative = 3.0
    """Epochs of linear learning rate warm-up."""
    balance: Fraction = 0.5
    """Exponent of the class weights in the loss. They are median frequency weights; 0: equal, 1: as in SegNet."""
    max_grad_norm: Annotated[float | None, Range(0, low_open=True)] = 5.0
    """Clip the norm of the gradient to this value; None: no clipping."""
    ema_half_life_updates: NotNegative = 0.0
    """Half-life of averaged weights, in updates. If it is set, an exponential moving average of the weights is
    evaluated and saved. 0: no averaging."""
    select: Literal["last", "best"] = "best"
    """Weights to evaluate and save at the end. last, or best: highest validation mean IoU."""

    # --- augmentation of images and masks ----------------------------------------------------------------------------
    scale_low: Annotated[float, Range(0.1, 1)] = 0.75
    """Minimum factor of random scaling."""
    scale_high: Annotated[float, Range(1, 10)] = 2.0
    """Maximum factor of random scaling."""
    crop_size: Pixels = ()
    """Height and width of random crops in pixels. One number is the side of a square; none: the image size. Crops are
    taken from the scaled image."""
    rotation_degrees: NotNegative = 0.0
    """Maximum random rotation, in degrees. Rotations are in either direction."""
    flip: bool = True
    """Horizontal flip of half of the images."""
    brightness: Fraction = 0.1
    """Maximum random change of brightness. 1 is the full range of a pixel."""
    contrast: Fraction = 0.2
    """Maximum random change of contrast, as a fraction."""
    color_jitter: Fraction = 0.2
    """Maximum random change of color, as a fraction. It applies to the saturation and to each color channel."""

    # --- evaluation, logging -----------------------------------------------------------------------------------------
    tta_views: Literal[1, 2] = 1
    """Test-time augmentation: views per image. Logits are averaged over them in every evaluation; 2: the image and its
    horizontal flip."""
    eval_batch_size: Count = 8
    """Batch size in evaluation."""
    validate_every_epochs: Count = 2
    """Epochs between validations. The last epoch always ends with a validation."""
    log_every_updates: Count = 20
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 200
    """Updates between checkpoints. Every validation is followed by a checkpoint as well."""

    # --- hardware ----------------------------------------------------------------------------------------------------
    compile: Switch = "auto"
    """Compile the update with torch.compile; auto: if a short measurement shows that it is faster."""

    def augment(self) -> JointAugment:
        """Return the augmentation of the training images and masks.

        Raises:
            UserError: --crop-size has more than two numbers.
        """
        from zerokara.vision.segmentation.augment import JointAugment

        return JointAugment(
            scale=(self.scale_low, self.scale_high),
            rotation_degrees=self.rotation_degrees,
            crop_size=height_width(self.crop_size, "--crop-size"),
            flip=self.flip,
            brightness=self.brightness,
            contrast=self.contrast,
            color_jitter=self.color_jitter,
        )


def width_of(config: Config) -> float:
    """Return the factor on the number of channels. The narrow resnet18 is that of `photographs` in the zoo."""
    if config.width_multiplier is not None:
        return config.width_multiplier
    return 0.45 if config.backbone == "resnet18" else 1.0


def height_width(pixels: tuple[int, ...], flag: str) -> tuple[int, int] | None:
    """Return (H, W) for the values of a flag: none, one number for a square, or two numbers.

    Raises:
        UserError: there are more than two numbers.
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
    "color_jitter": 0.0,
}
SEGNET: Mapping[str, Any] = {"network": "segnet", "backbone": "vgg16_bn"}
# Shelhamer et al. 2015, section 4.3: batches of 20, constant learning rate, no class weights (section 4.4), no
# augmentation. The paper starts from VGG16 trained on ImageNet (--weights, a file of torchvision) and uses images of
# about 500 pixels.
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
    # FCN on a narrow ResNet, for two CPU cores and images of 240x180 pixels, with a decoder of 64 channels.
    "fast": {},
    # SegNet on the VGG of photographs-vgg in the zoo, with a lower learning rate; docs/LOG.md: results of higher ones.
    "segnet-slim": {"network": "segnet", "backbone": "vgg13_bn", "width_multiplier": 0.45, "learning_rate": 5e-4},
    "fcn32s": {"network": "fcn32s", **FCN},
    "fcn16s": {"network": "fcn16s", **FCN},
    "fcn8s": {"network": "fcn8s", **FCN},
    # Badrinarayanan et al. 2017, section 4: batches of 12, SGD with a constant learning rate of 0.1, median frequency
    # weights. The paper starts from VGG16 trained on ImageNet (--weights, torchvision's VGG16 with BatchNorm) and
    # resizes CamVid to --image-size 360 480.
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


def _adjust(config: Config, given: Collection[str]) -> Config:
    """Fill in the width, so that it is saved with the run, and refuse a backbone that would not be whitened."""
    return refuse_whitening(replace(config, width_multiplier=width_of(config)), given)


read_config = partial(
    configure,
    Config,
    PRESETS,
    kind=KIND,
    name_fields=("data", "network", "preset", "seed"),
    adjust=_adjust,
)
"""Reads the config from the command line; with --resume, from the run's folder."""
