"""Images with segmentation masks.

train = load_masks("camvid", "train")
test = load_masks("camvid", "test", classes=train.classes)

Shapes: N images, C channels, H, W pixels, K classes.
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
from zerokara.core.data.image_files import (
    allocate_images,
    convert_channels,
    decode,
    decode_mask,
    resize_and_crop,
    resize_and_crop_mask,
)
from zerokara.core.data.mask_files import MaskSplit, Pair, list_pairs
from zerokara.core.data.sources import data_folder, find_data, list_data
from zerokara.core.data.types import Progress

UNLABELED = 255  # number of unlabeled pixels in all masks of a MaskSet, independent of the files


@dataclass(frozen=True)
class MaskSet:
    """Images of one size with their masks, on the CPU as uint8. Small sets are copied to the device once."""

    images: Tensor
    """(N, C, H, W) uint8."""
    masks: Tensor
    """(N, H, W) uint8, indices into `classes`, or UNLABELED."""
    classes: tuple[str, ...]
    """Names of the classes."""
    names: tuple[str, ...]
    """File names of the images, without folder and suffix."""
    source: str
    """Description of the images' origin, for logs."""

    def __post_init__(self) -> None:
        """Check shapes, types and class numbers.

        Raises:
            ValueError: a shape or dtype is wrong, or a mask has a number without a class.
        """
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, got {tuple(self.images.shape)} {self.images.dtype}")
        number, _, height, width = self.images.shape
        if self.masks.shape != (number, height, width) or self.masks.dtype != torch.uint8:
            raise ValueError(f"masks must be {(number, height, width)} uint8, got {tuple(self.masks.shape)}")
        if int(torch.where(self.masks == UNLABELED, 0, self.masks).max()) >= len(self.classes):
            raise ValueError(f"masks must hold indices of {len(self.classes)} classes, or {UNLABELED}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor | slice | Sequence[int]) -> MaskSet:
        """Select images by a slice, indices (n,), or a boolean mask (N,). The order of the indices is kept."""
        chosen = torch.arange(len(self))[index if isinstance(index, slice | Tensor) else list(index)]
        names = tuple(self.names[i] for i in chosen.tolist())
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
    unlabeled: int | None = None,
    progress: Progress | None = None,
) -> MaskSet:
    """Load the images of one split with their masks.

    Args:
        data: folder or zip, by its path or by its name in `data_dir`; see `list_pairs` for the supported layouts.
        split: "train", "val" or "test"; a missing split is held out of the existing ones.
        masks: a separate folder or zip of masks; empty: the masks are in `data`.
        data_dir: folder of named data sets; None: $ZEROKARA_DATA, else ~/.cache/zerokara.
        image_size: (H, W) to which images and masks are resized; None: no resizing, all must have the same size.
        grayscale: True: one channel, False: three.
        classes: names of the classes; empty: from classes.txt or the layout, else numbered as in the masks of this
            split.
        unlabeled: number of unlabeled pixels in the files; None: 11 for CamVid's classes, else 255.
        progress: callback.

    Raises:
        UserError: the data do not exist; a mask is missing, damaged or has colors; a mask has another size than its
            image or a number without a class; images have different sizes and `image_size` is None; there are fewer
            than two classes.
    """
    folder = data_folder(data_dir)
    if (path := find_data(data, folder)) is None:
        raise UserError(
            f"There is no data set {data!r}{suggest(data, list_data(folder))}: give the path of a folder or zip of "
            f"images and masks, or the name of one in {folder}."
        )
    with ExitStack() as stack:
        members, read = stack.enter_context(opened(path))
        apart, read_mask = None, read
        if masks:
            masks_place = Path(masks).expanduser()
            if not masks_place.exists():
                raise UserError(f"There is no {masks}: give the folder or zip of the masks with --masks.")
            masks_members, read_mask = stack.enter_context(opened(masks_place))
            apart = (masks_members, masks)
        listing = list_pairs(members, read, str(path), apart)
        class_names = tuple(classes) or listing.classes
        default = listing.unlabeled if class_names == listing.classes else UNLABELED
        ignored = default if unlabeled is None else unlabeled
        pairs = listing.splits[split]
        images_NCHW, masks_NHW = _read_all(
            pairs,
            read,
            read_mask,
            (str(path), masks or str(path)),
            image_size,
            grayscale,
            len(class_names),
            ignored,
            progress,
        )
    labeled = masks_NHW[masks_NHW != UNLABELED]
    if not class_names:
        class_names = tuple(f"class {label}" for label in range(int(labeled.max(initial=0)) + 1))
    if len(class_names) < 2:
        raise UserError(f"The masks of {split} in {path} have {len(class_names)} class: segmentation needs at least 2.")
    if not labeled.size:
        raise UserError(f"No pixel of {split} in {path} is labeled: give other masks, or another --unlabeled.")
    return MaskSet(
        torch.from_numpy(images_NCHW),
        torch.from_numpy(masks_NHW),
        class_names,
        tuple(Path(pair.image).stem for pair in pairs),
        f"{path.stem} ({split}), {listing.layout} in {path}",
    )


