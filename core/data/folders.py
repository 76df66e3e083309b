"""Image sets in class folders, in a folder or zip: `<class>/<image>`, optionally under train/ and test/ (or val/)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zerokara.core.config import UserError, error_summary
from zerokara.core.data import lsun
from zerokara.core.data.image_files import SUFFIXES, decode_all, read_file, read_member
from zerokara.core.data.types import ImageSet, Progress, Split, image_set

TRAIN, TESTS = "train", ("test", "val")  # the first existing folder contains the test images
EVERY = 10  # without a test folder, every tenth image of each class (the first, the eleventh, ...) is a test image


@dataclass
class Listing:
    """Images of one folder of class folders."""

    classes: dict[str, list[str]] = field(default_factory=dict)
    """Class -> sorted paths of its images."""
    others: int = 0
    """Number of files without an image suffix."""


def load_folders(
    path: Path, split: Split, image_size: int | None, grayscale: bool | None, progress: Progress | None
) -> ImageSet:
    """Load one split of a folder or zip of class folders, or of LSUN databases.

    Test images are those of test/, else of val/, if train/ exists; otherwise every tenth image of each class (the
    first, the eleventh, ...), sorted by path. Hidden files are ignored. Files that are not images are ignored too, and
    their number is part of `source`.

    Args:
        path: of the folder, zip or LSUN database.
        split: "train" or "test".
        image_size: see `decode_all`.
        grayscale: see `decode_all`.
        progress: callback.

    Raises:
        UserError: there are no class folders, a class has no images, test/ has a class that train/ lacks, an image is
            damaged, or images have different sizes and `image_size` is None.
    """
    if path.is_dir() and (databases := lsun.databases(path)):
        return _load_lsun(path, databases, split, image_size, grayscale, progress)
    with opened(path) as (members, read):
        listings, folder = _splits(members, path)
        listing = listings[split]
        names = [name for pictures in listing.classes.values() for name in pictures]
        images_NCHW = decode_all(names, read, str(path), image_size, grayscale, progress)
    classes = tuple(listings["train"].classes)
    counts = [len(listing.classes.get(name, ())) for name in classes]
    kinds = {_suffix(name) for name in names}
    jpeg = ", JPEG" if kinds <= {".jpg", ".jpeg"} else ""
    others = f", {listing.others} other files ignored" if listing.others else ""
    source = f"{path.stem} ({split}), {folder} in {path}{jpeg}{others}"
    return image_set(images_NCHW, np.repeat(np.arange(len(classes)), counts), classes, source)


@contextmanager
def opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Open a folder or zip; yields the paths inside (folders end with "/") and a function that reads a file."""
    if path.is_dir():
        yield sorted(_walk(path)), lambda name: read_file(path / name)
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a valid zip archive ({error_summary(error)}): give a folder or zip of class folders."
        ) from None
    with archive:
        yield sorted(archive.namelist()), lambda name: read_member(archive, name)


def _walk(folder: Path) -> Iterator[str]:
    """Iterate over all paths below the folder. Symbolic links to folders are followed."""

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename} could not be read ({error_summary(error)}): check its permissions, or remove it."
        )

    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        inside = Path(root).relative_to(folder)
        yield from ((inside / name).as_posix() + "/" for name in folders)
        yield from ((inside / name).as_posix() for name in files)


