"""Preprocessing of user images: any size, color or grayscale, dark on light or light on dark.

A network for digits expects images like those of MNIST: light ink on black, the longer side of the digit 20 of 28
pixels, its center of mass in the middle (LeCun et al. 1998, section III.A). A photograph of a digit on paper differs in
all of these.

Shapes: H, W pixels, C channels (1 grayscale, 3 RGB).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from zerokara.core.data.image_files import convert_channels, resize_and_crop
from zerokara.core.models.classifier import ClassifierMetadata

DIGITS = tuple("0123456789")
# Grayscale data sets with a mean below this show light objects on a dark background: MNIST 0.13, Fashion-MNIST 0.29.
MAX_DARK_MEAN = 0.4
DIGIT_FRACTION = 20 / 28  # longer side of the digit, as a fraction of the image side
MAX_SIDE = 512  # larger images are reduced to this size in pixels before the ink is detected
BACKGROUND_FRACTION = 0.4  # of the longer side of the image: only thinner structures can be ink
MIN_CONTRAST = 25  # of 255: an image with a lower threshold contains no ink
MIN_AREA_FRACTION = 0.05  # of the largest connected component: smaller components are dirt
MIN_STROKE_FRACTION = 1 / 12  # of the longer side of the digit: a thinner stroke would fade when it is reduced
STROKE_FRACTION = 1 / 9  # thin strokes are dilated to this thickness


@dataclass(frozen=True)
class PreparedImage:
    """Image (C, H, W) uint8 as the network takes it, and a description of the preprocessing steps."""

    pixels_CHW: np.ndarray
    steps: str


def prepare(image_HWC: np.ndarray, metadata: ClassifierMetadata, *, as_is: bool = False) -> PreparedImage:
    """Prepare an image for a network.

    If the network was trained on light objects on a dark background, an image with a bright border is inverted. If it
    was trained on digits, the ink is detected, thickened if it is thin, and centered. An image that already has the
    size of the network is only inverted, if at all.

    Args:
        image_HWC: uint8 image of any size, grayscale or RGB.
        metadata: of the network.
        as_is: only change size and channels.
    """
    steps = []
    has_network_size = image_HWC.shape[:2] == metadata.image_size
    image_HWC = convert_channels(image_HWC, metadata.channels == 1)
    if metadata.channels == 1 and metadata.mean[0] < MAX_DARK_MEAN and not as_is:
        if has_bright_border(image_HWC[..., 0]):
            image_HWC = 255 - image_HWC
            steps.append("inverted")
        if metadata.classes == DIGITS and not has_network_size:
            digit_HW = center_digit(image_HWC[..., 0], metadata.image_size)
            if digit_HW is not None:
                return PreparedImage(digit_HW[None], ", ".join([*steps, "digit cropped and centered"]))
            steps.append("no ink found")
    if not has_network_size:
        height, width = image_HWC.shape[:2]
        image_HWC = resize_and_crop(image_HWC, metadata.image_size)
        same_aspect = height * metadata.image_size[1] == width * metadata.image_size[0]
        steps.append("resized" if same_aspect else "resized, center-cropped")
    return PreparedImage(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)), ", ".join(steps) or "unchanged")


def has_bright_border(image_HW: np.ndarray) -> bool:
    """Return True if the border is closer to the brightest than to the darkest pixels of the image."""
    border = np.concatenate([image_HW[0], image_HW[-1], image_HW[:, 0], image_HW[:, -1]])
    low, high = np.percentile(image_HW, (0.1, 99.9))  # a thin pen covers less than 1% of the pixels
    return bool(np.median(border) > (low + high) / 2)


def center_digit(image_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Crop the light ink of an image (H, W) and place it into an image of `size` as in MNIST.

    Uneven illumination is removed with the background, which is estimated by a morphological opening: it removes
    structures that are thinner than `BACKGROUND_FRACTION` of the image.

    Returns:
        The image (size) uint8, or None if there is no ink.
    """
    shrink = MAX_SIDE / max(image_HW.shape)
    if shrink < 1:
        image_HW = cv2.resize(image_HW, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    kernel = max(3, round(BACKGROUND_FRACTION * max(image_HW.shape)))
    # The median filter removes noise: an opening takes minima, and would be determined by the darkest noisy pixels.
    background = cv2.morphologyEx(cv2.medianBlur(image_HW, 3), cv2.MORPH_OPEN, np.ones((kernel, kernel), np.uint8))
    ink = cv2.subtract(image_HW, cv2.blur(background, (kernel, kernel)))
    threshold, mask = cv2.threshold(cv2.GaussianBlur(ink, (3, 3), 0), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    if threshold < MIN_CONTRAST or not mask.any():
        return None
    number, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[:, cv2.CC_STAT_AREA]
    large = [label for label in range(1, number) if areas[label] >= MIN_AREA_FRACTION * areas[1:].max()]
    mask = np.isin(labels, large).astype(np.uint8)
    ink = np.where(cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0, ink, 0).astype(np.uint8)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    longer_side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    # The mean distance of a strip's pixels to its edge is a quarter of its thickness.
    thickness = 4 * cv2.distanceTransform(mask, cv2.DIST_L2, 3)[mask > 0].mean()
    if thickness < MIN_STROKE_FRACTION * longer_side:
        added = round(STROKE_FRACTION * longer_side - thickness) + 1
        ink = cv2.copyMakeBorder(ink, added, added, added, added, cv2.BORDER_CONSTANT)
        ink = cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (added, added)))
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        longer_side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    digit = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = DIGIT_FRACTION * min(size) / longer_side
    shape = tuple(max(1, round(side * scale)) for side in digit.shape)
    digit = cv2.resize(digit, shape[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    digit = (np.minimum(digit / np.percentile(digit[digit > 0], 90), 1) * 255).round().astype(np.uint8)
    return _center_of_mass_to_middle(digit, size)


def _center_of_mass_to_middle(digit_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Place the digit in an image of `size` so that its center of mass is as close to the middle as fits."""
    image = np.zeros(size, np.uint8)
    corner = []
    for axis in (0, 1):
        mass = digit_HW.sum(1 - axis, dtype=np.float64)
        center = (mass * np.arange(len(mass))).sum() / mass.sum()
        corner.append(int(np.clip(round((size[axis] - 1) / 2 - center), 0, size[axis] - len(mass))))
    top, left = corner
    image[top : top + digit_HW.shape[0], left : left + digit_HW.shape[1]] = digit_HW
    return image
