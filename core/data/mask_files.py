"""File layouts of images with masks, in a folder or zip: CamVid, PASCAL VOC, or any pair of folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zerokara.core.config import UserError, format_count
from zerokara.core.data.audit import check_fraction
from zerokara.core.data.image_files import LOSSY_SUFFIXES, SUFFIXES, is_hidden
from zerokara.core.data.label_colors import FILE as LABEL_COLORS
from zerokara.core.data.label_colors import LabelColors, read_label_colors
from zerokara.core.data.reading_rules import active_rules
from zerokara.core.data.splits import VALIDATION_IS_TEST, AnySplit, known_splits, named_split, split_of

IMAGES = frozenset({"images", "image", "imgs", "img", "jpegimages"})
OBJECTS = "segmentationobject"  # folder of PASCAL VOC with masks of single objects, which are no classes
MASKS = frozenset({"masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass"})
ANNOT = "annot"  # suffix of CamVid's folders of masks, such as trainannot
MASK_SUFFIXES = SUFFIXES - LOSSY_SUFFIXES  # lossy compression changes class numbers
MARKS = ("_mask", "_label", "_labels", "_seg", "_L")  # suffixes of a mask's name
NAMES = "classes.txt"
EVERY = 10  # a missing split consists of every tenth image
CAMVID = (*("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),)
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = "ImageSets/Segmentation"
VOC_LIST = LISTS + "/{}.txt"


class Pair(NamedTuple):
    """Paths of an image and of its mask, in their folder or archive."""

    image: str
    mask: str


@dataclass(frozen=True)
class Listing:
    """Images and masks of a folder or archive."""

    layout: str
    """Name of the file layout."""
    splits: Mapping[AnySplit, list[Pair]]
    """All three splits; none is empty."""
    classes: tuple[str, ...]
    """Names of the classes; empty if unknown."""
    unlabeled: int
    """Class number of unlabeled pixels."""
    left_out: tuple[str, ...] = ()
    """One sentence for each image without a mask."""
    colors: LabelColors = ()
    """Colors of the classes, of masks in color; empty if masks hold class numbers."""
    notes: tuple[str, ...] = ()
    """Remarks on the splits."""


def list_pairs(
    members: Sequence[str],
    read: Callable[[str], bytes],
    where: str,
    masks: tuple[Sequence[str], Callable[[str], bytes], str] | None = None,
) -> Listing:
    """List images with their masks, sorted by path.

    Supported layouts:
    - folders `<split>/` and `<split>annot/` (CamVid);
    - folders `images/` and `masks/` (or other common names), above or below the folders of the splits, or without
      splits;
    - the lists of PASCAL VOC;
    - the export "Segmentation mask 1.1" of CVAT: JPEGImages/, SegmentationClass/, the colors of the classes in
      labelmap.txt, and lists of the splits (Train.txt, Validation.txt, Test.txt), if there are any.

    An image and its mask have the same name; a mask's name may end with _mask, _label, _labels, _seg or _L. A
    classes.txt has one class name per line. A missing split consists of every tenth image of the existing ones; if only
    train and val exist, val becomes the test split.

    Args:
        members: paths in the folder or archive.
        read: function that returns the bytes of a path.
        where: name of the folder or archive, for messages.
        masks: paths in a separate folder or archive of masks, a function that reads them, and its name.

    Raises:
        UserError: none of the layouts was found, no image has a mask, there are too few images, labelmap.txt is
            invalid, or more than a tenth of the pairs that PASCAL VOC's lists name do not exist.
    """
    members = [name for name in members if not is_hidden(name)]
    tables = [name for name in members if name.rpartition("/")[2] == NAMES]
    classes = _read_classes(read(tables[0]), f"{tables[0]} in {where}") if tables else ()
    masks_named, read_mask, masks_where = masks or (members, read, where)
    masks_named = [name for name in masks_named if not is_hidden(name)]
    colors = _label_colors(masks_named, read_mask, masks_where)
    if colors:
        classes = tuple(name for name, _ in colors)
    elif masks is None and (lists := [name for name in members if f"/{name}".endswith("/" + VOC_LIST.format("train"))]):
        root = lists[0].removesuffix(VOC_LIST.format("train"))
        found, lacking = _voc(members, read, where, root)
        check_fraction(lacking, sum(map(len, found.values())), where)
        splits, notes = _divide(found, where)
        return Listing("PASCAL VOC", splits, classes or VOC, 255, lacking, notes=notes)
    of_camvid = masks is None and any(part.endswith(ANNOT) for name in members for part in name.split("/")[:-1])
    left_out: list[str] = []
    keyed = _by_key([name for name in masks_named if _is_mask(name, alone=masks is not None)], left_out, is_mask=True)
    folders = {key[:-1] for key in keyed}
    pictures = [name for name in members if _suffix(name) in SUFFIXES and not (masks is None and _in_mask_folder(name))]
    images = _by_key([name for name in pictures if _key(name, is_mask=False)[:-1] in folders], left_out, is_mask=False)
    left_out += [
        f"{name} in {where} is in a folder without masks."
        for name in pictures
        if _key(name, is_mask=False)[:-1] not in folders
    ]
    lossy = [n for n in masks_named if _suffix(n) in LOSSY_SUFFIXES and (masks is not None or _in_mask_folder(n))]
    if lossy:
        left_out.insert(
            0,
            f"{masks_where} has {format_count(len(lossy), 'mask')} in a format whose compression changes class "
            f"numbers, such as {lossy[0]}: save masks as PNG.",
        )
    if not images:
        raise UserError(
            f"There are no images with masks in {where}: expected train/<name>.jpg with trainannot/<name>.png, "
            f"images/<name>.jpg with masks/<name>.png, PASCAL VOC's folders, or a folder of masks with --masks."
            + "".join(f" {line}" for line in left_out[: len(lossy[:1])])
        )
    by_split: dict[str, list[Pair]] = {}
    listed = _listed_splits(masks_named, read_mask) if colors else {}
    for key, name in images.items():
        *folder, stem = key
        mask = next((keyed[m] for mark in ("", *MARKS) if (m := (*folder, stem + mark)) in keyed), None)
        if mask is None:
            left_out.append(f"{name} in {where} has no mask: add {stem}.png to the other masks in {masks_where}.")
            continue
        split = listed.get(key) or split_of(name) or ""
        by_split.setdefault(split, []).append(Pair(name, mask))
    if not by_split:
        raise UserError(left_out[0])
    if unused := sorted(set(keyed.values()) - {pair.mask for pairs in by_split.values() for pair in pairs}):
        left_out += [f"{name} in {masks_where} has no image of its name." for name in unused]
    layout = "CamVid's folders" if of_camvid else "colored masks of CVAT" if colors else "pairs of folders"
    class_names = classes or (CAMVID if of_camvid else ())
    unlabeled = len(CAMVID) if of_camvid and not classes else 255
    splits, notes = _divide(by_split, where)
    return Listing(layout, splits, class_names, unlabeled, tuple(left_out), colors, notes)


def _read_classes(content: bytes, where: str) -> tuple[str, ...]:
    """Return the lines of a list of classes.

    Raises:
        UserError: it is not in UTF-8, or has a class twice.
    """
    try:
        names = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{where} is not in UTF-8: save it in this encoding.") from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where} has the class {twice[0]!r} twice: give each class a name of its own.")
    return tuple(names)


def _voc(
    members: Iterable[str], read: Callable[[str], bytes], where: str, root: str
) -> tuple[dict[str, list[Pair]], tuple[str, ...]]:
    """List the pairs of PASCAL VOC's lists by split, and one sentence for each that lacks a file.

    A test list without masks, as in the challenge, is ignored.

    Raises:
        UserError: a list has no pair whose files exist.
    """
    there = set(members)
    by_split: dict[str, list[Pair]] = {}
    left_out: list[str] = []
    for split in ("train", "val", "test"):
        table = root + VOC_LIST.format(split)
        names = _text(read(table)).split() if table in there else []
        pairs = [Pair(f"{root}JPEGImages/{name}.jpg", f"{root}SegmentationClass/{name}.png") for name in names]
        if split == "test" and not any(pair.mask in there for pair in pairs):
            continue
        lacking = {pair: path for pair in pairs for path in reversed(pair) if path not in there}
        by_split[split] = [pair for pair in pairs if pair not in lacking]
        left_out += [f"{where} lacks {path}, which {table} lists." for path in lacking.values()]
        if pairs and not by_split[split]:
            raise UserError(f"{left_out[-1][:-1]}: add it and the others, or correct the list.")
    return by_split, tuple(left_out)


def _label_colors(members: Iterable[str], read: Callable[[str], bytes], where: str) -> LabelColors:
    """Read the colors of the classes, if there are any.

    Raises:
        UserError: a labelmap.txt is invalid, or two of them differ.
    """
    maps = [name for name in members if name.rpartition("/")[2] == LABEL_COLORS]
    found = {read_label_colors(_text(read(name)), f"{name} in {where}") for name in maps}
    if len(found) > 1:
        raise UserError(
            f"{where} has different classes in {' and '.join(maps[:2])}: give one {LABEL_COLORS} for all masks."
        )
    return found.pop() if found else ()


def _listed_splits(members: Iterable[str], read: Callable[[str], bytes]) -> dict[tuple[str, ...], AnySplit]:
    """Return the split of each image that a list of CVAT names, by its key."""
    splits: dict[tuple[str, ...], AnySplit] = {}
    for table in members:
        folder, _, file = f"/{table}".rpartition("/")
        if not folder.endswith("/" + LISTS) or (split := known_splits().get(file.removesuffix(".txt").lower())) is None:
            continue
        root = folder[1:].removesuffix(LISTS)
        names = [f"{root}{line.strip()}." for line in _text(read(table)).splitlines() if line.strip()]
        splits |= {_key(name, is_mask=False): split for name in names}
    return splits


def _divide(found: Mapping[str, list[Pair]], where: str) -> tuple[dict[AnySplit, list[Pair]], tuple[str, ...]]:
    """Create the three splits from the existing ones, and remarks on them."""
    notes: tuple[str, ...] = ()
    splits = {split: pairs for split, pairs in found.items() if pairs}
    if "" in splits and len(splits) > 1:
        splits.pop("")  # images outside of the folders of the splits
    everything = splits.pop("", None) or (splits["train"] if set(splits) == {"train"} else None)
    if everything is not None:
        rest, test = _every_tenth(everything, where)
        train, val = _every_tenth(rest, where)
        return {"train": train, "val": val, "test": test}, notes
    if "train" not in splits:
        raise UserError(f"{where} has {' and '.join(splits)} but no train: add training images in train.")
    if "test" not in splits:
        splits["test"], notes = splits.pop("val"), (VALIDATION_IS_TEST,)
    if "val" not in splits:
        splits["train"], splits["val"] = _every_tenth(splits["train"], where)
    return {"train": splits["train"], "val": splits["val"], "test": splits["test"]}, notes


def _every_tenth(pairs: list[Pair], where: str) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into the others and every tenth pair (the first, the eleventh, ...)."""
    if len(pairs) < 2:
        raise UserError(f"{where} has too few images for training and testing: add images, at least 3 are needed.")
    return [pair for i, pair in enumerate(pairs) if i % EVERY], pairs[::EVERY]


