"""The fields of a detector's run and its presets.

One object is the command line, runs/<name>/config.json and TensorBoard's hparams. An update is one gradient step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.augment import Augment
from zerokara.core.backbones.base import Stem
from zerokara.core.backbones.registry import option_names
from zerokara.core.compute import Precision
from zerokara.core.config import Range, UserError
from zerokara.core.models.model_file import ClassifierMetadata, read_metadata
from zerokara.core.zoo import registry as zoo
from zerokara.vision.detection.detector import Method
from zerokara.vision.detection.selective_search import SearchSettings

Count = Annotated[int, Range(1)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Detection of objects."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "width": "width_multiplier",
        "init_backbone": "pretrained_backbone",
    }
    """Renamed fields, old name to new name. Old names are still accepted in saved configs and on the command line."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""
    data: str = ""
    """Pictures with boxes: a folder or zip of PASCAL VOC's XML, COCO's JSON or YOLO's text, such as bccd."""
    data_dir: str = ""
    """Where named data lie; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_side: Annotated[int, Range(64, 4096)] = 400
    """Longer side to which pictures are scaled, in pixels."""
    split_seed: Annotated[int, Range(0, 10**6)] = 0
    """Decides which fifth is the test set and which tenth validates; the same for all runs that are compared."""
    test: bool = True
    """Read the test set, once, when training is over; --no-test while one is still choosing."""
    name: str = ""
    """Folder under runs/; empty: made of data, method, preset and seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything else that is random."""
    updates: Count = 3000
    """Length of the run."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""

    # --- proposals -------------------------------------------------------------------------------------------------
    proposals: Annotated[int, Range(1, 10_000)] = 2000
    """Proposals of a picture that are looked at."""
    search_colours: tuple[Literal["rgb", "hsv", "lab"], ...] = ("hsv", "lab")
    """Colour spaces in which selective search segments a picture."""
    search_scales: Annotated[tuple[float, ...], Range(10, 10_000)] = (50.0, 100.0)
    """Scales of its segmentations: larger, larger segments."""
    proposal_cache: str = ""
    """Folder in which proposals are kept; empty: ~/.cache/zerokara/proposals."""

    # --- the network -----------------------------------------------------------------------------------------------
    method: Method = "fast-rcnn"
    """fast-rcnn looks at a picture once; rcnn at each proposal, with SVMs on top."""
    backbone: str = ""
    """Name of the backbone (`python -m core.backbones`); empty: that of --pretrained-backbone, else a slim resnet18."""
    width_multiplier: Annotated[float | None, Range(0.1, 16)] = None
    """Factor on the backbone's channels, where it has that option; None: 1, or that of --pretrained-backbone."""
    stem: Stem | None = None
    """The backbone's first layers, where it has that option; None: paper, or that of --pretrained-backbone."""
    pretrained_backbone: str = ""
    """Start the eye from a run's folder, a name of the zoo, or a file of weights, ours or torchvision's."""
    freeze_batch_norm: bool = False
    """Leave the statistics of BatchNorm as they were in --pretrained-backbone."""
    stride: Annotated[int, Range(1, 64)] = 8
    """Pixels for a cell of the feature map at most; the deepest map that keeps to it is used."""
    bins: Annotated[int, Range(1, 32)] = 6
    """Cells, along a side, to which RoI pooling brings a region."""
    units: Count = 256
    """Units of each of the two hidden layers over a region."""
    dropout: Fraction = 0.5
    """Probability with which a hidden unit is dropped."""
    crop_side: Annotated[int, Range(16, 512)] = 64
    """Side of R-CNN's warped crops, in pixels; a fourteenth of it on each side shows what lies around."""

    # --- learning --------------------------------------------------------------------------------------------------
    images_per_update: Count = 2
    """Pictures in an update of Fast R-CNN."""
    regions_per_update: Count = 128
    """Regions in an update, of all its pictures together."""
    foreground: Annotated[float, Range(0, 1, low_open=True)] = 0.25
    """Share of them that shows an object, at most."""
    foreground_iou: Annotated[float, Range(0, 1, low_open=True)] = 0.5
    """Overlap with a true box from which a proposal shows that object."""
    background_iou: Fraction = 0.0
    """Overlap below which a proposal is not even background; the paper has 0.1."""
    box_loss: NotNegative = 1.0
    """Weight of the smooth L1 loss of boxes beside the log loss of classes, in Fast R-CNN."""
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "adamw"
    """Nesterov's SGD, Adam, AdamW, or Muon for the matrices and AdamW for the rest."""
    learning_rate: Positive = 1e-3
    """Step size of the optimiser at its peak."""
    momentum: Fraction = 0.9
    """Momentum of SGD and Muon."""
    weight_decay: NotNegative = 0.02
    """Decay of weights; biases and normalisation are left alone."""
    warmup_updates: Annotated[int, Range(0)] = 100
    """Updates over which the learning rate rises to its peak; then it falls along half a cosine."""
    max_grad_norm: Positive = 10.0
    """Norm to which gradients are clipped."""
    flip: Literal["none", "horizontal", "both"] = "horizontal"
    """Mirror every other picture left to right, or that and upside down, which suits what has no top."""
    brightness: Fraction = 0.1
    """Brightness more or less by up to this."""
    contrast: Fraction = 0.2
    """Contrast more or less by up to this fraction."""

    # --- R-CNN's last stage ----------------------------------------------------------------------------------------
    svm_c: Positive = 1e-3
    """C of the SVMs: larger, less regularised."""
    svm_background_iou: Fraction = 0.3
    """Overlap with every object of a class below which a proposal is a negative of its SVM."""
    svm_rounds: Count = 3
    """Rounds in which hard negatives are added."""
    svm_proposals: Count = 500
    """Proposals of a training picture among which the SVMs find negatives."""
    ridge: NotNegative = 1000.0
    """Regularisation of the regression of boxes."""

    # --- evaluation and keeping ------------------------------------------------------------------------------------
    nms_iou: Fraction = 0.3
    """Overlap up to which two detections of one class may both stay."""
    detections: Count = 100
    """Detections of a picture that are kept."""
    validate_every_updates: Count = 500
    """Updates between validations of Fast R-CNN; R-CNN, which looks for seconds at a picture, has one at the end."""
    log_every_updates: Count = 20
    """Updates between lines of metrics."""
    checkpoint_every_updates: Count = 100
    """Updates between checkpoints."""

    # --- the machine -----------------------------------------------------------------------------------------------
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the network; auto: what a short measurement finds fastest."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""

    def light(self) -> Augment:
        """What is done to the light of training pictures."""
        return Augment(brightness=self.brightness, contrast=self.contrast)

    def search(self) -> SearchSettings:
        """How proposals are found."""
        return SearchSettings(colours=self.search_colours, scales=tuple(map(float, self.search_scales)))

    def options(self) -> dict[str, Any]:
        """Options of the backbone that need to be said."""
        asked: dict[str, Any] = {"width": self.width_multiplier, "stem": self.stem}
        usual = {"width": 1.0, "stem": "paper"}
        return {name: value for name, value in asked.items() if value is not None and value != usual[name]}

    def eye_path(self) -> Path | None:
        """Where the weights lie that the eye starts from."""
        if not self.pretrained_backbone:
            return None
        return zoo.weights_source(self.pretrained_backbone)


