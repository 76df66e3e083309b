"""Draw true boxes and detections on images.

A canvas is an image scaled to the input size of the detector.

Shapes: H, W pixels, D boxes, N images, n true boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zerokara.core.boxes import iou
from zerokara.core.data.boxes import BoxSet
from zerokara.vision.detection.detector import Detections

# Palette of Okabe and Ito, distinguishable with color vision deficiency; one color per class, repeated.
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178))
TRUTH, DARK = (255, 255, 255), (0, 0, 0)


def draw_detections(
    image_HWC: np.ndarray,
    found: Detections,
    classes: Sequence[str],
    *,
    scale: float = 1.0,
    truth_n4: Tensor | None = None,
) -> np.ndarray:
    """Draw detections with class and confidence on an image; return (H, W, 3) uint8. True boxes are thin and white.

    Args:
        picture_HWC: image; boxes are multiplied by `scale` to fit it.
        found: detections; those with the highest scores are drawn last, on top.
        classes: names of the classes.
        scale: pixels of the image per pixel of the canvas.
        truth_n4: true boxes, in pixels of the canvas.
    """
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    drawing = ImageDraw.Draw(image)
    unit = max(1, round(max(image.size) / 400))
    font = ImageFont.load_default(size=10 * unit)
    for box in [] if truth_n4 is None else (truth_n4 * scale).tolist():
        drawing.rectangle(box, outline=TRUTH, width=1)
    rows = zip((found.boxes * scale).tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    for (x1, y1, x2, y2), score, label in reversed(list(rows)):
        color = COLORS[label % len(COLORS)]
        drawing.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=2 * unit)
        text = f"{classes[label]} {score:.0%}"
        left, top, right, bottom = drawing.textbbox((0, 0), text, font=font)
        x = min(max(x1, 0), max(0, image.width - (right - left) - 2 * unit))
        y = y1 - (bottom - top) - 3 * unit
        y = y if y >= 0 else y1
        drawing.rectangle((x, y, x + right - left + 2 * unit, y + bottom - top + 3 * unit), fill=color)
        drawing.text((x + unit, y + unit - top), text, fill=DARK, font=font)
    return np.asarray(image)


def side_by_side(images: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Place images of any sizes in one row (H, W, 3) on a white background."""
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    out = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for image in images:
        out[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return out


def stacked(rows: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Place rows of images below each other."""
    return side_by_side([row.transpose(1, 0, 2) for row in rows], gap).transpose(1, 0, 2)


def sheet(boxes: BoxSet, found: Sequence[Detections], *, confidence: float, max_images: int = 4) -> np.ndarray:
    """Draw detections and true boxes on the first images of a set, two per row."""
    drawn = [
        draw_detections(
            boxes.picture(index), found[index].above(confidence), boxes.classes, truth_n4=boxes.boxes[index]
        )
        for index in range(min(max_images, len(boxes)))
    ]
    return stacked([side_by_side(drawn[index : index + 2]) for index in range(0, len(drawn), 2)])


def worst_first(boxes: BoxSet, found: Sequence[Detections], confidence: float) -> list[int]:
    """Return the indices of the images, sorted by descending number of errors: missed true boxes plus false positives.

    A true box is detected if a detection of its class, with at least `confidence`, has an IoU of at least 0.5 with it.
    """
    errors = []
    for index, each in enumerate(found):
        high = each.above(confidence)
        same = high.labels[:, None] == boxes.labels[index][None]
        hit = (iou(high.boxes, boxes.boxes[index]) >= 0.5) & same
        missed = int((~hit.any(0)).sum()) if hit.numel() else len(boxes.boxes[index])
        false = int((~hit.any(1)).sum()) if hit.numel() else len(high.boxes)
        errors.append(missed + false)
    return sorted(range(len(found)), key=lambda index: -errors[index])
