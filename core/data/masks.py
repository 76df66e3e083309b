"""Photographs with a class for every pixel.

train = load_masks("camvid", "train")
test = load_masks("camvid", "test", classes=train.classes)

Shapes: N images, C colours, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zerokara.core.config import UserError, suggest
from zerokara.core.data.folders import opened
from zerokara.core.data.mask_files import MaskSplit, Pair, list_pairs
from zerokara.core.data.pictures import decode, decode_mask, fit, fit_mask, room, with_channels
from zerokara.core.data.sources import home, inside, locate
from zerokara.core.data.types import Progress

UNLABELLED = 255  # in every mask here, whatever the files have: nobody said what the pixel is


@dataclass(frozen=True)
class MaskSet:
    """Images of one size with their masks, on the CPU: what is small goes to the device once, as it is."""

    images: Tensor
    """(N, C, H, W) uint8."""
    masks: Tensor
    """(N, H, W) uint8, indices into `classes`, or UNLABELLED."""
    classes: tuple[str, ...]
    """Names of the classes."""
    names: tuple[str, ...]
    """Of the images, without folder and suffix."""
    source: str
    """Where they came from, in words, for logs."""

    def __post_init__(self) -> None:
        """Check that images, masks and classes belong together.

        Raises:
            ValueError: other shapes or types, or a number without a class.
        """
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, got {tuple(self.images.shape)} {self.images.dtype}")
        number, _, height, width = self.images.shape
        if self.masks.shape != (number, height, width) or self.masks.dtype != torch.uint8:
            raise ValueError(f"masks must be {(number, height, width)} uint8, got {tuple(self.masks.shape)}")
        if int(torch.where(self.masks == UNLABELLED, 0, self.masks).max()) >= len(self.classes):
            raise ValueError(f"masks must hold indices of {len(self.classes)} classes, or {UNLABELLED}")

    def __len__(self) -> int:
        """How many images."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor | slice | Sequence[int]) -> MaskSet:
        """The images of a slice, of indices (n,), or of a mask (N,) of bools, in that order."""
        chosen = torch.arange(len(self))[index if isinstance(index, slice | Tensor) else list(index)]
        names = tuple(self.names[place] for place in chosen.tolist())
        return dataclasses.replace(self, images=self.images[chosen], masks=self.masks[chosen], names=names)


def load_masks(
    data: str,
    split: MaskSplit,
    *,
    masks: str = "",
    data_dir: Path | None = None,
    image_size: tuple[int, int] | None = None,
    grayscale: bool = False,
    classes: Sequence[str] = (),
    unlabelled: int | None = None,
    progress: Progress | None = None,
) -> MaskSet:
    """The images of one split, with their masks.

    Args:
        data: a folder or zip, by its path or by its name in `data_dir`; `list_pairs` says how it may look.
        split: what is missing of the three is held out of what is there.
        masks: a folder or zip of its own that holds the masks; empty: they lie with the images.
        data_dir: where named data lie; None: $ZEROKARA_DATA, else ~/.cache/zerokara.
        image_size: (H, W) to which images and masks are brought; None: as they are, and all the same.
        grey: one channel, else three.
        classes: names of the classes; empty: what classes.txt or the form of the data says, else as many as the masks
            of this split have.
        unlabelled: the number in the files of pixels that nobody labelled; None: 11 for CamVid's classes, else 255.
        progress: told what is done, how much of it, and of how much.

    Raises:
        UserError: no such data, a missing, broken or coloured mask, one of another size than its image, a number that
            is no class, several sizes without `image_size`, fewer than two classes.
    """
    folder = home(data_dir)
    if (place := locate(data, folder)) is None:
        raise UserError(
            f"There are no data {data!r}{suggest(data, inside(folder))}: give a path to a folder or zip of images and "
            f"masks, or the name of one in {folder}."
        )
    with ExitStack() as stack:
        members, read = stack.enter_context(opened(place))
        apart, read_mask = None, read
        if masks:
            masks_place = Path(masks).expanduser()
            if not masks_place.exists():
                raise UserError(f"There is no {masks}: give the folder or zip that holds the masks with --masks.")
            masks_members, read_mask = stack.enter_context(opened(masks_place))
            apart = (masks_members, masks)
        listing = list_pairs(members, read, str(place), apart)
        known = tuple(classes) or listing.classes
        usual = listing.unlabelled if known == listing.classes else UNLABELLED
        ignored = usual if unlabelled is None else unlabelled
        pairs = listing.splits[split]
        images_NCHW, masks_NHW = _read_all(
            pairs,
            read,
            read_mask,
            (str(place), masks or str(place)),
            image_size,
            grayscale,
            len(known),
            ignored,
            progress,
        )
    labelled = masks_NHW[masks_NHW != UNLABELLED]
    if not known:
        known = tuple(f"class {label}" for label in range(int(labelled.max(initial=0)) + 1))
    if len(known) < 2:
        raise UserError(f"The masks of {split} in {place} know {len(known)} class: a segmentation needs at least 2.")
    if not labelled.size:
        raise UserError(f"No pixel of {split} in {place} is labelled: give other masks, or another --unlabelled.")
    return MaskSet(
        torch.from_numpy(images_NCHW),
        torch.from_numpy(masks_NHW),
        known,
        tuple(Path(pair.image).stem for pair in pairs),
        f"{place.stem} ({split}), {listing.form} in {place}",
    )


