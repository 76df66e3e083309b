"""The embedded image set: digits in OpenCV's fonts, drawn with random slant, thickness and place."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from zerokara.core.data.types import ImageSet, Split, image_set

SIDE = 28  # pixels, as MNIST's
FINE = 2  # drawn so many times larger and averaged down, for soft edges
CLASSES = tuple("0123456789")
NUMBER: dict[Split, int] = {"train": 12_000, "test": 2_000}
STRAY = 4  # pixels from the middle
SEED: dict[Split, int] = {"train": 0, "test": 1}
# OpenCV's built-in faces; the first two come in any weight from 100 (thin) to 1000 (black).
FACES = {"sans": (100, 250, 400, 550, 700, 850), "italic": (100, 250, 400, 550, 700, 850), "uni": (400,)}
CANVAS, POINTS = 96, 64  # pixels of a digit's template, and its font size


def glyphs(split: Split) -> ImageSet:
    """The digits of a split, the same on every call: 12,000 to learn from, 2,000 others to be tested on."""
    images_NHW, labels_N = draw(NUMBER[split], SEED[split])
    return image_set(images_NHW[:, None], labels_N, CLASSES, f"glyphs ({split}), digits drawn in OpenCV's fonts")


def draw(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw digits: images (number, 28, 28) uint8, white on black, and labels (number,) int64, each class as often."""
    rng = np.random.default_rng(seed)
    labels_N = rng.permutation(np.arange(number) % len(CLASSES))
    face_N = rng.integers(len(FACES), size=number)
    weight_N = rng.random(number)
    height_N = rng.uniform(14, 22, number) * FINE  # of a digit, in pixels of the fine picture
    width_N = rng.uniform(0.75, 1.15, number)  # of its face's own
    slant_N = rng.uniform(-0.45, 0.45, number)  # to the right for each pixel up
    turn_N = np.deg2rad(rng.uniform(-12, 12, number))
    place_N2 = rng.uniform(
        -1, 1, (number, 2)
    )  # from the middle, of what is left to the edge (less 1 pixel), at most STRAY
    bright_N = rng.uniform(0.6, 1.0, number)

    cos_N, sin_N = np.cos(turn_N), np.sin(turn_N)
    images_NHW = np.empty((number, SIDE, SIDE), np.uint8)
    for index in range(number):
        faces = _templates()[labels_N[index]]
        weights = faces[face_N[index]]
        template, size_2 = weights[int(weight_N[index] * len(weights))]
        scale = height_N[index] / size_2[1]
        # template -> narrowed and slanted -> turned -> its middle put at the centre
        shear_22 = scale * np.array([[width_N[index], -slant_N[index]], [0, 1]])
        linear_22 = np.array([[cos_N[index], -sin_N[index]], [sin_N[index], cos_N[index]]]) @ shear_22
        room_2 = (SIDE / 2 - 1) * FINE - np.abs(linear_22) @ size_2 / 2
        centre_2 = SIDE * FINE / 2 + place_N2[index] * room_2.clip(0, STRAY * FINE)
        offset_2 = centre_2 - linear_22 @ np.full(2, CANVAS / 2)
        fine = cv2.warpAffine(
            template, np.column_stack([linear_22, offset_2]), (SIDE * FINE, SIDE * FINE), flags=cv2.INTER_LINEAR
        )
        coarse = fine.reshape(SIDE, FINE, SIDE, FINE).mean((1, 3))
        images_NHW[index] = np.rint(coarse * bright_N[index])
    return images_NHW, labels_N


@functools.cache
def _templates() -> list[list[list[tuple[np.ndarray, np.ndarray]]]]:
    """By digit, face and weight: the digit large in the middle of a canvas, and its width and height (2,) in pixels."""
    return [[[_template(digit, face, w) for w in weights] for face, weights in FACES.items()] for digit in CLASSES]


def _template(digit: str, face: str, weight: int) -> tuple[np.ndarray, np.ndarray]:
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.putText(canvas, digit, (CANVAS // 4, CANVAS * 3 // 4), (255,), cv2.FontFace(face), POINTS, weight)
    inked = [np.flatnonzero(canvas.any(axis)) for axis in (0, 1)]  # columns, rows
    size_2 = np.array([lines[-1] - lines[0] + 1 for lines in inked], np.float64)
    shift_x, shift_y = [(CANVAS - 1 - lines[0] - lines[-1]) // 2 for lines in inked]
    return np.roll(canvas, (shift_y, shift_x), (0, 1)), size_2
