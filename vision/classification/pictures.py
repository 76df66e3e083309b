"""Images logged by the classifier programs: augmented training images, misclassified images, the confusion matrix.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.media import grid
from zerokara.core.models.classifier import Classifier, ClassifierMetadata
from zerokara.core.report import figure_pixels, image_figure, plot_confusion
from zerokara.core.run import Run
from zerokara.vision.classification.scoring import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_start(classifier: Classifier, metadata: ClassifierMetadata, batch: tuple[Tensor, Tensor], run: Run) -> None:
    """Log the first training images as augmented, and the graph of the network."""
    pixels_BCHW = metadata.to_uint8(Compute.to_host(batch[0]))
    run.image("augmented", 0, grid(pixels_BCHW, columns=8, scale=max(1, 84 // max(metadata.image_size))))
    run.graph(classifier, batch[0][:1].float())


def misread_indices(scores: Scores, max_images: int = 30) -> list[int]:
    """Return the indices of misclassified images, ordered by decreasing confidence of the wrong prediction."""
    wrong = torch.nonzero(scores.prediction_N != scores.label_N).flatten()
    confidence = scores.probability_NK[wrong].max(1).values
    return [int(i) for i in wrong[confidence.argsort(descending=True, stable=True)][:max_images]]


def draw_misread(images: ImageSet, scores: Scores, classes: tuple[str, ...], max_images: int = 30) -> Figure | None:
    """Plot misclassified images with label, prediction and confidence. Return None if there are none."""
    indices = misread_indices(scores, max_images)
    if not indices:
        return None
    pictures, titles = [], []
    for index in indices:
        prediction, label = int(scores.prediction_N[index]), int(scores.label_N[index])
        probability = float(scores.probability_NK[index, prediction])
        pictures.append(images.images[index].permute(1, 2, 0).numpy())
        titles.append(f"{classes[label]} → {classes[prediction]} {probability:.0%}")
    wrong = int((scores.prediction_N != scores.label_N).sum())
    heading = f"{wrong} of {len(images):,} misclassified: label → prediction, probability"
    return image_figure(pictures, titles, heading=heading)


def draw_confusion(scores: Scores, classes: tuple[str, ...]) -> Figure:
    """Plot the confusion matrix with counts, and the accuracy."""
    from matplotlib.figure import Figure

    number = len(classes)
    figure = Figure(figsize=(2 + 0.5 * number, 1.5 + 0.5 * number), dpi=100, layout="constrained")
    axes = figure.subplots()
    # The color scale ends at 10%; with a scale up to the diagonal's 100%, errors would be invisible.
    plot_confusion(axes, scores.confusion_KK.numpy(), classes, max_fraction=0.1)
    axes.set(ylabel="label", title=f"accuracy {1 - scores.error:.2%} of {len(scores.label_N):,} images")
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
