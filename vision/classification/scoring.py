"""Evaluation of classifiers: class probabilities, error and loss on images that were not used for training.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.models.classifier import Classifier, ClassifierMetadata


@dataclass(frozen=True)
class Scores:
    """Probabilities (N, K) float32 and labels (N,) on the CPU."""

    probability_NK: Tensor
    label_N: Tensor

    @property
    def prediction_N(self) -> Tensor:
        """Predicted class (N,): the most probable one."""
        return self.probability_NK.argmax(1)

    @property
    def error(self) -> float:
        """Fraction of images whose predicted class is wrong."""
        return float((self.prediction_N != self.label_N).double().mean())

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, in nats."""
        return float(F.nll_loss(self.probability_NK.double().clamp(min=1e-12).log(), self.label_N))

    @property
    def confusion_KK(self) -> Tensor:
        """Confusion matrix (K, K), int64: number of images by true class (rows) and predicted class (columns)."""
        classes = self.probability_NK.shape[1]
        return torch.bincount(self.label_N * classes + self.prediction_N, minlength=classes**2).view(classes, classes)


def augmented_views(x_BCHW: Tensor, number: int) -> list[Tensor]:
    """Return the views for test-time augmentation.

    Args:
        x_BCHW: images.
        number: 1: the image itself; 2: with its horizontal flip; 5: with shifts by one pixel; 10: both.
    """
    shifts = [x_BCHW]
    if number >= 5:
        padded = F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate")
        height, width = x_BCHW.shape[2:]
        shifts += [padded[:, :, y : y + height, x : x + width] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))]
    return shifts + [view.flip(3) for view in shifts] if number in (2, 10) else shifts


def predict_probabilities(
    classifier: Classifier,
    metadata: ClassifierMetadata,
    compute: Compute,
    images_NCHW: Tensor,
    *,
    views: int = 1,
    batch_size: int = 500,
) -> Tensor:
    """Compute class probabilities (N, K) of uint8 images, averaged over views. Returns float32 on the CPU.

    The classifier is in evaluation mode during the call, so that probabilities do not depend on the other images of
    the batch. Its previous mode is restored afterwards.
    """
    training = classifier.training
    classifier.eval()
    batches = []
    with torch.no_grad(), compute.autocast():
        for pixels in images_NCHW.split(batch_size):
            x = metadata.normalize_uint8(pixels.to(compute.torch_device))
            logits = [classifier(compute.layout(view)).float() for view in augmented_views(x, views)]
            batches.append(torch.stack([view.softmax(1) for view in logits]).mean(0))
    classifier.train(training)
    return compute.to_host(torch.cat(batches))


def score(
    classifier: Classifier,
    metadata: ClassifierMetadata,
    compute: Compute,
    images: ImageSet,
    *,
    views: int = 1,
    batch_size: int = 500,
) -> Scores:
    """Evaluate a classifier on a set of labeled images."""
    probability_NK = predict_probabilities(
        classifier, metadata, compute, images.images, views=views, batch_size=batch_size
    )
    return Scores(probability_NK, images.labels)
