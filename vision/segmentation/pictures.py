"""Images logged during training: overlays of labels and predictions, augmented images, IoU and confusion by class.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data.mask_files import CAMVID
from zerokara.core.data.masks import UNLABELED, MaskSet
from zerokara.core.media import grid
from zerokara.core.report import figure_pixels, plot_confusion
from zerokara.core.run import Run
from zerokara.vision.segmentation.config import STRENGTH
from zerokara.vision.segmentation.networks import Segmenter, SegmenterMetadata
from zerokara.vision.segmentation.scoring import PixelScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_OVERLAYS = 6  # images whose overlays are logged
# Colors of CamVid's classes in the paper on SegNet.
CAMVID_COLORS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)


def palette(classes: tuple[str, ...]) -> np.ndarray:
    """Return the colors (256, 3) uint8 of class indices: the palette of PASCAL VOC or, for its classes, of CamVid.

    The color of UNLABELED is black.
    """
    colors = np.zeros((256, 3), np.uint8)
    for index in range(256):
        # Bits 0, 1, 2 of the index become the highest bits of red, green and blue, bits 3, 4, 5 the next ones, ...
        for bit in range(8):
            for channel in range(3):
                colors[index, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    if classes == CAMVID:
        colors[: len(CAMVID)] = CAMVID_COLORS
    colors[UNLABELED] = 0
    return colors


def overlay(image_HWC: np.ndarray, mask_HW: np.ndarray, colors: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """Blend an image with the colors of its classes: (H, W, 3) uint8. Unlabeled pixels are unchanged.

    Args:
        image_HWC: uint8, 1 or 3 channels.
        mask_HW: uint8, class indices or UNLABELED.
        colors: from `palette`.
        strength: opacity of the colors; 0: only the image, 1: only the colors.
    """
    rgb = image_HWC if image_HWC.shape[2] == 3 else np.repeat(image_HWC, 3, axis=2)
    mixed = (rgb * (1 - strength) + colors[mask_HW] * strength).round().astype(np.uint8)
    return np.where((mask_HW == UNLABELED)[..., None], rgb, mixed)


def legend(classes: tuple[str, ...], width: int, colors: np.ndarray) -> np.ndarray:
    """Draw a strip (h, width, 3) uint8 with the color and the name of every class."""
    from PIL import Image, ImageDraw, ImageFont

    size = 11 if width < 500 else 14
    font = ImageFont.load_default(size)
    line, gap = size + 6, 6
    positions, x, y = [], gap, 0
    for name in classes:
        needed = size + 4 + math.ceil(font.getlength(name)) + 2 * gap
        if x > gap and x + needed > width:
            x, y = gap, y + line
        positions.append((x, y))
        x += needed
    strip = Image.new("RGB", (width, y + line + 2), "white")
    draw = ImageDraw.Draw(strip)
    for index, (name, (x, y)) in enumerate(zip(classes, positions, strict=True)):
        draw.rectangle((x, y + 3, x + size, y + 3 + size), fill=tuple(int(value) for value in colors[index]))
        draw.text((x + size + 4, y + 2), name, fill="black", font=font)
    return np.asarray(strip)


def overlay_indices(images: MaskSet) -> list[int]:
    """Return the indices of the images whose overlays are logged, evenly spaced over the data set."""
    number = min(MAX_OVERLAYS, len(images))
    return [i * len(images) // number for i in range(number)]


def draw_overlays(images: MaskSet, prediction_NHW: Tensor, indices: list[int]) -> np.ndarray:
    """Draw image, label and prediction side by side, one row per image, above the legend: (H, W, 3) uint8."""
    colors = palette(images.classes)
    tiles = []
    for index, prediction_HW in zip(indices, prediction_NHW.numpy(), strict=True):
        image_HWC = images.images[index].permute(1, 2, 0).numpy()
        blank_HW = np.full(prediction_HW.shape, UNLABELED, np.uint8)
        masks = (blank_HW, images.masks[index].numpy(), prediction_HW)
        tiles += [overlay(image_HWC, mask_HW, colors).transpose(2, 0, 1) for mask_HW in masks]
    rows = grid(np.stack(tiles), columns=3, gap=2)
    return np.concatenate([rows, legend(images.classes, rows.shape[1], colors)])


def log_overlays(images: MaskSet, scores: PixelScores, indices: list[int], run: Run, step: int, tag: str) -> None:
    """Log the image of `draw_overlays`."""
    run.image(tag, step, draw_overlays(images, scores.prediction_NHW, indices))


def log_start(network: Segmenter, metadata: SegmenterMetadata, batch: tuple[Tensor, Tensor], run: Run) -> None:
    """Log the first training images and masks as augmented, and the graph of the network."""
    pixels = metadata.to_uint8(Compute.to_host(batch[0]))
    masks = Compute.to_host(batch[1]).to(torch.uint8)
    colors = palette(metadata.classes)
    tiles = []
    for image, mask in zip(pixels.permute(0, 2, 3, 1).numpy(), masks.numpy(), strict=True):
        tiles += [overlay(image, mask, colors, strength).transpose(2, 0, 1) for strength in (0.0, STRENGTH)]
    run.image("augmented", 0, grid(np.stack(tiles), columns=4, gap=2))
    run.graph(network, batch[0][:1].float())


def draw_classes(scores: PixelScores, classes: tuple[str, ...]) -> Figure:
    """Plot the intersection over union of each class as bars, and the confusion matrix as fractions of each row."""
    from matplotlib.figure import Figure

    number = len(classes)
    figure = Figure(figsize=(5 + 0.45 * number, 1.6 + 0.4 * number), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1 + number / 12))
    iou_K = scores.iou_K.nan_to_num(0.0).numpy()
    left.barh(range(number), 100 * iou_K, color=palette(classes)[:number] / 255)
    left.set_yticks(range(number), classes)
    left.invert_yaxis()
    left.set(xlim=(0, 100), xlabel="IoU, %", title=f"mean IoU {scores.mean_iou:.1%}")
    for index, (iou, is_nan) in enumerate(zip(iou_K, scores.iou_K.isnan().tolist(), strict=True)):
        left.text(100 * iou + 1, index, "no pixels" if is_nan else f"{100 * iou:.1f}", va="center", fontsize=7)
    plot_confusion(right, scores.confusion_KK.numpy(), classes, percent=True)
    right.set_yticks(range(number), [""] * number)
    right.set_title(f"% of the pixels of each label; accuracy {scores.accuracy:.1%}")
    return figure


def log_classes(scores: PixelScores, classes: tuple[str, ...], run: Run, step: int) -> None:
    """Log the figure of `draw_classes`, for at most 60 classes."""
    if len(classes) <= 60:
        run.image("classes", step, figure_pixels(draw_classes(scores, classes)))
