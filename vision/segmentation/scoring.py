"""How well a segmenter does on images that it has not learnt: torchmetrics' figures over all labelled pixels.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data.masks import UNLABELLED, MaskSet
from zerokara.vision.segmentation.model_file import SegmenterMetadata
from zerokara.vision.segmentation.networks import Segmenter


@dataclass(frozen=True)
class PixelScores:
    """Figures over all labelled pixels of a set together, and the guesses for some of its images, on the CPU."""

    confusion_KK: Tensor
    """Pixels of each true class (rows) by guess (columns), int64."""
    accuracy: float
    """Share of pixels that are right: global accuracy."""
    recall_K: Tensor
    """Share of each class's pixels that are right; NaN where there is none."""
    iou_K: Tensor
    """Intersection over union of each class; NaN where neither label nor guess has it."""
    loss: float
    """Mean negative log-likelihood of a pixel, in nats, every class for the same."""
    guess_NHW: Tensor
    """Guesses uint8 for the images that were asked for."""

    @property
    def class_accuracy(self) -> float:
        """Mean recall of the classes that are labelled."""
        return float(self.recall_K.nanmean())

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union of the classes that labels or guesses have."""
        return float(self.iou_K.nanmean())

    def figures(self) -> dict[str, float]:
        """The four that go with a name."""
        return {
            "mean_iou": self.mean_iou,
            "accuracy": self.accuracy,
            "class_accuracy": self.class_accuracy,
            "loss": self.loss,
        }

    def by_class(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Intersection over union by the class's name, where there is any."""
        found = zip(classes, self.iou_K.tolist(), strict=True)
        return {name: iou for name, iou in found if not math.isnan(iou)}


def pixel_logits(
    network: Segmenter, metadata: SegmenterMetadata, compute: Compute, pixels_BCHW: Tensor, views: int = 1
) -> Tensor:
    """Logits (B, K, H, W) float32 of uint8 images of any size, on the device; with 2 views the mean with the mirror's.

    The network must be in evaluation mode.
    """
    with torch.no_grad(), compute.autocast():
        x = compute.layout(metadata.normalize(pixels_BCHW.to(compute.torch_device).float() * (1 / 255)))
        logits_BKHW: Tensor = network(x).float()
        if views == 2:
            logits_BKHW = (logits_BKHW + network(x.flip(3)).float().flip(3)) / 2
    return logits_BKHW


def score(
    network: Segmenter,
    metadata: SegmenterMetadata,
    compute: Compute,
    images: MaskSet,
    *,
    views: int = 1,
    batch_size: int = 8,
    keep: Sequence[int] = (),
) -> PixelScores:
    """How well a network does. It is put into evaluation mode and back.

    Args:
        views: 1, or 2 for the mean with the mirror image.
        batch_size: images that are looked at together.
        keep: places of the images whose guesses are kept, in rising order.
    """
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

    classes = len(metadata.classes)
    told: dict[str, Any] = {"num_classes": classes, "ignore_index": UNLABELLED, "validate_args": False}
    metrics = MetricCollection(
        {
            "confusion": MulticlassConfusionMatrix(**told),
            "iou": MulticlassJaccardIndex(average="none", **told),
            "accuracy": MulticlassAccuracy(average="micro", **told),
            "recall": MulticlassAccuracy(average="none", **told),
        }
    ).to(compute.torch_device)
    training = network.training
    network.eval()
    guesses, first, loss, pixels = [], 0, 0.0, 0
    for x, mask in zip(images.images.split(batch_size), images.masks.split(batch_size), strict=True):
        logits = pixel_logits(network, metadata, compute, x, views)
        target = mask.to(compute.torch_device).long()
        guess = logits.argmax(1)
        metrics.update(guess, target)
        loss += float(F.cross_entropy(logits, target, ignore_index=UNLABELLED, reduction="sum"))
        pixels += int((target != UNLABELLED).sum())
        guesses += [
            compute.to_host(guess[place - first].to(torch.uint8)) for place in keep if first <= place < first + len(x)
        ]
        first += len(x)
    network.train(training)
    found = {name: compute.to_host(value) for name, value in metrics.compute().items()}
    confusion_KK = found["confusion"].long()
    labelled_K, guessed_K = confusion_KK.sum(1), confusion_KK.sum(0)
    return PixelScores(
        confusion_KK=confusion_KK,
        accuracy=float(found["accuracy"]),
        recall_K=found["recall"].double().where(labelled_K > 0, math.nan),
        iou_K=found["iou"].double().where(labelled_K + guessed_K > 0, math.nan),
        loss=loss / max(1, pixels),
        guess_NHW=torch.stack(guesses) if guesses else torch.empty(0, *images.shape[1:], dtype=torch.uint8),
    )
