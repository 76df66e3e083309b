"""How well a classifier does: probabilities, error and loss on images that it has not learnt.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import ClassifierMetadata


@dataclass(frozen=True)
class Scores:
    """Probabilities (N, K) float32 and labels (N,) on the CPU."""

    probability_NK: Tensor
    label_N: Tensor

    @property
    def prediction_N(self) -> Tensor:
        """The most probable class (N,)."""
        return self.probability_NK.argmax(1)

    @property
    def error(self) -> float:
        """Share of images whose most probable class is wrong."""
        return float((self.prediction_N != self.label_N).double().mean())

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, in nats."""
        return float(F.nll_loss(self.probability_NK.double().clamp(min=1e-12).log(), self.label_N))

    @property
    def confusion_KK(self) -> Tensor:
        """Images of each true class (rows) by guess (columns), int64."""
        classes = self.probability_NK.shape[1]
        return torch.bincount(self.label_N * classes + self.prediction_N, minlength=classes**2).view(classes, classes)


def augmented_views(x_BCHW: Tensor, number: int) -> list[Tensor]:
    """The views of test-time augmentation: 1 as it is, 2 with its mirror image, 5 with shifts by a pixel, 10 both."""
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
    """Probabilities (N, K) float32, on the CPU, of uint8 images; the mean over the views of each.

    The classifier is put into evaluation mode and back: an image's probabilities do not depend on its batch-mates.
    """
    training = classifier.training
    classifier.eval()
    found = []
    with torch.no_grad(), compute.autocast():
        for pixels in images_NCHW.split(batch_size):
            x = metadata.normalize(pixels.to(compute.torch_device).float() * (1 / 255))
            logits = [classifier(compute.layout(view)).float() for view in augmented_views(x, views)]
            found.append(torch.stack([view.softmax(1) for view in logits]).mean(0))
    classifier.train(training)
    return compute.to_host(torch.cat(found))


def score(
    classifier: Classifier,
    metadata: ClassifierMetadata,
    compute: Compute,
    images: ImageSet,
    *,
    views: int = 1,
    batch_size: int = 500,
) -> Scores:
    """`probabilities` of a set of images, beside their labels."""
    found = predict_probabilities(classifier, metadata, compute, images.images, views=views, batch_size=batch_size)
    return Scores(found, images.labels)
