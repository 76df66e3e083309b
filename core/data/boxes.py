"""Images with box annotations. All images are placed on canvases of one size, so that they fit in one tensor.

boxes = load_boxes("bccd", image_side=400)
train, validation, test = split(boxes, seed=0)

An image is scaled so that its longer side is `image_side`, and placed in the upper left corner of its canvas; the rest
of the canvas has the image's mean color. Boxes are in pixels of the canvas, as in core.boxes.

Shapes: N images, n boxes of an image, C = 3 channels, H, W pixels of the canvas.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from torch import Tensor

from zerokara.core.boxes import clip
from zerokara.core.choices import Background
from zerokara.core.config import UserError, format_count
from zerokara.core.data.audit import Audit
from zerokara.core.data.box_files import read_boxes
from zerokara.core.data.box_types import AnnotatedImage, Listing, Read
from zerokara.core.data.folders import opened
from zerokara.core.data.image_files import convert_channels, decode
from zerokara.core.data.sources import require_data
from zerokara.core.data.splits import VALIDATION_IS_TEST, AnySplit, describe_without_split
from zerokara.core.data.types import Progress

MAX_CUT_PIXELS = 1.5  # of the canvas; boxes that are cut by more are counted
TEST_FRACTION, VALIDATION_FRACTION = 1 / 5, 1 / 10
# Remarks on images whose annotation states another size than theirs: on one, and on several.
NOT_TURNED = (
    "image is not turned by its EXIF orientation, as its boxes are not",
    "images are not turned by their EXIF orientation, as their boxes are not",
)
SCALED = (
    "image has another size than its annotation states; its boxes are scaled",
    "images have another size than their annotations state; their boxes are scaled",
)


@dataclass(frozen=True)
class BoxSet:
    """Images with box annotations."""

    images: Tensor
    """(N, 3, H, W) uint8 canvases."""
    sizes: Tensor
    """(N, 2) int64: height and width of the image on its canvas."""
    scales: Tensor
    """(N,) float64: canvas pixels per pixel of the original image."""
    boxes: tuple[Tensor, ...]
    """(n, 4) float32 for each image, in pixels of the canvas."""
    labels: tuple[Tensor, ...]
    """(n,) int64 for each image, indices into `classes`."""
    names: tuple[str, ...]
    """Paths of the images in their folder or archive."""
    classes: tuple[str, ...]
    """Names of the classes."""
    source: str
    """Description of the data's origin, for logs."""
    messages: tuple[str, ...] = ()
    """Lines for the user: what was converted and left out while reading, and remarks on the annotations."""
    splits: tuple[AnySplit | None, ...] = ()
    """Split of each image that a folder or an annotation file is named after; empty: none has one."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def take(self, indices: Sequence[int]) -> BoxSet:
        """Select images by indices, in that order."""
        index = torch.tensor(list(indices), dtype=torch.int64)
        return dataclasses.replace(
            self,
            images=self.images[index],
            sizes=self.sizes[index],
            scales=self.scales[index],
            boxes=tuple(self.boxes[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
            splits=tuple(self.splits[i] for i in indices) if self.splits else (),
        )

    def picture(self, index: int) -> np.ndarray:
        """Return an image (h, w, 3) uint8 without the rest of its canvas."""
        height, width = self.sizes[index].tolist()
        return np.ascontiguousarray(self.images[index, :, :height, :width].permute(1, 2, 0).numpy())

    @property
    def counts(self) -> dict[str, int]:
        """Number of boxes of each class."""
        every = torch.cat([*self.labels, torch.zeros(0, dtype=torch.int64)])
        numbers = torch.bincount(every, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, numbers, strict=True))


def load_boxes(
    data: str,
    *,
    image_side: int,
    data_dir: Path | None = None,
    background: Background = "auto",
    progress: Progress | None = None,
) -> BoxSet:
    """Load all annotated images of a folder or archive.

    Args:
        data: name of a folder or of `<name>.zip` in `data_dir`, or a path to one, with PASCAL VOC's XML, COCO's JSON or
            YOLO's text files (see `core.data.box_files`).
        image_side: longer side of an image on its canvas, in pixels.
        data_dir: folder of named data sets; None: $ZEROKARA_DATA, else ~/.cache/zerokara.
        background: color behind transparent pixels.
        progress: callback.

    Raises:
        UserError: the data do not exist, have no valid boxes, or do not fit in memory.
    """
    path = require_data(data, data_dir, "images with boxes (PASCAL VOC, COCO or YOLO)")
    audit = Audit()
    with opened(path, audit) as (members, read):
        listing = read_boxes(members, read, path)
        audit.notes += listing.audit.notes
        audit.left_out += listing.audit.left_out
        audit.converted.update(listing.audit.converted)
        left_out_before = len(audit.left_out)
        audit.left_out += listing.unusable.values()
        readable, canvases, scales, boxes = [], [], [], []
        frames: Counter[tuple[str, str]] = Counter()
        cut = 0
        for index, annotated in enumerate(listing.pictures):
            if progress is not None and (index % 64 == 63 or index + 1 == len(listing.pictures)):
                progress(f"images read from {path}", index + 1, len(listing.pictures))
            try:
                image_HWC, unit_4, frame = _read_image(annotated, read, path, background, audit)
            except UserError as error:
                audit.left_out.append(str(error))
                continue
            picture, scale = resize_to(image_HWC, image_side)
            raw_n4 = np.array([box for _, box in annotated.boxes]).reshape(-1, 4)
            placed_n4 = torch.from_numpy(raw_n4 * unit_4 * scale)
            inside_n4 = clip(placed_n4, *picture.shape[:2])
            reaches_out_n = ((placed_n4 - inside_n4).abs() > MAX_CUT_PIXELS).any(1)
            cut += int((reaches_out_n & (inside_n4[:, 2:] > inside_n4[:, :2]).all(1)).sum())
            boxes.append(inside_n4.float())
            readable.append(annotated)
            canvases.append(picture)
            scales.append(scale)
            frames.update([frame] if frame else [])
    if not canvases:
        raise UserError(f"No annotated image in {path} can be used. {audit.left_out[-1]}")
    audit.check_left_out(left_out_before, len(readable), str(path))
    listing.pictures = readable
    if cut:
        audit.notes.append(
            format_count(
                cut,
                "box reaches beyond its image and is cut at the edges",
                "boxes reach beyond their images and are cut at the edges",
            )
        )
    audit.notes += [format_count(number, *note) for note, number in frames.items()]
    return _assemble(listing, canvases, scales, boxes, path, audit)


def _read_image(
    annotated: AnnotatedImage, read: Read, path: Path, background: Background, audit: Audit
) -> tuple[np.ndarray, np.ndarray, tuple[str, str] | None]:
    """Read the image of an annotation.

    Returns:
        The image (H, W, 3) uint8; factors (4,) from the numbers of its boxes to its pixels; and a remark if the
        annotation states another size than that of the image.

    Raises:
        UserError: the image cannot be decoded, or has another shape than the annotation states.
    """
    name, content = f"{annotated.picture} in {path}", read(annotated.picture)
    as_shown, as_stored = Audit(), Audit()
    image_HWC = convert_channels(decode(content, name, background=background, audit=as_shown), grayscale=False)
    height, width = image_HWC.shape[:2]
    used, unit_4 = as_shown, np.ones(4)
    note: tuple[str, str] | None = None
    stated_width, stated_height = annotated.size or (width, height)
    if annotated.relative:
        unit_4 = np.array([width, height] * 2, float)
    elif (stated_width, stated_height) != (width, height):
        raw_HWC = image_HWC
        if (stated_width, stated_height) == (height, width):
            raw_HWC = decode(content, name, background=background, apply_exif=False, audit=as_stored)
            raw_HWC = convert_channels(raw_HWC, grayscale=False)
        if raw_HWC.shape[:2] == (stated_height, stated_width):
            image_HWC, used = raw_HWC, as_stored
            note = NOT_TURNED
        elif abs(width * stated_height / stated_width - height) <= 1:  # the same shape, up to rounding
            unit_4 = np.array([width / stated_width, height / stated_height] * 2)
            note = SCALED
        else:
            raise UserError(
                f"{name} has {width}x{height} pixels, but {annotated.annotation_file} states "
                f"{stated_width}x{stated_height}."
            )
    audit.converted.update(used.converted)
    return image_HWC, unit_4, note


def _assemble(
    listing: Listing, pictures: list[np.ndarray], scales: list[float], boxes: list[Tensor], path: Path, audit: Audit
) -> BoxSet:
    """Assemble the set, without boxes that lie completely outside of their image."""
    kept, labels = [], []
    numbers = {name: number for number, name in enumerate(listing.classes)}
    splits = tuple(annotated.split for annotated in listing.pictures)
    for annotated, boxes_n4 in zip(listing.pictures, boxes, strict=True):
        sound_n = (boxes_n4[:, 2:] > boxes_n4[:, :2]).all(1)
        for (label, box), sound in zip(annotated.boxes, sound_n.tolist(), strict=True):
            if not sound:
                values = ", ".join(f"{value:g}" for value in box)
                audit.left_out.append(f"{label} ({values}) outside of the image in {annotated.annotation_file}.")
        kept.append(boxes_n4[sound_n])
        labels.append(torch.tensor([numbers[label] for label, _ in annotated.boxes], dtype=torch.int64)[sound_n])
    audit.notes += _classes_without_training(listing, labels)
    if not sum(map(len, labels)):
        reason = f" The first was left out: {audit.left_out[0]}" if audit.left_out else ""
        raise UserError(f"{path} has no box with an area above 0: give images with boxes.{reason}")
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    needed, free = len(pictures) * 3 * height * width, psutil.virtual_memory().available
    if needed > free * 0.8:
        raise UserError(
            f"The {len(pictures):,} images of {path} need {needed / 2**30:,.1f} GiB at {width}x{height}, but "
            f"{free / 2**30:,.1f} GiB of memory are free: give a smaller --image-side."
        )
    return BoxSet(
        images=torch.from_numpy(np.stack([pad_to_canvas(picture, height, width) for picture in pictures])),
        sizes=torch.tensor([picture.shape[:2] for picture in pictures], dtype=torch.int64),
        scales=torch.tensor(scales, dtype=torch.float64),
        boxes=tuple(kept),
        labels=tuple(labels),
        names=tuple(annotated.picture for annotated in listing.pictures),
        classes=listing.classes,
        source=f"{path.stem} ({listing.format_name} in {path})",
        messages=audit.messages(),
        splits=splits if len(set(splits)) > 1 else (),  # a single folder train/ holds all images
    )


def _classes_without_training(listing: Listing, labels: Sequence[Tensor]) -> list[str]:
    """Return a remark on classes with boxes in other splits, but none in the training images."""
    found: dict[AnySplit | None, set[int]] = {}
    for annotated, labels_n in zip(listing.pictures, labels, strict=True):
        found.setdefault(annotated.split, set()).update(labels_n.tolist())
    if "train" not in found:
        return []
    lacking = sorted((found.get("val", set()) | found.get("test", set())) - found["train"])
    names = ", ".join(listing.classes[number] for number in lacking)
    return [f"no training image has a box of the class {names}"] if lacking else []


def resize_to(image_HWC: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """Resize an image so that its longer side is `side` pixels, and return it with the scale factor.

    Downscaling averages areas; upscaling is bilinear.
    """
    height, width = image_HWC.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return image_HWC, 1.0
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image_HWC), shape, interpolation=interpolation), scale


def pad_to_canvas(picture_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Place an image in the upper left corner of a canvas (3, height, width) filled with its mean color."""
    canvas = np.empty((3, height, width), np.uint8)
    canvas[:] = picture_HWC.mean((0, 1)).round()[:, None, None]
    canvas[:, : picture_HWC.shape[0], : picture_HWC.shape[1]] = picture_HWC.transpose(2, 0, 1)
    return canvas