SLIM: Mapping[str, Any] = {"backbone": "resnet18", "width_multiplier": 0.45, "stem": "medium"}
"""The eye where none is named: resnet18 with half of its channels, and a stem for small pictures."""


def settled(config: Config) -> tuple[Config, ClassifierMetadata | None]:
    """The config with its eye named, and what is known of the classifier that the eye comes from.

    Raises:
        UserError: weights that are not there or damaged.
    """
    path = config.eye_path()
    metadata = read_metadata(path) if path is not None else None
    if not config.backbone and metadata is None and path is not None:
        raise UserError(
            f"{path} does not say of which network it is: name that too, "
            f"with --backbone, --width-multiplier and --stem."
        )
    if not config.backbone and metadata is not None:
        option_of = {"width_multiplier": "width", "stem": "stem"}  # field -> option of the backbone
        known = {field: metadata.options[name] for field, name in option_of.items() if name in metadata.options}
        eye: Mapping[str, Any] = {"backbone": metadata.backbone, **known}
    else:
        eye = SLIM if not config.backbone else {}
    # What was typed stands; only what was left open is filled in.
    open_fields = {name: value for name, value in eye.items() if getattr(config, name) in ("", None)}
    config = replace(config, **open_fields)
    if "width" in option_names(config.backbone) and config.width_multiplier is None:
        config = replace(config, width_multiplier=1.0)
    if "stem" in option_names(config.backbone) and config.stem is None:
        config = replace(config, stem="paper")
    return config, metadata


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # What finds most in half an hour on two cores.
    "fast": {},
    # Cells, leaves, things seen from above: what has no top.
    "cells": {"flip": "both"},
    # The settings of "Fast R-CNN", section 2.3, where they are not the defaults.
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
