"""Synthetic images of discs and squares with their masks, in the folder layout of CamVid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "disc", "square")
NUMBER = {"train": 24, "val": 6, "test": 6}
SIZE = (32, 48)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image (H, W, 3) and its mask (H, W); the first and the last row of the mask are unlabeled."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    image = rng.normal(110, 12, (height, width, 3))
    mask = np.zeros(SIZE, np.uint8)
    for label, column in zip(rng.permutation([1, 2]), (12, 36), strict=True):
        row, radius = rng.integers(11, 21), rng.integers(6, 9)
        if label == 1:
            inside = (y - row) ** 2 + (x - column) ** 2 <= radius**2
        else:
            inside = np.maximum(abs(y - row), abs(x - column)) <= radius
        image[inside] += (60, -40, 0) if label == 1 else (-40, 60, 20)
        mask[inside] = label
    mask[0] = mask[-1] = 255
    return image.clip(0, 255).astype(np.uint8), mask


def write_shapes(root: Path) -> Path:
    """Write the data set to root/shapes with the splits train, val and test; return the folder."""
    rng = np.random.default_rng(7)
    for split, number in NUMBER.items():
        for index in range(number):
            for folder, array in zip((split, f"{split}annot"), draw(rng), strict=True):
                path = root / "shapes" / folder / f"{index:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "shapes" / "classes.txt").write_text("\n".join(CLASSES))
    return root / "shapes"
