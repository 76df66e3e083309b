"""Config fields and presets of object detection.

The same object is the command line, runs/<name>/config.json and TensorBoard's hparams. An update is one gradient step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from zerokara.core.choices import Stem
from zerokara.core.config import Range, UserError
from zerokara.core.run_config import configure, refuse_whitening
from zerokara.core.run_inputs import check_origin, resumed_extra
from zerokara.core.run_options import BackgroundOptions, BatchNormOptions, NormalizationOptions
from zerokara.core.zoo import registry as zoo
from zerokara.vision.detection import names

if TYPE_CHECKING:
    from zerokara.core.augment import Augment
    from zerokara.core.models.classifier import ClassifierMetadata
    from zerokara.vision.detection.selective_search import SearchSettings

KIND = "detect"  # of the runs of vision/detect.py
NORMALIZATION = "normalization"  # key of mean and standard deviation of the inputs in `extra` of config.json

Method = Literal["fast-rcnn", "rcnn"]
Count = Annotated[int, Range(1)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Config(BackgroundOptions, NormalizationOptions, BatchNormOptions):
    """Settings of a detection run."""

    RENAMED: ClassVar[Mapping[str, str]] = names.RENAMED
    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = names.FOREIGN_NAMES
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = names.GROUPS
    COMMON: ClassVar[tuple[str, ...]] = names.COMMON
    VALUES_BEFORE: ClassVar[Mapping[str, Any]] = {"named_splits": False}
    CHANGEABLE: ClassVar = frozenset({"proposal_cache"})
    PRESET_SUMMARIES: ClassVar[Mapping[str, str]] = names.PRESET_SUMMARIES

    preset: str = "fast"
    """Named set of defaults for the other options."""
    data: str = ""
    """Data set: folder, zip or name of images with boxes in PASCAL VOC XML, COCO JSON or YOLO text, such as bccd."""
    data_dir: str = ""
    """Folder with the named data sets; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_side: Annotated[int, Range(64, 4096)] = 400
    """Longer side to which images are scaled, in pixels."""
    named_splits: bool = True
    """Use the splits that folders or files are named after (train, valid, test); if none is, split by --split-seed."""
    split_seed: Annotated[int, Range(0, 10**6)] = 0
    """Seed of the split into training, validation (a tenth) and test images (a fifth). Runs that are compared need the
    same value."""
    test: bool = True
    """Evaluate on the test set once, after training. Use --no-test while you tune settings."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of all random numbers except those of the split."""
    updates: Count = 3000
    """Number of gradient steps."""

    # --- proposals -------------------------------------------------------------------------------------------------
    proposals: Annotated[int, Range(1, 10_000)] = 2000
    """Maximum number of proposals per image."""
    search_color_spaces: tuple[Literal["rgb", "hsv", "lab"], ...] = ("hsv", "lab")
    """Color spaces in which selective search segments an image."""
    search_scales: Annotated[tuple[float, ...], Range(10, 10_000)] = (50.0, 100.0)
    """Scales (k) of the graph-based segmentations; a larger scale gives larger segments."""
    proposal_cache: str = ""
    """Folder in which proposals are cached; empty: ~/.cache/zerokara/proposals."""

    # --- network ---------------------------------------------------------------------------------------------------
    method: Method = "fast-rcnn"
    """fast-rcnn runs the backbone once per image; rcnn once per proposal, followed by linear SVMs."""
    backbone: str = ""
    """Backbone, by its name in core.backbones; empty: that of --pretrained-backbone, else a narrow resnet18."""
    width_multiplier: Annotated[float | None, Range(0.1, 16)] = None
    """Factor on the number of channels of the backbone; None: that of --pretrained-backbone, else 1."""
    stem: Stem | None = None
    """First layers of the backbone, if it has this option; None: those of --pretrained-backbone, else paper."""
    pretrained_backbone: str = ""
    """Run folder, name in the zoo, weights file (ours or torchvision's) or lite0 (ImageNet weights of --backbone
    efficientnet_lite0; needs the extra scores) from which the backbone is initialized; empty: random initialization."""
    freeze_batch_norm: bool = False
    """Keep the BatchNorm statistics of --pretrained-backbone during training."""
    stride: Annotated[int, Range(1, 64)] = 8
    """Maximum stride of the feature map, in pixels. The deepest feature map with at most this stride is used."""
    bins: Annotated[int, Range(1, 32)] = 6
    """Height and width of the output of RoI pooling, in cells."""
    hidden_units: Count = 256
    """Units of each of the two hidden layers after RoI pooling."""
    dropout: Fraction = 0.5
    """Dropout probability of the hidden layers."""
    crop_side: Annotated[int, Range(16, 512)] = 64
    """rcnn: side of the warped crops, in pixels. One fourteenth of it on each side is context around the proposal."""

    # --- training --------------------------------------------------------------------------------------------------
    images_per_update: Count = 2
    """fast-rcnn: images per update."""
    regions_per_update: Count = 128
    """Regions per update, over all of its images."""
    foreground_fraction: Annotated[float, Range(0, 1, low_open=True)] = 0.25
    """Maximum fraction of foreground regions in an update."""
    foreground_iou: Annotated[float, Range(0, 1, low_open=True)] = 0.5
    """Minimum IoU with a true box at which a proposal is foreground."""
    background_iou: Fraction = 0.0
    """Minimum IoU with a true box at which a proposal is background; those below are not sampled. Fast R-CNN's paper
    has 0.1."""
    box_loss: NotNegative = 1.0
    """fast-rcnn: weight of the smooth L1 loss of the boxes; the cross-entropy of the classes has weight 1."""
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "adamw"
    """SGD with Nesterov momentum, Adam, AdamW, or Muon for weight matrices and AdamW for the other parameters."""
    learning_rate: Positive = 1e-3
    """Peak learning rate, reached after the warmup."""
    momentum: Fraction = 0.9
    """Momentum of SGD and Muon."""
    weight_decay: NotNegative = 0.02
    """Weight decay; not applied to biases and normalization layers."""
    warmup_updates: Annotated[int, Range(0)] = 100
    """Updates of linear learning rate warmup, followed by cosine decay to 0; 0: no warmup."""
    max_grad_norm: Positive = 10.0
    """Maximum norm of the gradient; larger gradients are clipped."""
    flip: Literal["none", "horizontal", "both"] = "horizontal"
    """Random flips of training images, with probability 0.5 for each axis; both also flips upside down."""
    brightness: Fraction = 0.1
    """Maximum random change of brightness, on the scale from 0 to 1."""
    contrast: Fraction = 0.2
    """Maximum random change of contrast, as a fraction."""

    # --- SVMs and box regression of R-CNN --------------------------------------------------------------------------
    svm_c: Positive = 1e-3
    """rcnn: parameter C of the SVMs; a larger value regularizes less."""
    svm_background_iou: Fraction = 0.3
    """rcnn: a proposal whose IoU with every object of a class is below this is a negative of the SVM of that class."""
    svm_rounds: Count = 3
    """rcnn: rounds of hard negative mining."""
    svm_proposals: Count = 500
    """rcnn: proposals per training image that are mined for hard negatives."""
    ridge: NotNegative = 1000.0
    """rcnn: L2 regularization of the box regression."""

    # --- evaluation and checkpoints --------------------------------------------------------------------------------
    nms_iou: Fraction = 0.3
    """IoU threshold of non-maximum suppression, applied per class."""
    detections: Count = 100
    """Maximum number of detections per image."""
    validate_every_updates: Count = 500
    """fast-rcnn: updates between evaluations on the validation images. rcnn, which takes seconds per image, is
    evaluated once, after training."""
    log_every_updates: Count = 20
    """Updates between log lines."""
    checkpoint_every_updates: Count = 100
    """Updates between checkpoints."""

    def augment(self) -> Augment:
        """Return the color augmentation of training images."""
        from zerokara.core.augment import Augment

        return Augment(brightness=self.brightness, contrast=self.contrast)

    def search(self) -> SearchSettings:
        """Return the settings of selective search."""
        from zerokara.vision.detection.selective_search import SearchSettings

        return SearchSettings(colours=self.search_color_spaces, scales=tuple(map(float, self.search_scales)))

    def options(self) -> dict[str, Any]:
        """Return the options of the backbone that differ from its defaults."""
        given: dict[str, Any] = {"width": self.width_multiplier, "stem": self.stem}
        default = {"width": 1.0, "stem": "paper"}
        return {name: value for name, value in given.items() if value is not None and value != default[name]}

    def backbone_weights_path(self) -> Path | None:
        """Return the path of the weights of --pretrained-backbone; None without that option."""
        if not self.pretrained_backbone:
            return None
        return zoo.find_weights(self.pretrained_backbone)


