"""Images with segmentation masks.

train = load_masks("camvid", "train")
test = load_masks("camvid", "test", classes=train.classes)

Shapes: N images, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zerokara.core.choices import Background
from zerokara.core.config import UserError, format_count
from zerokara.core.data.audit import Audit
from zerokara.core.data.folders import opened
from zerokara.core.data.image_files import (
    allocate_images,
    convert_channels,
    decode,
    decode_mask,
    resize_and_crop,
    resize_and_crop_mask,
)
from zerokara.core.data.label_colors import LabelColors
from zerokara.core.data.mask_files import Listing, Pair, list_pairs
from zerokara.core.data.sources import require_data
from zerokara.core.data.splits import AnySplit
from zerokara.core.data.survey import survey
from zerokara.core.data.types import Images, Progress

MAX_EXAMPLE = 10  # values that a message names as an example
UNLABELED = 255  # number of unlabeled pixels in all masks of a MaskSet, independent of the files


@dataclass(frozen=True)
class MaskSet(Images):
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
    messages: tuple[str, ...] = ()
    """Lines for the user: values of the masks, and what was left out while reading."""

    def __post_init__(self) -> None:
        """Check shapes, types and class numbers.

        Raises:
            ValueError: a shape or dtype is wrong, or a mask has a number without a class.
        """
        super().__post_init__()
        number, _, height, width = self.images.shape
        if self.masks.shape != (number, height, width) or self.masks.dtype != torch.uint8:
            raise ValueError(f"masks must be {(number, height, width)} uint8, got {tuple(self.masks.shape)}")
        if int(torch.where(self.masks == UNLABELED, 0, self.masks).max()) >= len(self.classes):
            raise ValueError(f"masks must hold indices of {len(self.classes)} classes, or {UNLABELED}")

    def take(self, index: Tensor | slice | Sequence[int]) -> MaskSet:
        """Select images by a slice, indices (n,), or a boolean mask (N,). The order of the indices is kept."""
        chosen = torch.arange(len(self))[index if isinstance(index, slice | Tensor) else list(index)]
        names = tuple(self.names[i] for i in chosen.tolist())
        return dataclasses.replace(self, images=self.images[chosen], masks=self.masks[chosen], names=names)


def load_masks(
    data: str,
    split: AnySplit,
    *,
    masks: str = "",
    data_dir: Path | None = None,
    image_size: tuple[int, int] | None = None,
    grayscale: bool = False,
    classes: Sequence[str] = (),
    unlabeled: int | None = None,
    mask_values: Sequence[int] = (),
    background: Background = "auto",
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
        classes: names of the classes; empty: from classes.txt, labelmap.txt or the layout, else numbered as in the
            masks of this split.
        unlabeled: number of unlabeled pixels in the files; None: 11 for CamVid's classes, else 255 (unless it is one of
            `mask_values`).
        mask_values: numbers of the classes in the files, such as (0, 255); empty: 0, 1, 2, ...
        background: color behind transparent pixels of the images.
        progress: callback.

    Raises:
        UserError: the data do not exist; no image has a usable mask; a mask has a number without a class; images have
            different sizes and `image_size` is None; there are fewer than two classes, or fewer than two of them have
            pixels in the training masks.
    """
    audit = Audit()
    with _opened(data, masks, data_dir, audit) as (path, listing, read, read_mask):
        audit.left_out += listing.left_out
        audit.notes += listing.notes if split == "train" else ()
        class_names = tuple(classes) or listing.classes
        default = listing.unlabeled if class_names == listing.classes else UNLABELED
        where = (str(path), masks or str(path))
        pairs, colors = listing.splits[split], listing.colors
        read_pairs = _read_all(
            pairs, read, read_mask, where, image_size, grayscale, colors, background, audit, progress
        )
    if mask_values and class_names and len(mask_values) != len(class_names):
        raise UserError(
            f"--mask-values names {len(mask_values)} values, but there are {len(class_names)} classes: give one value "
            f"for each class, in their order."
        )
    if len({*mask_values, *([] if unlabeled is None else [unlabeled])}) < len(mask_values) + (unlabeled is not None):
        raise UserError(
            "A value of --mask-values occurs twice, or is that of --unlabeled: give each class a value of its own."
        )
    ignored = unlabeled
    if ignored is None:
        ignored = None if default in mask_values else default
    values = tuple(mask_values) or tuple(range(len(class_names) or _last_value(read_pairs, ignored) + 1))
    remedy = _remedy(read_pairs.counts, unlabeled)
    if not class_names and split == "train" and (empty := [value for value in values if not read_pairs.counts[value]]):
        raise UserError(
            f"The masks of {split} in {path} have {_format_values(read_pairs.counts, (), ignored)}, and no pixel of "
            f"class {empty[0]}: list all --classes, or {remedy}."
        )
    class_names = class_names or tuple(f"class {number}" for number in range(len(values)))
    what = f"The masks of {split} in {path}"
    if len(class_names) < 2:
        raise UserError(
            f"{what} have 1 class ({_format_values(read_pairs.counts, values, ignored)}), but segmentation needs at "
            f"least 2: {remedy}."
        )
    _check_values(read_pairs, values, ignored, what, remedy, in_training=split == "train")
    table = np.full(256, UNLABELED, np.uint8)
    table[list(values)] = np.arange(len(values))
    if ignored is not None:
        table[ignored] = UNLABELED
    audit.notes.insert(0, f"{what}: {_format_values(read_pairs.counts, values, ignored, class_names)}")
    if lacking := [name for name, value in zip(class_names, values, strict=True) if not read_pairs.counts[value]]:
        audit.notes.append(f"no pixel of {split} has the class {', '.join(lacking)}")
    return MaskSet(
        torch.from_numpy(read_pairs.images_NCHW),
        torch.from_numpy(table[read_pairs.masks_NHW]),
        class_names,
        tuple(Path(pair.image).stem for pair in read_pairs.pairs),
        f"{path.stem} ({split}), {listing.layout} in {path}",
        audit.messages(),
    )