def _read_all(
    pairs: Sequence[Pair],
    read: Callable[[str], bytes],
    read_mask: Callable[[str], bytes],
    where: tuple[str, str],
    image_size: tuple[int, int] | None,
    grayscale: bool,
    classes: int,
    unlabeled: int,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read images (N, C, H, W) and masks (N, H, W); `where` is the folder of the images and that of the masks."""
    images_NCHW = masks_NHW = None
    for index, pair in enumerate(pairs):
        image_HWC = decode(read(pair.image), f"{pair.image} in {where[0]}")
        name = f"{pair.mask} in {where[1]}"
        mask_HW = decode_mask(read_mask(pair.mask), name)
        if mask_HW.shape != image_HWC.shape[:2]:
            raise UserError(
                f"{name} has {_size(mask_HW)} pixels, but its image {pair.image} has {_size(image_HWC)}: "
                f"give a mask of the same size as its image."
            )
        mask_HW = _numbered(mask_HW, name, classes, unlabeled)
        if image_size is not None:
            image_HWC, mask_HW = resize_and_crop(image_HWC, image_size), resize_and_crop_mask(mask_HW, image_size)
        image_CHW = convert_channels(image_HWC, grayscale).transpose(2, 0, 1)
        if images_NCHW is None or masks_NHW is None:
            images_NCHW = allocate_images(len(pairs), image_CHW.shape, where[0])
            masks_NHW = np.empty((len(pairs), *mask_HW.shape), np.uint8)
        if image_CHW.shape != images_NCHW.shape[1:]:
            height, width = images_NCHW.shape[2:]
            raise UserError(
                f"{pair.image} in {where[0]} has {_size(image_HWC)} pixels, but {pairs[0].image} has {width}x{height}: "
                f"resize all with --image-size {height} {width}, or other numbers."
            )
        images_NCHW[index], masks_NHW[index] = image_CHW, mask_HW
        if progress is not None and (index % 64 == 63 or index + 1 == len(pairs)):
            progress(f"reading {where[0]}", index + 1, len(pairs))
    assert images_NCHW is not None, "a split has no images"
    assert masks_NHW is not None, "a split has no masks"
    return images_NCHW, masks_NHW


def _numbered(mask_HW: np.ndarray, name: str, classes: int, unlabeled: int) -> np.ndarray:
    """Replace the files' number of unlabeled pixels by UNLABELED and check all others; 0 classes: unknown."""
    labeled_HW = mask_HW != unlabeled
    max_class = int(mask_HW.max(where=labeled_HW, initial=0))
    if max_class >= (classes or UNLABELED):
        found = f"there are {classes} classes, 0 to {classes - 1}" if classes else "the last class can be 254"
        raise UserError(
            f"{name} has pixels of class {max_class}, but {found}, and {unlabeled} for unlabeled pixels: correct it, "
            f"list all --classes, or give the number of unlabeled pixels with --unlabeled."
        )
    return np.where(labeled_HW, mask_HW, UNLABELED).astype(np.uint8)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