DEFAULT_BACKBONE: Mapping[str, Any] = {"backbone": "resnet18", "width_multiplier": 0.45, "stem": "medium"}
"""Backbone if none is named: resnet18 with 0.45 times its channels and a stem for small images."""


def resolve_backbone(config: Config) -> tuple[Config, ClassifierMetadata | None]:
    """Fill in backbone, width and stem; return the config and the metadata of the pretrained classifier, if any.

    A resumed run has them in its config, and what it needs of the classifier in its folder, unless an older release
    started it.

    Raises:
        UserError: the weights are missing or damaged, or do not name their network and --backbone is not given.
    """
    from zerokara.core.backbones.registry import option_names
    from zerokara.core.models.classifier import ClassifierMetadata
    from zerokara.core.models.normalization import decide_normalization

    if NORMALIZATION in resumed_extra(config):
        return config, None
    check_origin(config, config.pretrained_backbone)
    path = config.backbone_weights_path()
    metadata = ClassifierMetadata.read_metadata(path) if path is not None else None
    if not config.backbone and metadata is None and path is not None:
        raise UserError(
            f"{path} does not contain the name of its network: add --backbone, --width-multiplier and --stem."
        )
    if not config.backbone and metadata is not None:
        option_of = {"width_multiplier": "width", "stem": "stem"}  # field -> option of the backbone
        saved = {field: metadata.options[name] for field, name in option_of.items() if name in metadata.options}
        defaults: Mapping[str, Any] = {"backbone": metadata.backbone, **saved}
    else:
        defaults = DEFAULT_BACKBONE if not config.backbone else {}
    # Options given by the user take precedence.
    unset = {name: value for name, value in defaults.items() if getattr(config, name) in ("", None)}
    config = replace(config, **unset)
    if "width" in option_names(config.backbone) and config.width_multiplier is None:
        config = replace(config, width_multiplier=1.0)
    if "stem" in option_names(config.backbone) and config.stem is None:
        config = replace(config, stem="paper")
    return decide_normalization(config, channels=3), metadata


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {},
    "cells": {"flip": "both"},
    # Section 2.3 of the paper.
    "paper": {
        "background_iou": 0.1,
        "optimizer": "sgd",
        "weight_decay": 5e-4,
        "warmup_updates": 0,
        "brightness": 0.0,
        "contrast": 0.0,
        "bins": 7,
        "stride": 16,
    },
}

read_config = partial(
    configure,
    Config,
    PRESETS,
    kind=KIND,
    name_fields=("data", "method", "preset", "seed"),
    adjust=refuse_whitening,
)
"""Reads the config from the command line; with --resume, from the run's folder."""