def _splits(members: list[str], path: Path) -> tuple[dict[Split, Listing], str]:
    """List the images of both splits, and describe the layout."""
    members = [name for name in members if not any(_hidden(part) for part in name.split("/"))]
    pictures = [name for name in members if _is_picture(name)]
    root = ""
    # Archives often contain a single folder of their own name, and a download may consist of train/ only.
    while len(tops := {_parts(name, root)[0] for name in pictures}) == 1:
        if any(len(_parts(name, root)) < 3 for name in pictures):
            break
        root += f"{tops.pop()}/"
    tests = [name for name in TESTS if name in tops and TRAIN in tops]
    if not tests:
        everything = _list(members, root, path)
        return {split: _every_tenth(everything, split, path) for split in ("train", "test")}, (
            f"class folders, every {EVERY}th image a test image,"
        )
    test, *unread = tests
    train, tested = (_list(members, f"{root}{name}/", path) for name in (TRAIN, test))
    if unknown := [name for name in tested.classes if name not in train.classes]:
        raise UserError(
            f"{path} has the class {unknown[0]!r} in {test}/ but not in {TRAIN}/: "
            f"both must have the same class folders; rename or remove it."
        )
    unused = "".join(f" ({name}/ is ignored)" for name in unread)
    return {"train": train, "test": tested}, f"class folders of {TRAIN}/ and {test}/{unused}"


def _list(members: list[str], root: str, path: Path) -> Listing:
    """List the class folders directly under `root`. Images in their subfolders are included."""
    listing = Listing()
    for name in members:
        if not name.startswith(root) or name == root:
            continue
        parts = _parts(name, root)
        if len(parts) == 1 and not name.endswith("/"):  # a readme, a list of labels
            listing.others += 1
            continue
        pictures = listing.classes.setdefault(parts[0], [])
        if _is_picture(name):
            pictures.append(name)
        elif not name.endswith("/"):
            listing.others += 1
    where = f"{path}/{root}".rstrip("/")
    if not any(listing.classes.values()):
        raise UserError(f"There are no class folders with images in {where}: expected {where}/<class>/<image>.png.")
    if empty := [name for name, pictures in listing.classes.items() if not pictures]:
        raise UserError(f"The class folder {empty[0]!r} in {where} has no images: add images, or remove it.")
    return Listing({name: sorted(listing.classes[name]) for name in sorted(listing.classes)}, listing.others)


def _every_tenth(listing: Listing, split: Split, path: Path) -> Listing:
    """Select the images of a split if there is no test folder: every tenth image is a test image."""
    if alone := [name for name, pictures in listing.classes.items() if len(pictures) < 2]:
        raise UserError(
            f"The class folder {alone[0]!r} in {path} has a single image: at least 2 are needed, one for "
            f"training and one for testing; add images, or sort them into {TRAIN}/ and {TESTS[0]}/."
        )
    return Listing({name: _select_split(pictures, split) for name, pictures in listing.classes.items()}, listing.others)


def _select_split(names: list[str], split: Split) -> list[str]:
    return [name for index, name in enumerate(names) if (index % EVERY == 0) == (split == "test")]


def _parts(name: str, root: str) -> list[str]:
    return (
        name[len(root) :].rstrip("/").split("/")
    )  # pathlib takes ten times as long, and there may be millions of paths


def _is_picture(name: str) -> bool:
    return _suffix(name) in SUFFIXES


def _suffix(name: str) -> str:
    """Return the suffix of a file in lower case, such as ".png"."""
    return "." + name.rpartition(".")[2].lower()


def _hidden(part: str) -> bool:
    """Return True for files that operating systems create: .DS_Store, __MACOSX, Thumbs.db."""
    return part.startswith((".", "__MACOSX")) or part.lower() in {"thumbs.db", "desktop.ini"}


def _load_lsun(
    path: Path,
    databases: dict[str, dict[Split, Path]],
    split: Split,
    image_size: int | None,
    grayscale: bool | None,
    progress: Progress | None,
) -> ImageSet:
    """Load one split of LSUN databases. Each category is a class."""
    parts, channels = [], 1
    for category, splits in databases.items():
        with lsun.opened(splits.get(split, splits["train"])) as (keys, read):
            chosen = keys if "test" in splits else _select_split(keys, split)
            if not chosen:
                raise UserError(
                    f"The database of {category} in {path} has no {split} images: remove it, or add images."
                )
            parts.append(decode_all(chosen, read, f"{category} in {path}", image_size, grayscale, progress))
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
    return image_set(images_NCHW, labels_N, tuple(databases), f"LSUN {', '.join(databases)} ({split}), LMDB in {path}")