def split(boxes: BoxSet, seed: int, *, named: bool = True) -> tuple[BoxSet, BoxSet, BoxSet]:
    """Split into training, validation and test images.

    With `named`, the splits are used that folders or annotation files are named after, if there are any; without a
    test split, the validation images are the test images, and without validation images a tenth of the training images
    is held out. Otherwise a tenth is for validation and a fifth for testing. What is held out depends only on the seed.

    Raises:
        UserError: there are fewer than ten images, or splits without training or test images.
    """
    number = len(boxes)
    if number < 10:
        raise UserError(f"{boxes.source} has {format_count(number, 'image')}, too few for a split: give at least 10.")
    if named and boxes.splits:
        return _named_splits(boxes, seed)
    order = np.random.default_rng(seed).permutation(number)
    num_test, num_validation = round(number * TEST_FRACTION), max(1, round(number * VALIDATION_FRACTION))
    parts = order[num_test + num_validation :], order[num_test : num_test + num_validation], order[:num_test]
    train, validation, test = (boxes.take(sorted(part.tolist())) for part in parts)
    return train, validation, test


def _named_splits(boxes: BoxSet, seed: int) -> tuple[BoxSet, BoxSet, BoxSet]:
    """Return the splits that folders or annotation files are named after; images outside of them are not used."""
    if unused := [name for name, part in zip(boxes.names, boxes.splits, strict=True) if part is None]:
        boxes = dataclasses.replace(boxes, messages=(*boxes.messages, describe_without_split(unused)))
    indices = {name: [i for i, part in enumerate(boxes.splits) if part == name] for name in ("train", "val", "test")}
    if not indices["test"]:
        indices["test"], indices["val"] = indices["val"], []
        boxes = dataclasses.replace(boxes, messages=(*boxes.messages, VALIDATION_IS_TEST))
    if len(indices["train"]) < 2 or not indices["test"]:
        found = ", ".join(f"{len(rows):,} {name}" for name, rows in indices.items())
        raise UserError(
            f"{boxes.source} has folders or files named after splits, but too few images in them ({found}): add images "
            f"to train and test, or rename the folders."
        )
    if not indices["val"]:
        order = np.random.default_rng(seed).permutation(indices["train"]).tolist()
        held_out = max(1, round(len(order) * VALIDATION_FRACTION))
        indices["val"], indices["train"] = sorted(order[:held_out]), sorted(order[held_out:])
    return boxes.take(indices["train"]), boxes.take(indices["val"]), boxes.take(indices["test"])
