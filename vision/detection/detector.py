"""Detector: image and proposals in, boxes with classes and confidence scores out; and the metadata of its model file.

    detector, metadata = DetectorMetadata.load(Path("runs/detect-bccd-fast-rcnn-fast-1"))
    found = detector.detect(canvas_CHW, proposals_P4, compute)

A canvas is an image scaled to `image_side`.

Shapes: C channels, H, W pixels, P proposals, D hidden units or detections, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from zerokara.core.boxes import clip, crop_and_resize, decode, select_detections
from zerokara.core.choices import Background
from zerokara.core.compute import Compute
from zerokara.core.models.model_file import NormalizedMetadata, lists_to_tuples
from zerokara.vision.detection.config import Method
from zerokara.vision.detection.network import RegionNet
from zerokara.vision.detection.selective_search import SearchSettings

_CROP_BATCH = 256  # crops per forward pass


@dataclass(frozen=True)
class Detections:
    """Detections in one image, sorted by descending score, on the CPU."""

    boxes: Tensor
    """(D, 4) float32, pixels of the canvas."""
    scores: Tensor
    """(D,) confidence from 0 to 1."""
    labels: Tensor
    """(D,) int64 class indices."""

    def above(self, confidence: float) -> Detections:
        """Return the detections with at least this confidence."""
        high = self.scores >= confidence
        return Detections(self.boxes[high], self.scores[high], self.labels[high])


class Svm(nn.Module):
    """Last stage of R-CNN: a linear SVM and a ridge regression per class, on the vectors of the last hidden layer.

    Buffers: `scale` scales vectors to a mean norm of 20; `weight` (K, D) and `bias` (K,) give margins; `ridge`
    (K, 4, D + 1) gives box codes, its last column is the intercept.
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
        """Return scores (R, K), which are the sigmoid of the SVM margins, and box codes (R, K, 4)."""
        vectors_RD = vectors_RD.float()
        margin_RK = (vectors_RD * self.scale) @ self.weight.T + self.bias
        codes_RK4 = torch.einsum("rd,kcd->rkc", vectors_RD, self.ridge[..., :-1]) + self.ridge[..., -1]
        return margin_RK.sigmoid(), codes_RK4


class Detector(nn.Module):
    """Network and, for R-CNN, its SVMs and box regressions."""

    def __init__(self, metadata: DetectorMetadata) -> None:
        super().__init__()
        self.metadata = metadata
        self.net = RegionNet(
            metadata.backbone,
            len(metadata.classes),
            stride=metadata.stride,
            bins=metadata.bins,
            hidden_units=metadata.units,
            dropout=metadata.dropout,
            **metadata.options,
        )
        self.svm = Svm(len(metadata.classes), metadata.units) if metadata.method == "rcnn" else None

    @torch.no_grad()
    def detect(
        self, canvas_CHW: Tensor, proposals_P4: Tensor, compute: Compute, *, min_score: float = 0.01
    ) -> Detections:
        """Detect objects in an image, in evaluation mode; afterwards the previous mode is restored.

        Args:
            canvas_CHW: uint8, on the device.
            proposals_P4: float32, pixels of the canvas, on the device.
            compute: hardware settings.
            min_score: detections with a lower score are dropped before non-maximum suppression.
        """
        if not len(proposals_P4):
            empty = torch.zeros(0)
            return Detections(torch.zeros(0, 4), empty, empty.long())
        training = self.training
        self.eval()
        with compute.autocast():
            score_PK, codes_PK4 = self.score(canvas_CHW, proposals_P4, compute)
        self.train(training)
        height, width = canvas_CHW.shape[1:]
        boxes_PK4 = clip(decode(proposals_P4, codes_PK4), height, width)
        max_detections, nms_iou = self.metadata.detections, self.metadata.nms_iou
        found = select_detections(
            boxes_PK4, score_PK, min_score=min_score, nms_iou=nms_iou, max_detections=max_detections
        )
        return Detections(*(compute.to_host(part) for part in found))

    def score(self, canvas_CHW: Tensor, proposals_P4: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
        """Return scores (P, K) and box codes (P, K, 4) of proposals."""
        if self.svm is not None:
            scores, codes = self.svm(self.vectors_of_crops(canvas_CHW, proposals_P4, compute))
            return scores, codes
        x_1CHW = compute.layout(self.metadata.normalize_uint8(canvas_CHW[None]))
        image_P = torch.zeros(len(proposals_P4), dtype=torch.int64, device=canvas_CHW.device)
        logits, codes = self.net(x_1CHW, proposals_P4, image_P)
        return logits.softmax(1)[:, 1:], codes

    def vectors_of_crops(self, canvas_CHW: Tensor, boxes_R4: Tensor, compute: Compute) -> Tensor:
        """Return the vectors (R, D) float32 of the last hidden layer for warped crops: the input of R-CNN's SVMs."""
        vectors = []
        for boxes in boxes_R4.split(_CROP_BATCH):
            image_R = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
            crops = self.metadata.normalize(self.metadata.crops(canvas_CHW[None], boxes, image_R))
            maps = self.net.maps(compute.layout(crops))
            whole, image_R = self.metadata.whole_crops(len(boxes), boxes.device)
            vectors.append(self.net.vectors(maps, whole, image_R, (self.metadata.crop_side,) * 2).float())
        return torch.cat(vectors)


@dataclass(frozen=True, kw_only=True)
class DetectorMetadata(NormalizedMetadata[Detector]):
    """Metadata of a detector's model file: network, preprocessing, selective search and test results."""

    FORMAT = "zerokara-detector-1"
    NETWORK = "detector"
    PROGRAM = "vision.detect"

    method: Method
    backbone: str
    classes: tuple[str, ...]
    image_side: int  # longer side of an image, in pixels
    stride: int
    bins: int
    units: int  # of each hidden layer
    dropout: float
    crop_side: int  # side of R-CNN's warped crops, in pixels
    crop_context: int  # pixels of it on each side that show context
    proposals: int  # maximum per image
    search: SearchSettings = SearchSettings()  # noqa: RUF009  (frozen)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone
    nms_iou: float = 0.3
    detections: int = 100  # maximum per image
    background: Background = "auto"  # color behind transparent pixels of the training images

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Create from the fields in the file, where tuples are lists and the settings of selective search a dict."""
        saved = fields.get("search", {})
        if not isinstance(saved, Mapping):
            raise TypeError(f"its search is {saved!r:.60}, and not the settings of selective search")
        search = SearchSettings(**lists_to_tuples(saved))
        return super().from_fields({**fields, "search": search})

    def build(self) -> Detector:
        """Build the detector with random weights."""
        return Detector(self)

    def crops(self, images_BCHW: Tensor, boxes_R4: Tensor, image_R: Tensor) -> Tensor:
        """Return R-CNN's warped crops (R, C, S, S) with values from 0 to 1, including the context."""
        fill_C = boxes_R4.new_tensor(self.mean)
        return crop_and_resize(images_BCHW, boxes_R4, image_R, self.crop_side, self.crop_context, fill_C)

    def whole_crops(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the region that covers each crop: boxes (number, 4) and image indices (number,)."""
        side = float(self.crop_side)
        boxes_R4 = torch.tensor([0.0, 0.0, side, side], device=device).repeat(number, 1)
        return boxes_R4, torch.arange(number, device=device)
