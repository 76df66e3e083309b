"""What a person sees of a segmenter: overlays with their legend, pictures as augmented, figures by class.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.data.mask_files import CAMVID
from zerokara.core.data.masks import UNLABELLED, MaskSet
from zerokara.core.media import grid
from zerokara.core.report import figure_pixels
from zerokara.core.run import Run
from zerokara.vision.segmentation.model_file import SegmenterMetadata
from zerokara.vision.segmentation.networks import Segmenter
from zerokara.vision.segmentation.scoring import PixelScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # images whose overlays are logged
STRENGTH = 0.6  # of a class's colour over the photograph
# As SegNet's authors draw CamVid.
CAMVID_COLOURS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)


def palette(classes: tuple[str, ...]) -> np.ndarray:
    """Colours (256, 3) uint8 by number; those of PASCAL VOC, but for CamVid's own classes; unlabelled is black."""
    colours = np.zeros((256, 3), np.uint8)
    for number in range(256):
        for bit in range(8):  # three bits of the number at a time, the lowest into the highest of red, green and blue
            for channel in range(3):
                colours[number, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    if classes == CAMVID:
        colours[: len(CAMVID)] = CAMVID_COLOURS
    colours[UNLABELLED] = 0
    return colours


def overlay(image_HWC: np.ndarray, mask_HW: np.ndarray, colours: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """The photograph (H, W, 3) with its classes' colours laid over it; unlabelled pixels stay as they are.

    Args:
        image_HWC: uint8, 1 or 3 channels.
        mask_HW: uint8, classes or UNLABELLED.
        colours: as `palette` gives them.
        strength: 0 is the photograph, 1 the colours alone.
    """
    rgb = image_HWC if image_HWC.shape[2] == 3 else np.repeat(image_HWC, 3, axis=2)
    mixed = (rgb * (1 - strength) + colours[mask_HW] * strength).round().astype(np.uint8)
    return np.where((mask_HW == UNLABELLED)[..., None], rgb, mixed)


def legend(classes: tuple[str, ...], width: int, colours: np.ndarray) -> np.ndarray:
    """A strip (h, width, 3) with every class's name beside its colour."""
    from PIL import Image, ImageDraw, ImageFont

    size = 11 if width < 500 else 14
    font = ImageFont.load_default(size)
    line, gap = size + 6, 6
    places, x, y = [], gap, 0
    for name in classes:
        needed = size + 4 + math.ceil(font.getlength(name)) + 2 * gap
        if x > gap and x + needed > width:
            x, y = gap, y + line
        places.append((x, y))
        x += needed
    strip = Image.new("RGB", (width, y + line + 2), "white")
    draw = ImageDraw.Draw(strip)
    for number, (name, (x, y)) in enumerate(zip(classes, places, strict=True)):
        draw.rectangle((x, y + 3, x + size, y + 3 + size), fill=tuple(int(value) for value in colours[number]))
        draw.text((x + size + 4, y + 2), name, fill="black", font=font)
    return np.asarray(strip)


def shown(images: MaskSet) -> list[int]:
    """Places of a few images spread over a set."""
    number = min(SHOWN, len(images))
    return [place * len(images) // number for place in range(number)]


def draw_overlays(images: MaskSet, guess_NHW: Tensor, places: list[int]) -> np.ndarray:
    """Photograph, label and guess side by side, a row for each image, and the legend below: (H, W, 3) uint8."""
    colours = palette(images.classes)
    tiles = []
    for place, guess_HW in zip(places, guess_NHW.numpy(), strict=True):
        image_HWC = images.images[place].permute(1, 2, 0).numpy()
        blank_HW = np.full(guess_HW.shape, UNLABELLED, np.uint8)
        masks = (blank_HW, images.masks[place].numpy(), guess_HW)
        tiles += [overlay(image_HWC, mask_HW, colours).transpose(2, 0, 1) for mask_HW in masks]
    rows = grid(np.stack(tiles), columns=3, gap=2)
    return np.concatenate([rows, legend(images.classes, rows.shape[1], colours)])


def log_overlays(images: MaskSet, scores: PixelScores, places: list[int], run: Run, step: int, tag: str) -> None:
    """Keep a picture of `draw_overlays`."""
    run.image(tag, step, draw_overlays(images, scores.guess_NHW, places))


def log_start(network: Segmenter, metadata: SegmenterMetadata, batch: tuple[Tensor, Tensor], run: Run) -> None:
    """The first images and masks as augmented, and the network's graph."""
    x_BChw = Compute.to_host(batch[0]).float()
    shape = (1, -1, 1, 1)
    pixels = x_BChw * torch.tensor(metadata.std).view(shape) + torch.tensor(metadata.mean).view(shape)
    pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    masks = Compute.to_host(batch[1]).to(torch.uint8)
    colours = palette(metadata.classes)
    tiles = []
    for image, mask in zip(pixels.permute(0, 2, 3, 1).numpy(), masks.numpy(), strict=True):
        tiles += [overlay(image, mask, colours, strength).transpose(2, 0, 1) for strength in (0.0, STRENGTH)]
    run.image("augmented", 0, grid(np.stack(tiles), columns=4, gap=2))
    run.graph(network, batch[0][:1].float())


def draw_classes(scores: PixelScores, classes: tuple[str, ...]) -> Figure:
    """Intersection over union of each class as bars, and whom its pixels are taken for."""
    from matplotlib.figure import Figure

    number = len(classes)
    figure = Figure(figsize=(5 + 0.45 * number, 1.6 + 0.4 * number), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1 + number / 12))
    iou_K = scores.iou_K.nan_to_num(0.0).numpy()
    left.barh(range(number), 100 * iou_K, color=palette(classes)[:number] / 255)
    left.set_yticks(range(number), classes)
    left.invert_yaxis()
    left.set(xlim=(0, 100), xlabel="IoU, %", title=f"mean IoU {scores.mean_iou:.1%}")
    for place, (iou, known) in enumerate(zip(iou_K, scores.iou_K.isnan().logical_not().tolist(), strict=True)):
        left.text(100 * iou + 1, place, f"{100 * iou:.1f}" if known else "not there", va="center", fontsize=7)
    confusion_KK = scores.confusion_KK.numpy()
    share_KK = confusion_KK / np.maximum(1, confusion_KK.sum(1, keepdims=True))
    right.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    right.set_xticks(range(number), classes, rotation=90)
    right.set_yticks(range(number), [""] * number)
    right.set(xlabel="guess", title=f"of a label's pixels, %; {scores.accuracy:.1%} of all are right")
    for row in range(number):
        for column in range(number):
            if (percent := round(100 * share_KK[row, column])) > 0:
                colour = "white" if share_KK[row, column] > 0.5 else "black"
                right.text(column, row, str(percent), ha="center", va="center", fontsize=7, color=colour)
    return figure


def log_classes(scores: PixelScores, classes: tuple[str, ...], run: Run, step: int) -> None:
    """Keep a picture of `draw_classes`."""
    if len(classes) <= 60:
        run.image("classes", step, figure_pixels(draw_classes(scores, classes)))


def to_size(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture scaled to (H, W), whatever its proportions; areas are averaged where it gets smaller."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    way = cv2.INTER_AREA if size[0] < image_HWC.shape[0] else cv2.INTER_CUBIC
    scaled = cv2.resize(np.ascontiguousarray(image_HWC), size[::-1], interpolation=way)
    return scaled.reshape(*size, image_HWC.shape[2])  # OpenCV drops a single channel
