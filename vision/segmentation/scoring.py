"""Evaluation of segmentation networks with the metrics of torchmetrics, over all labeled pixels of a data set.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data.masks import UNLABELED, MaskSet
from zerokara.vision.segmentation.networks import Segmenter, SegmenterMetadata

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@dataclass(frozen=True)
class PixelScores:
    """Metrics over all labeled pixels of a data set, and the predictions for some of its images, on the CPU."""

    confusion_KK: Tensor
    """Confusion matrix, int64: number of pixels of each true class (rows) and predicted class (columns)."""
    accuracy: float
    """Global accuracy: fraction of pixels that are classified correctly."""
    recall_K: Tensor
    """Fraction of the pixels of each class that are classified correctly; NaN for a class without labeled pixels."""
    iou_K: Tensor
    """Intersection over union of each class; NaN for a class that is neither in the labels nor in the predictions."""
    loss: float
    """Mean negative log-likelihood of a pixel, in nats, without class weights."""
    prediction_NHW: Tensor
    """Predicted classes, uint8, of the images that the argument `prediction_indices` of `score` names."""

    @property
    def class_accuracy(self) -> float:
        """Mean recall of the classes that have labeled pixels."""
        return float(self.recall_K.nanmean())

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union of the classes in labels or predictions."""
        return float(self.iou_K.nanmean())

    def metrics(self) -> dict[str, float]:
        """Return the scalar metrics by name."""
        return {
            "mean_iou": self.mean_iou,
            "accuracy": self.accuracy,
            "class_accuracy": self.class_accuracy,
            "loss": self.loss,
        }

    def iou_by_class(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Return the intersection over union by class name, without the classes whose value is NaN."""
        named = zip(classes, self.iou_K.tolist(), strict=True)
        return {name: iou for name, iou in named if not math.isnan(iou)}


def pixel_logits(
    network: Segmenter, metadata: SegmenterMetadata, compute: Compute, pixels_BCHW: Tensor, views: int = 1
) -> Tensor:
    """Compute logits (B, K, H, W), float32 on the device.

    Args:
        network: in evaluation mode.
        metadata: of the network.
        compute: device and precision.
        pixels_BCHW: uint8 images of any size.
        views: 1, or 2 to average the logits of the image and its horizontal flip.
    """
    with torch.no_grad(), compute.autocast():
        x = compute.layout(metadata.normalize_uint8(pixels_BCHW.to(compute.torch_device)))
        logits_BKHW: Tensor = network(x).float()
        if views == 2:
            logits_BKHW = (logits_BKHW + network(x.flip(3)).float().flip(3)) / 2
    return logits_BKHW


@dataclass(frozen=True)
class PixelCounts:
    """Counts of pixels in a part of a data set, on the CPU, from which `pixel_scores` computes the metrics."""

    metrics: MetricCollection
    loss: float
    """Sum over labeled pixels."""
    pixels: int
    """Number of labeled pixels."""
    predictions: list[Tensor]
    """Predicted classes (H, W) uint8 of some images."""


def _make_metrics(classes: int) -> MetricCollection:
    """Return the metrics in their initial state."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

    # Without sync_on_compute=False, `compute` would wait for all other processes.
    settings: dict[str, Any] = {"num_classes": classes, "ignore_index": UNLABELED}
    settings |= {"validate_args": False, "sync_on_compute": False}
    return MetricCollection(
        {
            "confusion": MulticlassConfusionMatrix(**settings),
            "iou": MulticlassJaccardIndex(average="none", **settings),
            "accuracy": MulticlassAccuracy(average="micro", **settings),
            "recall": MulticlassAccuracy(average="none", **settings),
        },
        compute_groups=False,
    )


def count(
    network: Segmenter,
    metadata: SegmenterMetadata,
    compute: Compute,
    images: MaskSet,
    *,
    views: int = 1,
    batch_size: int = 8,
    prediction_indices: Sequence[int] = (),
) -> PixelCounts:
    """Count pixels by true and predicted class, in evaluation mode; the network's mode is restored afterwards.

    Args:
        network: on the device.
        metadata: of the network.
        compute: device and precision.
        images: data set, or a part of it.
        views: 1, or 2 to average the logits of the image and its horizontal flip.
        batch_size: images in a batch.
        prediction_indices: indices of the images whose predictions are returned, in increasing order.
    """
    metrics = _make_metrics(len(metadata.classes)).to(compute.torch_device)
    training = network.training
    network.eval()
    predictions, first, loss, pixels = [], 0, 0.0, 0
    for x, mask in zip(images.images.split(batch_size), images.masks.split(batch_size), strict=True):
        logits = pixel_logits(network, metadata, compute, x, views)
        target = mask.to(compute.torch_device).long()
        prediction = logits.argmax(1)
        metrics.update(prediction, target)
        loss += float(F.cross_entropy(logits, target, ignore_index=UNLABELED, reduction="sum"))
        pixels += int((target != UNLABELED).sum())
        predictions += [
            compute.to_host(prediction[index - first].to(torch.uint8))
            for index in prediction_indices
            if first <= index < first + len(x)
        ]
        first += len(x)
    network.train(training)
    return PixelCounts(Compute().module(metrics), loss, pixels, predictions)


def pixel_scores(counts: Sequence[PixelCounts], images: MaskSet) -> PixelScores:
    """Compute the metrics over all parts of a data set.

    Args:
        counts: of the parts, in their order.
        images: the whole data set.
    """
    first, *others = (part.metrics for part in counts)
    for other in others:
        for name, metric in first.items():
            metric.merge_state(other[name])
    values = first.compute()
    predictions = [prediction for part in counts for prediction in part.predictions]
    confusion_KK = values["confusion"].long()
    labeled_K, predicted_K = confusion_KK.sum(1), confusion_KK.sum(0)
    return PixelScores(
        confusion_KK=confusion_KK,
        accuracy=float(values["accuracy"]),
        recall_K=values["recall"].double().where(labeled_K > 0, math.nan),
        iou_K=values["iou"].double().where(labeled_K + predicted_K > 0, math.nan),
        loss=sum(part.loss for part in counts) / max(1, sum(part.pixels for part in counts)),
        prediction_NHW=torch.stack(predictions)
        if predictions
        else torch.empty(0, *images.shape[1:], dtype=torch.uint8),
    )
