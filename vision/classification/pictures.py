"""What a person sees of a learning classifier: images as augmented, what it misreads, whom it takes for whom.

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
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.report import figure_pixels
from zerokara.core.run import Run
from zerokara.vision.classification.scoring import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_start(classifier: Classifier, metadata: ClassifierMetadata, batch: tuple[Tensor, Tensor], run: Run) -> None:
    """The first images as augmented, and the network's graph."""
    x_BCHW = Compute.to_host(batch[0]).float()
    shape = (1, -1, 1, 1)
    pixels = x_BCHW * torch.tensor(metadata.std).view(shape) + torch.tensor(metadata.mean).view(shape)
    run.image(
        "augmented", 0, grid((pixels.clamp(0, 1) * 255).round().to(torch.uint8), columns=8, scale=scale(metadata))
    )
    run.graph(classifier, batch[0][:1].float())


def scale(metadata: ClassifierMetadata) -> int:
    """By how much small images are enlarged to be seen."""
    return max(1, 84 // max(metadata.image_size))


def misread(scores: Scores, most: int = 30) -> list[int]:
    """Places of the images that are misread, the most confident mistakes first."""
    wrong = torch.nonzero(scores.prediction_N != scores.label_N).flatten()
    confidence = scores.probability_NK[wrong].max(1).values
    return [int(i) for i in wrong[confidence.argsort(descending=True, stable=True)][:most]]


def draw_misread(images: ImageSet, scores: Scores, classes: tuple[str, ...], most: int = 30) -> Figure | None:
    """Misread images with label, guess and confidence; None where nothing is misread."""
    from matplotlib.figure import Figure

    places = misread(scores, most)
    if not places:
        return None
    columns = min(6, len(places))
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.72 * rows), dpi=100, layout="constrained")
    wrong = int((scores.prediction_N != scores.label_N).sum())
    figure.suptitle(f"{wrong} of {len(images):,} misread: label, guess and its probability", fontsize=9)
    for axes, place in zip(figure.subplots(rows, columns, squeeze=False).flat, places, strict=False):
        picture = images.images[place].permute(1, 2, 0).numpy()
        axes.imshow(picture.squeeze(-1) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        guess, label = int(scores.prediction_N[place]), int(scores.label_N[place])
        axes.set_title(f"{classes[label]} → {classes[guess]} {scores.probability_NK[place, guess]:.0%}", fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def draw_confusion(scores: Scores, classes: tuple[str, ...]) -> Figure:
    """The confusion matrix: rows are true classes, columns guesses; colours are shares of a row."""
    from matplotlib.figure import Figure

    confusion_KK = scores.confusion_KK.numpy()
    number = len(classes)
    share_KK = confusion_KK / np.maximum(1, confusion_KK.sum(1, keepdims=True))
    figure = Figure(figsize=(2 + 0.5 * number, 1.5 + 0.5 * number), dpi=100, layout="constrained")
    axes = figure.subplots()
    # The diagonal would drown the mistakes: colours end where one class in ten is mistaken.
    axes.imshow(share_KK, cmap="Blues", vmin=0, vmax=0.1)
    axes.set(xlabel="guess", ylabel="label", title=f"{1 - scores.error:.2%} of {len(scores.label_N):,} right")
    axes.set_xticks(range(number), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axes.set_yticks(range(number), classes)
    for row in range(number):
        for column in range(number):
            if count := int(confusion_KK[row, column]):
                colour = "white" if share_KK[row, column] > 0.05 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    return figure


def log_misread(
    images: ImageSet, scores: Scores, classes: tuple[str, ...], run: Run, step: int, tag: str = "misread"
) -> None:
    """Keep a picture of what is misread."""
    figure = draw_misread(images, scores, classes)
    if figure is not None:
        run.image(tag, step, figure_pixels(figure))


def log_confusion(scores: Scores, classes: tuple[str, ...], run: Run, step: int) -> None:
    """Keep a picture of the confusion matrix."""
    if len(classes) <= 100:
        run.image("confusion", step, figure_pixels(draw_confusion(scores, classes)))