def training_lumas(data: str, masks: str, data_dir: Path | None, progress: Progress | None) -> list[float]:
    """Return the luma of each training image with transparency, see `Survey`.

    Args:
        data: as for `load_masks`.
        masks: as for `load_masks`.
        data_dir: as for `load_masks`.
        progress: callback.

    Raises:
        UserError: as `load_masks`, without reading an image.
    """
    with _opened(data, masks, data_dir, Audit()) as (path, listing, read, _):
        files = [(pair.image, partial(read, pair.image)) for pair in listing.splits["train"]]
        return survey(files, str(path), progress).lumas


@contextmanager
def _opened(
    data: str, masks: str, data_dir: Path | None, audit: Audit
) -> Iterator[tuple[Path, Listing, Callable[[str], bytes], Callable[[str], bytes]]]:
    """Open the images and the masks; yields the path, the pairs, and functions that read images and masks.

    Raises:
        UserError: there are no such data, or no pairs in them.
    """
    path = require_data(data, data_dir, "images and masks")
    with ExitStack() as stack:
        members, read = stack.enter_context(opened(path, audit))
        apart, read_mask = None, read
        if masks:
            masks_place = Path(masks).expanduser()
            if not masks_place.exists():
                raise UserError(f"There is no {masks}: give the folder or zip of the masks with --masks.")
            masks_members, read_mask = stack.enter_context(opened(masks_place, audit))
            apart = (masks_members, read_mask, masks)
        yield path, list_pairs(members, read, str(path), apart), read, read_mask


@dataclass(frozen=True)
class _ReadPairs:
    """Images and masks as they are in the files."""

    pairs: list[Pair]
    images_NCHW: np.ndarray
    masks_NHW: np.ndarray
    counts: np.ndarray  # (256,) pixels of each value in all masks
    first: dict[int, str]  # value -> the first mask that has it


def _last_value(found: _ReadPairs, unlabeled: int | None) -> int:
    """Return the largest value of labeled pixels; 0 if there are none."""
    return max((value for value in np.flatnonzero(found.counts).tolist() if value != unlabeled), default=0)


def _remedy(counts: np.ndarray, unlabeled: int | None) -> str:
    """Return the advice of messages, with the values of the masks as the example if they are few."""
    found = [value for value in np.flatnonzero(counts).tolist() if value != unlabeled]
    example = " ".join(map(str, found if 2 <= len(found) <= MAX_EXAMPLE else (0, 255)))
    return f"if other values are the classes, name them in their order, as in --mask-values {example}"


def _check_values(
    found: _ReadPairs, values: Sequence[int], unlabeled: int | None, what: str, remedy: str, *, in_training: bool
) -> None:
    """Check that the values of the masks fit the classes.

    Raises:
        UserError: a value belongs to no class, no pixel is labeled, or in training only one class has pixels.
    """
    present = np.flatnonzero(found.counts).tolist()
    labeled = [value for value in present if value in values and value != unlabeled]
    if wrong := [value for value in present if value not in values and value != unlabeled]:
        expected = f"0 to {len(values) - 1}" if list(values) == list(range(len(values))) else f"the values {values}"
        raise UserError(
            f"{found.first[wrong[0]]} has pixels of class {wrong[0]}, but there are {len(values)} classes, {expected}, "
            f"and {'no value' if unlabeled is None else unlabeled} for unlabeled pixels (all masks: "
            f"{_format_values(found.counts, values, unlabeled)}): correct it, list all --classes, give the number of "
            f"unlabeled pixels with --unlabeled, or {remedy}."
        )
    if not labeled:
        raise UserError(f"{what} have no labeled pixel: give other masks, another --unlabeled, or {remedy}.")
    if in_training and len(labeled) < 2:
        raise UserError(
            f"{what} have pixels of only one class ({_format_values(found.counts, values, unlabeled)}), so there is "
            f"nothing to learn: {remedy}."
        )


