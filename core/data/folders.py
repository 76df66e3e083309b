"""Image sets in class folders, in a folder or zip: `<class>/<image>`, optionally with folders of the splits."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from zerokara.core.choices import Background
from zerokara.core.config import UserError, error_summary, format_count
from zerokara.core.data import lsun
from zerokara.core.data.audit import Audit
from zerokara.core.data.file_reading import read_file, read_member
from zerokara.core.data.image_files import (
    SUFFIXES,
    UNSUPPORTED_SUFFIXES,
    decode_all,
    is_hidden,
)
from zerokara.core.data.splits import (
    VALIDATION_IS_TEST,
    AnySplit,
    SplitFolders,
    describe_subfolders,
    find_split_folders,
)
from zerokara.core.data.stylegan_labels import FILE, LAYOUT, keep_labeled, read_labels
from zerokara.core.data.types import ImageSet, Progress, Split, image_set

EVERY = 10  # without a test folder, every tenth image of each class (the first, the eleventh, ...) is a test image


@dataclass
class Listing:
    """Images of one folder of class folders."""

    classes: dict[str, list[str]] = field(default_factory=dict)
    """Class -> sorted paths of its images."""
    others: list[str] = field(default_factory=list)
    """Paths of files without an image suffix."""
    subfolders: dict[str, set[str]] = field(default_factory=dict)
    """Class -> names of the folders with images in its folder."""


def load_folders(
    path: Path,
    split: Split,
    image_size: int | None,
    grayscale: bool | None,
    progress: Progress | None,
    background: Background = "auto",
) -> ImageSet:
    """Load one split of a folder or zip of class folders, or of LSUN databases.

    Folders of the splits (train, val, test, and other usual names; see `core.data.splits`) may be above or below the
    class folders. Test images are those of test/, else of val/; without both, every tenth image of each class (the
    first, the eleventh, ...), sorted by path. Hidden files are ignored. With a dataset.json of StyleGAN, its labels are
    the classes, and not the folders. What is converted, left out and ignored is in
    the `messages` of the result.

    Args:
        path: of the folder, zip or LSUN database.
        split: "train" or "test".
        image_size: see `decode_all`.
        grayscale: see `decode_all`.
        progress: callback.
        background: color behind transparent pixels.

    Raises:
        UserError: there are no class folders, a class has no readable images, test/ has a class that train/ lacks, or
            images have different sizes and `image_size` is None.
    """
    audit = Audit()
    if path.is_dir() and (databases := lsun.databases(path)):
        return _load_lsun(path, databases, split, image_size, grayscale, progress, background, audit)
    with opened(path, audit) as (members, read):
        labels = read_labels(members, read, str(path))
        listings, layout = _splits(members, path, audit) if labels is None else _labeled(members, labels, path, audit)
        listing = listings[split]
        audit.notes += describe_subfolders(listing.subfolders)
        names = [name for pictures in listing.classes.values() for name in pictures]
        images_NCHW, kept = decode_all(
            names, read, str(path), image_size, grayscale, progress, background=background, audit=audit
        )
    count_others(listing.others, audit)
    classes = tuple(listings["train"].classes)
    if lacking := [name for name in classes if not listing.classes.get(name)]:
        audit.notes.append(f"no {split} image has the class {', '.join(lacking)}")
    counts = [len(listing.classes.get(name, ())) for name in classes]
    labels_N = np.repeat(np.arange(len(classes)), counts)[kept]
    if len(unreadable := np.setdiff1d(np.flatnonzero(counts), labels_N)):
        first = listing.classes[classes[unreadable[0]]][0]
        reason = next((line for line in audit.left_out if first in line), "")
        raise UserError(f"No image of the class {classes[unreadable[0]]!r} in {path} is readable: {reason}")
    jpeg = ", JPEG" if {_suffix(names[index]) for index in kept} <= {".jpg", ".jpeg"} else ""
    source = f"{path.stem} ({split}), {layout} in {path}{jpeg}"
    return image_set(images_NCHW, labels_N, classes, source, audit.messages())


def training_files(path: Path, progress: Progress | None) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Iterate over the training images of `load_folders`: names, and functions that read.

    Raises:
        UserError: as `load_folders`, without reading an image.
    """
    if path.is_dir() and (databases := lsun.databases(path)):
        for splits in databases.values():
            with lsun.opened(splits["train"], progress) as (keys, read):
                chosen = keys if "test" in splits else _select_split(keys, "train")
                yield from ((key, partial(read, key)) for key in chosen)
        return
    with opened(path) as (members, read):
        labels = read_labels(members, read, str(path))
        listings, _ = _splits(members, path, Audit()) if labels is None else _labeled(members, labels, path, Audit())
        names = [name for pictures in listings["train"].classes.values() for name in pictures]
        yield from ((name, partial(read, name)) for name in names)


def count_others(paths: Sequence[str], audit: Audit) -> None:
    """Count files that are not images by their suffix, and name formats of images that cannot be read here."""
    for name in paths:
        suffix = _suffix(name) if "." in name.rpartition("/")[2] else "without a suffix"
        if suffix in UNSUPPORTED_SUFFIXES:
            audit.left_out.append(f"{name} has a format that cannot be read here: save it as PNG or JPEG.")
        else:
            audit.ignored[suffix] += 1


