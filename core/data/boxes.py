"""Pictures with boxes: every picture on a canvas of one size, so that all lie on the device at once.

found = load_boxes("bccd", image_side=400)
train, validation, test = split(found, seed=0)

A picture is scaled until its longer side is `image_side` and lies in the upper left of its canvas; the rest of the
canvas has its mean colour. Boxes are in pixels of the canvas, as in core.boxes.

Shapes: N pictures, n boxes of a picture, C = 3 colours, H, W pixels of the canvas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from torch import Tensor

from zerokara.core.boxes import clip
from zerokara.core.config import UserError, suggest
from zerokara.core.data.box_files import Listing, read_boxes
from zerokara.core.data.folders import opened
from zerokara.core.data.pictures import decode, with_channels
from zerokara.core.data.sources import home, inside, locate
from zerokara.core.data.types import Progress

TEST_SHARE, VALIDATION_SHARE = 1 / 5, 1 / 10


@dataclass(frozen=True)
class BoxSet:
    """Pictures and what is marked in them."""

    images: Tensor
    """(N, 3, H, W) uint8 canvases."""
    sizes: Tensor
    """(N, 2) int64: height and width of the picture in its canvas."""
    scales: Tensor
    """(N,) float64: pixels of the canvas for one of the picture as it was."""
    boxes: tuple[Tensor, ...]
    """(n, 4) float32 for each picture, pixels of the canvas."""
    labels: tuple[Tensor, ...]
    """(n,) int64 for each picture, indices into `classes`."""
    names: tuple[str, ...]
    """Paths of the pictures in their folder or archive."""
    classes: tuple[str, ...]
    """Names of the classes."""
    source: str
    """Where all this came from, in words."""
    dropped: tuple[str, ...] = ()
    """In a few words, every box that was marked and is none."""

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.images)

    def take(self, places: Sequence[int]) -> BoxSet:
        """The pictures at these places, in that order."""
        index = torch.tensor(list(places), dtype=torch.int64)
        return dataclasses.replace(
            self,
            images=self.images[index],
            sizes=self.sizes[index],
            scales=self.scales[index],
            boxes=tuple(self.boxes[place] for place in places),
            labels=tuple(self.labels[place] for place in places),
            names=tuple(self.names[place] for place in places),
        )

    def picture(self, place: int) -> np.ndarray:
        """A picture (h, w, 3) uint8 without the rest of its canvas."""
        height, width = self.sizes[place].tolist()
        return np.ascontiguousarray(self.images[place, :, :height, :width].permute(1, 2, 0).numpy())

    @property
    def counts(self) -> dict[str, int]:
        """Boxes of each class."""
        every = torch.cat([*self.labels, torch.zeros(0, dtype=torch.int64)])
        numbers = torch.bincount(every, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, numbers, strict=True))


def load_boxes(data: str, *, image_side: int, data_dir: Path | None = None, progress: Progress | None = None) -> BoxSet:
    """Everything that is marked in a folder or archive.

    Args:
        data: the name of a folder or of `<name>.zip` in `data_dir`, or a path to one: PASCAL VOC's XML, COCO's JSON or
            YOLO's text files (see `core.data.box_files`).
        image_side: the longer side of a picture on its canvas, in pixels.
        data_dir: where named sets lie; None: $ZEROKARA_DATA, else ~/.cache/zerokara.
        progress: told what is done, how much of it, and of how much.

    Raises:
        UserError: no such data, no boxes in them, something broken, more than memory holds.
    """
    folder = home(data_dir)
    path = locate(data, folder)
    if path is None:
        raise UserError(
            f"There are no data {data!r}{suggest(data, inside(folder))}: give a path to a folder or zip of pictures "
            f"with boxes (PASCAL VOC, COCO or YOLO), or the name of one in {folder}."
        )
    with opened(path) as (members, read):
        listing = read_boxes(members, read, path)
        canvases, scales, boxes = [], [], []
        for index, marked in enumerate(listing.pictures):
            image_HWC = with_channels(decode(read(marked.picture), f"{marked.picture} in {path}"), grayscale=False)
            height, width = image_HWC.shape[:2]
            picture, scale = scaled_to(image_HWC, image_side)
            raw_n4 = np.array([box for _, box in marked.boxes]).reshape(-1, 4)
            unit = scale * (np.array([width, height] * 2) if marked.relative else 1)
            inside_n4 = clip(torch.from_numpy(raw_n4 * unit), *picture.shape[:2])
            boxes.append(inside_n4.float())
            canvases.append(picture)
            scales.append(scale)
            if progress is not None and (index % 64 == 63 or index + 1 == len(listing.pictures)):
                progress(f"reading {path}", index + 1, len(listing.pictures))
    return _assemble(listing, canvases, scales, boxes, path)


def _assemble(
    listing: Listing, pictures: list[np.ndarray], scales: list[float], boxes: list[Tensor], path: Path
) -> BoxSet:
    """The set, without boxes that lie outside of their picture altogether."""
    dropped, kept, labels = list(listing.dropped), [], []
    numbers = {name: number for number, name in enumerate(listing.classes)}
    for marked, boxes_n4 in zip(listing.pictures, boxes, strict=True):
        sound_n = (boxes_n4[:, 2:] > boxes_n4[:, :2]).all(1)
        for (label, box), sound in zip(marked.boxes, sound_n.tolist(), strict=True):
            if not sound:
                numbers_of = ", ".join(f"{value:g}" for value in box)
                dropped.append(f"{label} ({numbers_of}) outside of the picture in {marked.written_in}")
        kept.append(boxes_n4[sound_n])
        labels.append(torch.tensor([numbers[label] for label, _ in marked.boxes], dtype=torch.int64)[sound_n])
    if not sum(map(len, labels)):
        raise UserError(f"{path} marks no box that has an inside: give pictures with boxes.")
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    needed, free = len(pictures) * 3 * height * width, psutil.virtual_memory().available
    if needed > free * 0.8:
        raise UserError(
            f"The {len(pictures):,} pictures of {path} need {needed / 2**30:,.1f} GiB at {width}x{height}, and "
            f"{free / 2**30:,.1f} GiB of memory are free: make them smaller with --image-side."
        )
    return BoxSet(
        images=torch.from_numpy(np.stack([on_canvas(picture, height, width) for picture in pictures])),
        sizes=torch.tensor([picture.shape[:2] for picture in pictures], dtype=torch.int64),
        scales=torch.tensor(scales, dtype=torch.float64),
        boxes=tuple(kept),
        labels=tuple(labels),
        names=tuple(marked.picture for marked in listing.pictures),
        classes=listing.classes,
        source=f"{path.stem} ({listing.form} in {path})",
        dropped=tuple(dropped),
    )


def scaled_to(image_HWC: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """A picture whose longer side is `side` pixels, and the factor; areas are averaged where it gets smaller."""
    height, width = image_HWC.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return image_HWC, 1.0
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image_HWC), shape, interpolation=way), scale


def on_canvas(picture_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture in the upper left of a canvas (3, height, width) of its mean colour."""
    canvas = np.empty((3, height, width), np.uint8)
    canvas[:] = picture_HWC.mean((0, 1)).round()[:, None, None]
    canvas[:, : picture_HWC.shape[0], : picture_HWC.shape[1]] = picture_HWC.transpose(2, 0, 1)
    return canvas


def split(boxes: BoxSet, seed: int) -> tuple[BoxSet, BoxSet, BoxSet]:
    """Pictures to learn from, to choose on (a tenth), and to be tested on (a fifth); a function of the seed.

    Raises:
        UserError: there are fewer than ten pictures.
    """
    number = len(boxes)
    if number < 10:
        raise UserError(f"{boxes.source} has {number} pictures, too few to hold any out: give at least 10.")
    order = np.random.default_rng(seed).permutation(number)
    tested, chosen = round(number * TEST_SHARE), max(1, round(number * VALIDATION_SHARE))
    parts = order[tested + chosen :], order[tested : tested + chosen], order[:tested]
    train, validation, test = (boxes.take(sorted(part.tolist())) for part in parts)
    return train, validation, test
