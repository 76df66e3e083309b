"""Drawn shapes in PASCAL VOC's form: what a detector can learn in seconds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

COLOURS = {"disc": (200, 40, 40), "square": (40, 60, 200)}


def draw(rng: np.random.Generator, width: int = 96, height: int = 72) -> tuple[np.ndarray, list[tuple[str, list[int]]]]:
    """A picture (H, W, 3) with two or three shapes that do not touch, and their names and boxes."""
    picture = rng.normal(200, 3, (height, width, 3)).clip(0, 255).astype(np.uint8)
    marked: list[tuple[str, list[int]]] = []
    for column in rng.permutation(3)[: rng.integers(2, 4)].tolist():
        side = int(rng.integers(18, 27))
        left, top = column * 32 + int(rng.integers(1, 32 - side)), int(rng.integers(1, height - side - 1))
        name = ("disc", "square")[int(rng.integers(2))]
        if name == "disc":
            side -= 1 - side % 2
            cv2.circle(picture, (left + side // 2, top + side // 2), side // 2, COLOURS[name], -1)
        else:
            picture[top : top + side, left : left + side] = COLOURS[name]
        marked.append((name, [left, top, left + side, top + side]))
    return picture, marked


def write(folder: Path, number: int = 40, seed: int = 0) -> Path:
    """A folder of such pictures, with one box that is none; returns it."""
    rng = np.random.default_rng(seed)
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for place in range(number):
        picture, marked = draw(rng)
        Image.fromarray(picture).save(folder / "JPEGImages" / f"{place:03}.png")
        boxes = [(name, [x1 + 1, y1 + 1, x2, y2]) for name, (x1, y1, x2, y2) in marked]
        if place == 3:
            boxes.append(("disc", [5, 5, 5, 5]))
        rows = "".join(
            f"<object><name>{name}</name><bndbox>"
            + "".join(f"<{end}>{v}</{end}>" for end, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            + "</bndbox></object>"
            for name, box in boxes
        )
        (folder / "Annotations" / f"{place:03}.xml").write_text(f"<annotation>{rows}</annotation>")
    return folder