@contextmanager
def opened(path: Path, audit: Audit | None = None) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Open a folder or zip; yields the paths inside (folders end with "/") and a function that reads a file.

    Args:
        path: of the folder or zip.
        audit: gets a note about links that are not followed.

    Raises:
        UserError: a folder cannot be read, or the zip is damaged.
    """
    if path.is_dir():
        yield sorted(_walk(path, audit or Audit())), lambda name: read_file(path / name)
        return
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # noqa: BLE001  (zipfile raises many types on damaged archives)
        raise UserError(
            f"{path} is not a valid zip archive ({error_summary(error)}): give a folder or zip of class folders."
        ) from None
    with archive:
        infos = archive.infolist()
        if links := {info.filename for info in infos if stat.S_ISLNK(info.external_attr >> 16)}:
            notes = [] if audit is None else audit.notes
            number = format_count(len(links), "link")
            notes.append(f"not followed: {number} in {path}, such as {min(links)}: archive the files")
        names = {_with_slashes(info.filename): info.filename for info in infos if info.filename not in links}
        yield sorted(names), lambda name: read_member(archive, names[name])


def _with_slashes(name: str) -> str:
    r"""Return a path in an archive with "/" between folders; some programs on Windows write "\\"."""
    return name if "/" in name else name.replace("\\", "/")


def _walk(folder: Path, audit: Audit) -> Iterator[str]:
    """Iterate over all paths below the folder.

    A symbolic link to a folder is followed if that folder is outside of the tree, so that every image is read once.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename} could not be read ({error_summary(error)}): check its permissions, or remove it."
        )

    top = folder.resolve()
    followed: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        for name in sorted(folders):
            link = Path(root, name)
            if not link.is_symlink():
                continue
            target = link.resolve()
            known = (top, *followed)
            if any(target.is_relative_to(one) or one.is_relative_to(target) for one in known):
                folders.remove(name)
                if link.parent.resolve().is_relative_to(target):
                    why = f"it is a link to {target}, a folder that holds it"
                elif any(target.is_relative_to(one) for one in known):
                    why = f"the images of {target} are read already"
                else:
                    why = f"{target} holds a folder that is read already"
                audit.notes.append(f"the link {link} is not followed: {why}")
            else:
                followed.append(target)
        inside = Path(root).relative_to(folder)
        yield from ((inside / name).as_posix() + "/" for name in folders)
        yield from ((inside / name).as_posix() for name in files)


def _splits(members: list[str], path: Path, audit: Audit) -> tuple[dict[Split, Listing], str]:
    """List the images of both splits, and describe the layout."""
    members = [name for name in members if not is_hidden(name.rstrip("/"))]
    images = [name for name in members if is_image(name)]
    folders = find_split_folders(images, str(path))
    if folders.level is None:
        everything = _list(members, folders, None, path)
        return {split: _every_tenth(everything, split, path) for split in ("train", "test")}, (
            f"class folders, every {EVERY}th image a test image,"
        )
    listings, layout = _split_by_folders(
        folders, images, lambda split: _list(members, folders, split, path), path, audit
    )
    return listings, f"class folders of {layout}"


def _split_by_folders(
    folders: SplitFolders, images: Sequence[str], list_split: Callable[[AnySplit], Listing], path: Path, audit: Audit
) -> tuple[dict[Split, Listing], str]:
    """List the images of the folders of both splits, and describe these folders."""
    test = test_split(folders)
    train, tested = (list_split(split) for split in ("train", test))
    if unknown := [name for name in tested.classes if name not in train.classes]:
        raise UserError(
            f"{path} has the class {unknown[0]!r} in {folders.names[test]}/ but not in {folders.names['train']}/: "
            f"both must have the same classes; rename or remove it."
        )
    alone = "" if test == "test" else f" ({VALIDATION_IS_TEST})"
    unused = "".join(f" ({name}/ is ignored)" for split, name in folders.names.items() if split not in ("train", test))
    audit.notes += folders.describe_unused(images)
    return {"train": train, "test": tested}, f"{folders.names['train']}/ and {folders.names[test]}/{alone}{unused}"


def _labeled(
    members: Sequence[str], labels: dict[str, str], path: Path, audit: Audit
) -> tuple[dict[Split, Listing], str]:
    """List the images of both splits by the labels of StyleGAN's dataset.json, and describe the layout."""
    if not labels:
        raise UserError(
            f"{path} has no classes, as its {FILE} says: give labels in this file, or remove it if the folders are the "
            f"classes."
        )
    pictures = sorted(name for name in members if is_image(name) and not is_hidden(name))
    labeled = keep_labeled(pictures, labels, audit)
    if missing := sorted(set(labels) - set(pictures)):
        number = format_count(len(missing), "label")
        audit.notes.append(f"not used: {number} in {FILE} without an image, such as that of {missing[0]}")
    if not labeled:
        raise UserError(f"{path} has none of the images in its {FILE}: add them, or remove the file.")
    folders = find_split_folders(labeled, str(path))
    if folders.level is None:
        everything = _list_labeled(labeled, labels)
        return {split: _every_tenth(everything, split, path) for split in ("train", "test")}, (
            f"{LAYOUT}, every {EVERY}th image a test image,"
        )

    def list_split(split: AnySplit) -> Listing:
        return _list_labeled([name for name in labeled if folders.below(name, split)], labels)

    listings, layout = _split_by_folders(folders, labeled, list_split, path, audit)
    return listings, f"{LAYOUT} in {layout}"


