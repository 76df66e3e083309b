"""Images logged by the classifier programs: augmented training images, misclassified images, the confusion matrix.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.media import grid
from zerokara.core.models.classifier import Classifier, ClassifierMetadata
from zerokara.core.report import figure_pixels
from zerokara.core.run import Run
from zerokara.vision.classification.scoring import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_start(classifier: Classifier, metadata: ClassifierMetadata, batch: tuple[Tensor, Tensor], run: Run) -> None:
    """Log the first training images as augmented, and the graph of the network."""
    x_BCHW = Compute.to_host(batch[0]).float()
    shape = (1, -1, 1, 1)
    pixels = x_BCHW * torch.tensor(metadata.std).view(shape) + torch.tensor(metadata.mean).view(shape)
    run.image(
        "augmented", 0, grid((pixels.clamp(0, 1) * 255).round().to(torch.uint8), columns=8, scale=scale(metadata))
    )
    run.graph(classifier, batch[0][:1].float())


def scale(metadata: ClassifierMetadata) -> int:
    """Return the integer factor by which small images are enlarged for display."""
    return max(1, 84 // max(metadata.image_size))


def misread_indices(scores: Scores, max_images: int = 30) -> list[int]:
    """Return the indices of misclassified images, ordered by decreasing confidence of the wrong prediction."""
    wrong = torch.nonzero(scores.prediction_N != scores.label_N).flatten()
    confidence = scores.probability_NK[wrong].max(1).values
    return [int(i) for i in wrong[confidence.argsort(descending=True, stable=True)][:max_images]]


def draw_misread(images: ImageSet, scores: Scores, classes: tuple[str, ...], max_images: int = 30) -> Figure | None:
    """Plot misclassified images with label, prediction and confidence. Return None if there are none."""
    from matplotlib.figure import Figure

    indices = misread_indices(scores, max_images)
    if not indices:
        return None
    columns = min(6, len(indices))
    rows = -(-len(indices) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.72 * rows), dpi=100, layout="constrained")
    wrong = int((scores.prediction_N != scores.label_N).sum())
    figure.suptitle(f"{wrong} of {len(images):,} misclassified: label → prediction, probability", fontsize=9)
    for axes, index in zip(figure.subplots(rows, columns, squeeze=False).flat, indices, strict=False):
        picture = images.images[index].permute(1, 2, 0).numpy()
        axes.imshow(picture.squeeze(-1) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        prediction, label = int(scores.prediction_N[index]), int(scores.label_N[index])
        probability = float(scores.probability_NK[index, prediction])
        axes.set_title(f"{classes[label]} → {classes[prediction]} {probability:.0%}", fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def draw_confusion(scores: Scores, classes: tuple[str, ...]) -> Figure:
    """Plot the confusion matrix: rows are true classes, columns are predictions, colors are fractions of a row."""
    from matplotlib.figure import Figure

    confusion_KK = scores.confusion_KK.numpy()
    number = len(classes)
    fraction_KK = confusion_KK / np.maximum(1, confusion_KK.sum(1, keepdims=True))
    figure = Figure(figsize=(2 + 0.5 * number, 1.5 + 0.5 * number), dpi=100, layout="constrained")
    axes = figure.subplots()
    # The color scale ends at 10%; with a scale up to the diagonal's 100%, errors would be invisible.
    axes.imshow(fraction_KK, cmap="Blues", vmin=0, vmax=0.1)
    accuracy = 1 - scores.error
    axes.set(xlabel="prediction", ylabel="label", title=f"accuracy {accuracy:.2%} of {len(scores.label_N):,} images")
    axes.set_xticks(range(number), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axes.set_yticks(range(number), classes)
    for row in range(number):
        for column in range(number):
            if count := int(confusion_KK[row, column]):
                color = "white" if fraction_KK[row, column] > 0.05 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    return figure


def log_misread(
    images: ImageSet, scores: Scores, classes: tuple[str, ...], run: Run, step: int, tag: str = "misread"
) -> None:
    """Log a figure of the misclassified images, if there are any."""
    figure = draw_misread(images, scores, classes)
    if figure is not None:
        run.image(tag, step, figure_pixels(figure))


def log_confusion(scores: Scores, classes: tuple[str, ...], run: Run, step: int) -> None:
    """Log a figure of the confusion matrix, for at most 100 classes."""
    if len(classes) <= 100:
        run.image("confusion", step, figure_pixels(draw_confusion(scores, classes)))