def _format_values(
    counts: np.ndarray, values: Sequence[int], unlabeled: int | None, classes: Sequence[str] = ()
) -> str:
    """Format the histogram of the values as text: "values 0 (sky) 91.2%, 255 (unlabeled) 8.8%"."""
    names = dict(zip(values, classes, strict=False)) | ({unlabeled: "unlabeled"} if unlabeled is not None else {})
    total = max(1, int(counts.sum()))
    parts = [
        f"{value}{f' ({names[value]})' if value in names else ''} {counts[value] / total:.1%}"
        for value in np.flatnonzero(counts).tolist()
    ]
    return "values " + ", ".join(parts)


def _read_all(
    pairs: Sequence[Pair],
    read: Callable[[str], bytes],
    read_mask: Callable[[str], bytes],
    where: tuple[str, str],
    image_size: tuple[int, int] | None,
    grayscale: bool,
    colors: LabelColors,
    background: Background,
    audit: Audit,
    progress: Progress | None,
) -> _ReadPairs:
    """Read images and masks; `where` is the folder of the images and that of the masks.

    Pairs that cannot be read, or whose sizes differ, are left out.

    Raises:
        UserError: no pair can be used, or images have different sizes and `image_size` is None.
    """
    images_NCHW = masks_NHW = None
    kept: list[Pair] = []
    left_out_before, not_turned = len(audit.left_out), 0
    counts, first = np.zeros(256, np.int64), dict[int, str]()
    for index, pair in enumerate(pairs):
        if progress is not None and (index % 64 == 63 or index + 1 == len(pairs)):
            progress(f"images with masks read from {where[0]}", index + 1, len(pairs))
        name = f"{pair.mask} in {where[1]}"
        try:
            content, trial = read(pair.image), Audit()
            image_HWC = decode(content, f"{pair.image} in {where[0]}", background=background, audit=trial)
            mask_HW = decode_mask(read_mask(pair.mask), name, colors)
            if mask_HW.shape == image_HWC.shape[1::-1] != image_HWC.shape[:2]:  # drawn on the image as it is stored
                raw = Audit()
                raw_HWC = decode(content, pair.image, background=background, apply_exif=False, audit=raw)
                if raw_HWC.shape[:2] == mask_HW.shape:
                    image_HWC, trial, not_turned = raw_HWC, raw, not_turned + 1
            if mask_HW.shape != image_HWC.shape[:2]:
                raise UserError(
                    f"{name} has {_size(mask_HW)} pixels, but its image {pair.image} has {_size(image_HWC)}: "
                    f"give a mask of the same size as its image."
                )
        except UserError as error:
            audit.left_out.append(str(error))
            continue
        audit.converted.update(trial.converted)
        in_mask = np.bincount(mask_HW.ravel(), minlength=256)
        counts += in_mask
        first = dict.fromkeys(np.flatnonzero(in_mask).tolist(), name) | first
        if image_size is not None:
            image_HWC, mask_HW = resize_and_crop(image_HWC, image_size), resize_and_crop_mask(mask_HW, image_size)
        image_CHW = convert_channels(image_HWC, grayscale).transpose(2, 0, 1)
        if images_NCHW is None or masks_NHW is None:
            images_NCHW = allocate_images(len(pairs), image_CHW.shape, where[0])
            masks_NHW = np.empty((len(pairs), *mask_HW.shape), np.uint8)
        if image_CHW.shape != images_NCHW.shape[1:]:
            height, width = images_NCHW.shape[2:]
            raise UserError(
                f"{pair.image} in {where[0]} has {_size(image_HWC)} pixels, but {kept[0].image} has {width}x{height}: "
                f"resize all with --image-size {height} {width}, or other numbers."
            )
        images_NCHW[len(kept)], masks_NHW[len(kept)] = image_CHW, mask_HW
        kept.append(pair)
    if images_NCHW is None or masks_NHW is None:
        raise UserError(f"No image with its mask in {where[0]} can be used. {audit.left_out[-1]}")
    audit.check_left_out(left_out_before, len(kept), where[0])
    if not_turned:
        audit.notes.append(
            format_count(
                not_turned,
                "image is not turned by its EXIF orientation, as its mask is not",
                "images are not turned by their EXIF orientation, as their masks are not",
            )
        )
    return _ReadPairs(kept, images_NCHW[: len(kept)], masks_NHW[: len(kept)], counts, first)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