def _list_labeled(names: Sequence[str], labels: Mapping[str, str]) -> Listing:
    """List images by their labels, which are numbers."""
    listing = Listing({label: [] for label in sorted({labels[name] for name in names}, key=int)})
    for name in names:
        listing.classes[labels[name]].append(name)
    return listing


def test_split(folders: SplitFolders) -> AnySplit:
    """Return the split with the test images: test, else val."""
    return "test" if "test" in folders.names else "val"


def _list(members: list[str], folders: SplitFolders, split: AnySplit | None, path: Path) -> Listing:
    """List the class folders of a split. Images in their subfolders are included."""
    listing = Listing()
    for name in members:
        parts = folders.below(name, split)
        if len(parts) == 1 and not name.endswith("/"):  # a readme, a list of labels
            listing.others.append(name)
        elif parts:
            pictures = listing.classes.setdefault(parts[0], [])
            if is_image(name):
                pictures.append(name)
                listing.subfolders.setdefault(parts[0], set()).update(parts[1:2] if len(parts) > 2 else [])
            elif not name.endswith("/"):
                listing.others.append(name)
    below = folders.names[split] if split is not None and folders.level == 0 else ""
    where = f"{path}/{folders.root}{below}".rstrip("/")
    if not any(listing.classes.values()):
        flat = sum(map(is_image, listing.others))
        raise UserError(
            f"There are {f'{flat:,} images, but ' if flat else ''}no class folders with images in {where}: move the "
            f"images of each class into a folder with its name, as in {where}/<class>/<image>.png, and give --data "
            f"{path}."
        )
    if empty := [name for name, pictures in listing.classes.items() if not pictures]:
        raise UserError(f"The class folder {empty[0]!r} in {where} has no images: add images, or remove it.")
    return replace(listing, classes={name: sorted(listing.classes[name]) for name in sorted(listing.classes)})


def _every_tenth(listing: Listing, split: Split, path: Path) -> Listing:
    """Select the images of a split if there is no test folder: every tenth image is a test image."""
    if alone := [name for name, pictures in listing.classes.items() if len(pictures) < 2]:
        raise UserError(
            f"The class folder {alone[0]!r} in {path} has a single image: at least 2 are needed, one for "
            f"training and one for testing; add images, or sort them into train/ and test/."
        )
    return replace(
        listing, classes={name: _select_split(pictures, split) for name, pictures in listing.classes.items()}
    )


def _select_split(names: list[str], split: Split) -> list[str]:
    return [name for index, name in enumerate(names) if (index % EVERY == 0) == (split == "test")]


def is_image(name: str) -> bool:
    """Return True if a path has the suffix of an image."""
    return _suffix(name) in SUFFIXES


def _suffix(name: str) -> str:
    """Return the suffix of a file in lower case, such as ".png"."""
    return "." + name.rpartition(".")[2].lower()


def _load_lsun(
    path: Path,
    databases: dict[str, dict[Split, Path]],
    split: Split,
    image_size: int | None,
    grayscale: bool | None,
    progress: Progress | None,
    background: Background,
    audit: Audit,
) -> ImageSet:
    """Load one split of LSUN databases. Each category is a class."""
    parts, channels = [], 1
    for category, splits in databases.items():
        with lsun.opened(splits.get(split, splits["train"]), progress) as (keys, read):
            chosen = keys if "test" in splits else _select_split(keys, split)
            if not chosen:
                raise UserError(
                    f"The database of {category} in {path} has no {split} images: remove it, or add images."
                )
            where = f"{category} in {path}"
            images_NCHW, _ = decode_all(
                chosen, read, where, image_size, grayscale, progress, background=background, audit=audit
            )
            parts.append(images_NCHW)
        if parts[-1].shape[2:] != parts[0].shape[2:]:
            raise UserError(
                f"The images of {category} in {path} have another size than those of the categories before: "
                f"resize all with --image-size {min(parts[0].shape[2:])}, or another number."
            )
        channels = max(channels, parts[-1].shape[1])
    for index, part in enumerate(parts):  # replicate grayscale images if another class has color images
        if part.shape[1] < channels:
            parts[index] = np.repeat(part, channels, axis=1)
    images_NCHW = parts[0] if len(parts) == 1 else np.concatenate(parts)
    labels_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    source = f"LSUN {', '.join(databases)} ({split}), LMDB in {path}"
    return image_set(images_NCHW, labels_N, tuple(databases), source, audit.messages())
