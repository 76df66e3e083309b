"""A detector: proposals and a picture in, boxes with classes and confidence out; and the file that keeps it.

detector = load(Path("runs/detect-bccd-fast-rcnn-fast-1"))
found = detector.detect(canvas_CHW, proposals_P4, compute)

Shapes: C channels, H, W pixels, P proposals, D hidden units or detections, K classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zerokara.core.boxes import clip, decode, pick, warp
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary
from zerokara.core.models import model_file
from zerokara.core.programs import program_command
from zerokara.vision.detection.network import RegionNet
from zerokara.vision.detection.selective_search import SearchSettings

FORMAT = "zerokara-detector-1"
MODEL_FILE = "model.safetensors"
Method = Literal["fast-rcnn", "rcnn"]
_CROP_BATCH = 256  # that go through the network together


@dataclass(frozen=True, kw_only=True)
class DetectorMetadata:
    """What a detector is: enough to build it, to feed it, and to know what it was measured at."""

    method: Method
    backbone: str
    classes: tuple[str, ...]
    image_side: int  # longer side of a picture, in pixels
    mean: tuple[float, ...]  # of each colour, in pixels of 0 to 1
    std: tuple[float, ...]
    stride: int
    bins: int
    units: int
    dropout: float
    crop_side: int  # of R-CNN's warped crops, and how much of it shows what lies around
    crop_context: int
    proposals: int
    search: SearchSettings = SearchSettings()  # noqa: RUF009  (frozen)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone
    nms_iou: float = 0.3
    detections: int = 100
    data: str = ""  # what it learnt from, in words
    command: str = ""  # what made it
    figures: Mapping[str, float] = field(default_factory=dict)  # what was measured of it

    def build(self) -> RegionNet:
        """The network without its weights."""
        return RegionNet(
            self.backbone,
            len(self.classes),
            stride=self.stride,
            bins=self.bins,
            units=self.units,
            dropout=self.dropout,
            **self.options,
        )

    def normalize(self, x_BCHW: Tensor) -> Tensor:
        """Images scaled to [0, 1] as the network expects them."""
        shape = (1, -1, 1, 1)
        return (x_BCHW - x_BCHW.new_tensor(self.mean).view(shape)) / x_BCHW.new_tensor(self.std).view(shape)

    def crops(self, images_BCHW: Tensor, boxes_R4: Tensor, image_R: Tensor) -> Tensor:
        """R-CNN's warped crops (R, C, S, S) from 0 to 1, with what lies around."""
        fill_C = boxes_R4.new_tensor(self.mean)
        return warp(images_BCHW, boxes_R4, image_R, self.crop_side, self.crop_context, fill_C)

    def whole_crops(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The one region of each crop: boxes (number, 4) and whose they are."""
        side = float(self.crop_side)
        boxes_R4 = torch.tensor([0.0, 0.0, side, side], device=device).repeat(number, 1)
        return boxes_R4, torch.arange(number, device=device)


@dataclass(frozen=True)
class Detections:
    """Detections of a picture, best first, on the CPU."""

    boxes: Tensor
    """(D, 4) float32, pixels of the canvas."""
    scores: Tensor
    """(D,) from 0 to 1."""
    labels: Tensor
    """(D,) int64."""

    def above(self, confidence: float) -> Detections:
        """Those of at least this confidence."""
        high = self.scores >= confidence
        return Detections(self.boxes[high], self.scores[high], self.labels[high])


class Svm(nn.Module):
    """R-CNN's last stage: a linear SVM and a ridge regression for each class, over the hidden layer's vectors.

    Buffers: `scale` brings vectors to a mean length of 20; `weight` (K, D) and `bias` (K,) give margins; `ridge`
    (K, 4, D + 1) gives codes of boxes, its last column is the constant.
    """

    scale: Tensor
    weight: Tensor
    bias: Tensor
    ridge: Tensor

    def __init__(self, classes: int, units: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("weight", torch.zeros(classes, units))
        self.register_buffer("bias", torch.full((classes,), -1.0))
        self.register_buffer("ridge", torch.zeros(classes, 4, units + 1))

    def forward(self, vectors_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (R, K) from 0 to 1, the logistic function of the margins, and codes (R, K, 4)."""
        vectors_RD = vectors_RD.float()
        margin_RK = (vectors_RD * self.scale) @ self.weight.T + self.bias
        codes_RK4 = torch.einsum("rd,kcd->rkc", vectors_RD, self.ridge[..., :-1]) + self.ridge[..., -1]
        return margin_RK.sigmoid(), codes_RK4


class Detector(nn.Module):
    """The network with what its method puts on top of it."""

    def __init__(self, metadata: DetectorMetadata) -> None:
        super().__init__()
        self.metadata, self.net = metadata, metadata.build()
        self.svm = Svm(len(metadata.classes), metadata.units) if metadata.method == "rcnn" else None

    @torch.no_grad()
    def detect(self, canvas_CHW: Tensor, proposals_P4: Tensor, compute: Compute, *, least_score: float = 0.01) -> Detections:
        """What is in a picture: in evaluation mode, the mode is kept.

        Args:
            canvas_CHW: uint8, on the device.
            proposals_P4: float32, pixels of the canvas, on the device.
            compute: how.
            least_score: what is worth looking at.
        """
        if not len(proposals_P4):
            nothing = torch.zeros(0)
            return Detections(torch.zeros(0, 4), nothing, nothing.long())
        training = self.training
        self.eval()
        with compute.autocast():
            score_PK, codes_PK4 = self.score(canvas_CHW, proposals_P4, compute)
        self.train(training)
        height, width = canvas_CHW.shape[1:]
        boxes_PK4 = clip(decode(proposals_P4, codes_PK4), height, width)
        most, nms_iou = self.metadata.detections, self.metadata.nms_iou
        found = pick(boxes_PK4, score_PK, least_score=least_score, nms_iou=nms_iou, most=most)
        return Detections(*(compute.to_host(part) for part in found))

    def score(self, canvas_CHW: Tensor, proposals_P4: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
        """Scores (P, K) and codes (P, K, 4) of proposals."""
        if self.svm is not None:
            scores, codes = self.svm(self.vectors_of_crops(canvas_CHW, proposals_P4, compute))
            return scores, codes
        x_1CHW = compute.layout(self.metadata.normalize(canvas_CHW[None].float() * (1 / 255)))
        image_P = torch.zeros(len(proposals_P4), dtype=torch.int64, device=canvas_CHW.device)
        logits, codes = self.net(x_1CHW, proposals_P4, image_P)
        return logits.softmax(1)[:, 1:], codes

    def vectors_of_crops(self, canvas_CHW: Tensor, boxes_R4: Tensor, compute: Compute) -> Tensor:
        """The hidden layer's vectors (R, D) float32 of warped crops: what R-CNN's SVMs see."""
        vectors = []
        for boxes in boxes_R4.split(_CROP_BATCH):
            image_R = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
            crops = self.metadata.normalize(self.metadata.crops(canvas_CHW[None], boxes, image_R))
            maps = self.net.maps(compute.layout(crops))
            whole, whose = self.metadata.whole_crops(len(boxes), boxes.device)
            vectors.append(self.net.vectors(maps, whole, whose, (self.metadata.crop_side,) * 2).float())
        return torch.cat(vectors)


def save(path: Path, detector: Detector) -> None:
    """Write weights and card as one whole file.

    Raises:
        UserError: the disk is full or refuses; the old file is as it was.
    """
    model_file.write(path, detector.state_dict(), dataclasses.asdict(detector.metadata), FORMAT)


def load(path: Path) -> Detector:
    """The detector of a run's folder or of a file, in evaluation mode, float32 on the CPU.

    Raises:
        UserError: no such file, a damaged one, or one that holds no detector of this version.
    """
    if path.is_dir() and not (path / MODEL_FILE).is_file():
        raise UserError(f"{path} has no {MODEL_FILE}: give the folder of a run of vision.detect that has validated.")
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"There is no {path}: give the folder of a run of vision.detect, or its {MODEL_FILE}.")
    header, weights = model_file.contents(path)
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} holds no detector of this version of zerokara (its format is {header.get('format')!r}, "
            f"{FORMAT!r} was expected): give what {program_command('vision.detect')} wrote."
        )
    try:
        fields = json.loads(header["card"])
        for name in ("classes", "mean", "std"):
            fields[name] = tuple(fields[name])
        search: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields["search"].items()}
        detector = Detector(DetectorMetadata(**{**fields, "search": SearchSettings(**search)}))
        detector.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The card of {path} makes no sense or its weights do not fit it ({error_summary(error)}): make it again."
        ) from None
    return detector.eval()
