"""Generated image set that needs no download: digits in OpenCV's fonts with random slant, thickness and position."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from zerokara.core.data.types import ImageSet, Split, image_set

SIDE = 28  # pixels, as in MNIST
SUPERSAMPLING = 2  # supersampling factor, for antialiasing
CLASSES = tuple("0123456789")
NUMBER: dict[Split, int] = {"train": 12_000, "test": 2_000}
MAX_OFFSET = 4  # maximum distance from the center, in pixels
SEED: dict[Split, int] = {"train": 0, "test": 1}
# OpenCV's built-in fonts and their weights; the first two support any weight from 100 (thin) to 1000 (black).
FONTS = {"sans": (100, 250, 400, 550, 700, 850), "italic": (100, 250, 400, 550, 700, 850), "uni": (400,)}
CANVAS, POINTS = 96, 64  # side of a digit's template in pixels, and font size
CHUNK = 500  # digits that are scaled down at a time


def glyphs(split: Split) -> ImageSet:
    """Return the images of a split, the same on every call: 12,000 training images or 2,000 test images."""
    images_NHW, labels_N = draw(NUMBER[split], SEED[split])
    return image_set(images_NHW[:, None], labels_N, CLASSES, f"glyphs ({split}), digits drawn in OpenCV's fonts")


def draw(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw digits: images (number, 28, 28) uint8, white on black, and balanced labels (number,) int64."""
    rng = np.random.default_rng(seed)
    labels_N = rng.permutation(np.arange(number) % len(CLASSES))
    font_N = rng.integers(len(FONTS), size=number)
    weight_N = rng.random(number)
    height_N = rng.uniform(14, 22, number) * SUPERSAMPLING  # of a digit, in supersampled pixels
    width_N = rng.uniform(0.75, 1.15, number)  # factor on the font's width
    slant_N = rng.uniform(-0.45, 0.45, number)  # shift to the right per pixel up
    angle_N = np.deg2rad(rng.uniform(-12, 12, number))
    # Offset from the center, as a fraction of the margin (less 1 pixel, at most MAX_OFFSET pixels).
    position_N2 = rng.uniform(-1, 1, (number, 2))
    brightness_N = rng.uniform(0.6, 1.0, number)

    cos_N, sin_N = np.cos(angle_N), np.sin(angle_N)
    rotation_N22 = np.stack([cos_N, -sin_N, sin_N, cos_N], 1).reshape(-1, 2, 2)
    fine_NHW = np.empty((number, SIDE * SUPERSAMPLING, SIDE * SUPERSAMPLING), np.uint8)
    chosen = []
    for index in range(number):
        weights = _templates()[labels_N[index]][font_N[index]]
        chosen.append(weights[int(weight_N[index] * len(weights))])
    size_N2 = np.array([size_2 for _, size_2 in chosen]).reshape(-1, 2)
    # Scale and slant the template, rotate it, and move its center to `center_N2`.
    scale_N = height_N / size_N2[:, 1]
    shear_N22 = np.zeros((number, 2, 2))
    shear_N22[:, 0, 0], shear_N22[:, 0, 1], shear_N22[:, 1, 1] = scale_N * width_N, scale_N * -slant_N, scale_N
    linear_N22 = rotation_N22 @ shear_N22
    margin_N2 = (SIDE / 2 - 1) * SUPERSAMPLING - (np.abs(linear_N22) @ size_N2[..., None])[..., 0] / 2
    center_N2 = SIDE * SUPERSAMPLING / 2 + position_N2 * margin_N2.clip(0, MAX_OFFSET * SUPERSAMPLING)
    offset_N2 = center_N2 - linear_N22 @ np.full(2, CANVAS / 2)
    affine_N23 = np.concatenate([linear_N22, offset_N2[..., None]], 2)
    for index, (template, _) in enumerate(chosen):
        cv2.warpAffine(template, affine_N23[index], fine_NHW.shape[:0:-1], fine_NHW[index], cv2.INTER_LINEAR)
    images_NHW = np.empty((number, SIDE, SIDE), np.uint8)
    for begin in range(0, number, CHUNK):
        part = slice(begin, begin + CHUNK)
        sum_NHW = np.zeros((len(fine_NHW[part]), SIDE, SIDE))
        for row, column in np.ndindex(SUPERSAMPLING, SUPERSAMPLING):
            sum_NHW += fine_NHW[part, row::SUPERSAMPLING, column::SUPERSAMPLING]
        images_NHW[part] = np.rint(sum_NHW / SUPERSAMPLING**2 * brightness_N[part, None, None])
    return images_NHW, labels_N


@functools.cache
def _templates() -> list[list[list[tuple[np.ndarray, np.ndarray]]]]:
    """Draw all templates, indexed by digit, font and weight; see `_template`."""
    return [[[_template(digit, font, w) for w in weights] for font, weights in FONTS.items()] for digit in CLASSES]


def _template(digit: str, font: str, weight: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a digit in the center of a canvas (CANVAS, CANVAS); also return its width and height (2,) in pixels."""
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.putText(canvas, digit, (CANVAS // 4, CANVAS * 3 // 4), (255,), cv2.FontFace(font), POINTS, weight)
    drawn = [np.flatnonzero(canvas.any(axis)) for axis in (0, 1)]  # columns, rows
    size_2 = np.array([lines[-1] - lines[0] + 1 for lines in drawn], np.float64)
    shift_x, shift_y = [(CANVAS - 1 - lines[0] - lines[-1]) // 2 for lines in drawn]
    return np.roll(canvas, (shift_y, shift_x), (0, 1)), size_2
