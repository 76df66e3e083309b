"""Image files of a GAN: those of a split of a folder, a zip file or LSUN databases, with their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from zerokara.core.config import UserError
from zerokara.core.data import Progress, Split, lsun
from zerokara.core.data.audit import Audit
from zerokara.core.data.folders import count_others, is_image, opened, test_split
from zerokara.core.data.image_files import is_hidden
from zerokara.core.data.splits import AnySplit, describe_subfolders, find_split_folders
from zerokara.core.data.stylegan_labels import FILE, LAYOUT, keep_labeled, read_labels

TEST_EVERY = 10  # without a test folder every tenth image is a test image
MIN_READABLE_SIDE = 8  # pixels
MIN_SIDE, MAX_SIDE = 28, 256  # pixels, of the images that the networks generate

Member = tuple[str, str, Callable[[], bytes]]  # name, class, function that reads its bytes


@contextmanager
def open_members(
    path: Path, split: Split, audit: Audit, progress: Progress | None
) -> Iterator[tuple[list[Member], str]]:
    """Open a folder, zip file or LSUN database, and yield the images of a split and a description of them.

    Args:
        path: of the folder, which may have subfolders, or of the file.
        split: train or test.
        audit: gets the files that are not images, and those that cannot be used.
        progress: callback.

    Raises:
        UserError: the file or the labels cannot be read.
    """
    if path.is_dir() and (databases := lsun.databases(path)):
        with ExitStack() as stack:
            members = [
                part for name, splits in databases.items() for part in _lsun(name, splits, split, stack, progress)
            ]
            yield members, "images"
        return
    with opened(path, audit) as (everything, read):
        files = [name for name in everything if not name.endswith("/") and not is_hidden(name)]
        images = [name for name in files if is_image(name)]
        labels = read_labels(files, read, str(path))
        known = () if labels is None else (FILE,)
        others = [name for name in files if not is_image(name)]
        count_others([name for name in others if name.rpartition("/")[2] not in known], audit)
        if labels:  # of StyleGAN's dataset tool, whose folders are not classes
            images = keep_labeled(images, labels, audit)
        chosen = _split(images, split, path, audit)
        if labels is not None:
            chosen = [(name, labels.get(name, "all")) for name, _ in chosen]
        layout = f"images with {LAYOUT}" if labels else "images"
        yield [(name, label, partial(read, name)) for name, label in chosen], layout


def check_readable_side(size: tuple[int, int], name: str) -> None:
    """Check that an image of size (H, W) is large enough to be resized.

    Raises:
        UserError: it has a side below MIN_READABLE_SIDE.
    """
    height, width = size
    if min(size) < MIN_READABLE_SIDE:
        raise UserError(f"{name} has {width}x{height} pixels: at least {MIN_READABLE_SIDE} per side are needed.")


def _split(images: list[str], split: Split, path: Path, audit: Audit) -> list[tuple[str, str]]:
    """Return the images of a split and their classes.

    The class is the first folder of an image, apart from the folders of the splits (see `core.data.splits`); "all"
    without such a folder. Without folders of the splits, every tenth image is a test image.
    """
    folders = find_split_folders(images, str(path))
    part: AnySplit | None = None
    if folders.level is not None:
        part = "train" if split == "train" else test_split(folders)
        audit.notes += folders.describe_unused(images)
    below = [(name, parts) for name in images if (parts := folders.below(name, part))]
    subfolders: dict[str, set[str]] = {}
    for _, parts in below:
        subfolders.setdefault(_class(parts), set()).update(parts[1:2] if len(parts) > 2 else [])
    audit.notes += describe_subfolders(subfolders)
    if part is None:
        below = [each for index, each in enumerate(below) if (index % TEST_EVERY == 0) == (split == "test")]
    return [(name, _class(parts)) for name, parts in below]


def _class(parts: list[str]) -> str:
    """Return the class of an image: its first folder, or "all"."""
    return parts[0] if len(parts) > 1 else "all"


def _lsun(
    category: str, splits: Mapping[Split, Path], split: Split, stack: ExitStack, progress: Progress | None
) -> Iterator[Member]:
    """Yield the images of a split of an LSUN database; it stays open as long as the stack."""
    keys, read = stack.enter_context(lsun.opened(splits.get(split, splits["train"]), progress))
    for index, key in enumerate(keys):
        if "test" in splits or (index % TEST_EVERY == 0) == (split == "test"):
            yield key, category, partial(read, key)