def _read_all(
    pairs: Sequence[Pair],
    read: Callable[[str], bytes],
    read_mask: Callable[[str], bytes],
    where: tuple[str, str],
    image_size: tuple[int, int] | None,
    grayscale: bool,
    classes: int,
    unlabelled: int,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W) and masks (N, H, W) of one size; `where` names the images' and the masks' place."""
    images_NCHW = masks_NHW = None
    for index, pair in enumerate(pairs):
        image_HWC = decode(read(pair.image), f"{pair.image} in {where[0]}")
        name = f"{pair.mask} in {where[1]}"
        mask_HW = decode_mask(read_mask(pair.mask), name)
        if mask_HW.shape != image_HWC.shape[:2]:
            raise UserError(
                f"{name} has {_size(mask_HW)} pixels and its image {pair.image} has {_size(image_HWC)}: "
                f"a mask must have a number for every pixel of its image; make it again."
            )
        mask_HW = _numbered(mask_HW, name, classes, unlabelled)
        if image_size is not None:
            image_HWC, mask_HW = fit(image_HWC, image_size), fit_mask(mask_HW, image_size)
        image_CHW = with_channels(image_HWC, grayscale).transpose(2, 0, 1)
        if images_NCHW is None or masks_NHW is None:
            images_NCHW = room(len(pairs), image_CHW.shape, where[0])
            masks_NHW = np.empty((len(pairs), *mask_HW.shape), np.uint8)
        if image_CHW.shape != images_NCHW.shape[1:]:
            height, width = images_NCHW.shape[2:]
            raise UserError(
                f"{pair.image} in {where[0]} has {_size(image_HWC)} pixels and {pairs[0].image} has {width}x{height}: "
                f"bring all to one size with --image-size {height} {width}, or other numbers."
            )
        images_NCHW[index], masks_NHW[index] = image_CHW, mask_HW
        if progress is not None and (index % 64 == 63 or index + 1 == len(pairs)):
            progress(f"reading {where[0]}", index + 1, len(pairs))
    assert images_NCHW is not None, "a split has no images"
    assert masks_NHW is not None, "a split has no masks"
    return images_NCHW, masks_NHW


def _numbered(mask_HW: np.ndarray, name: str, classes: int, unlabelled: int) -> np.ndarray:
    """The mask with UNLABELLED in place of the files' number, every other number checked; 0 classes: not known yet."""
    labelled_HW = mask_HW != unlabelled
    most = int(mask_HW.max(where=labelled_HW, initial=0))
    if most >= (classes or UNLABELLED):
        found = f"there are {classes} classes, 0 to {classes - 1}" if classes else "the last class can be 254"
        raise UserError(
            f"{name} has pixels of class {most}, and {found}, beside {unlabelled} for unlabelled pixels: mend it, "
            f"name all --classes, or give the number of unlabelled pixels with --unlabelled."
        )
    return np.where(labelled_HW, mask_HW, UNLABELLED).astype(np.uint8)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