def _is_mask(name: str, *, alone: bool) -> bool:
    """Return True if a path is a mask. With `alone`, masks are in a separate folder, and all image files are masks."""
    of_objects = any(part.lower() == OBJECTS for part in name.split("/")[:-1])
    return _suffix(name) in MASK_SUFFIXES and (alone or _in_mask_folder(name)) and not of_objects


def _in_mask_folder(name: str) -> bool:
    """Return True if a folder of a path is named after masks."""
    return any(
        part.lower() in MASKS | {OBJECTS} or (part.endswith(ANNOT) and part != ANNOT) for part in name.split("/")[:-1]
    )


def _key(name: str, *, is_mask: bool) -> tuple[str, ...]:
    """Return folders and stem, which are equal for an image and its mask. Names of one split are equal, too."""
    *folders, file = name.split("/")
    if is_mask:
        kept = [part.removesuffix(ANNOT) if part != ANNOT else part for part in folders if part.lower() not in MASKS]
    else:
        kept = [part for part in folders if part.lower() not in IMAGES]
    if active_rules().version >= 2:
        kept = [named_split(part) or part for part in kept]
    return (*kept, file.rpartition(".")[0])


def _by_key(names: Sequence[str], left_out: list[str], *, is_mask: bool) -> dict[tuple[str, ...], str]:
    """Return images or masks by their keys. Of several with one key, as of a.jpg and a.png, the first is used."""
    keyed: dict[tuple[str, ...], str] = {}
    for name in names:
        keyed.setdefault(_key(name, is_mask=is_mask), name)
    firsts = {name: keyed[_key(name, is_mask=is_mask)] for name in names}
    left_out += [f"{name} has the name of {first}, which is used." for name, first in firsts.items() if name != first]
    return keyed


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig", "replace")
