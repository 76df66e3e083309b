"""EMNIST (Cohen et al. 2017): handwritten letters and digits in the format of MNIST, read from its published files.

The six data sets have files such as emnist-letters-train-images-idx3-ubyte.gz. Images are stored transposed, and the
labels of letters begin at 1.
"""

from __future__ import annotations

import string
from pathlib import Path

from zerokara.core.config import UserError
from zerokara.core.data.idx import IdxLayout, has_idx, load_idx
from zerokara.core.data.types import ImageSet, Split

# Capitals of these letters look like small ones: they are one class, which has the name of the capital.
MERGED = (*string.digits, *string.ascii_uppercase, *"abdefghnqrt")
CLASSES: dict[str, tuple[str, ...]] = {
    "byclass": (*string.digits, *string.ascii_uppercase, *string.ascii_lowercase),
    "bymerge": MERGED,
    "balanced": MERGED,
    "letters": tuple(string.ascii_uppercase),
    "digits": tuple(string.digits),
    "mnist": tuple(string.digits),
}
PREFIX = "emnist-"
NAMES = tuple(f"{PREFIX}{part}" for part in CLASSES)
SUBFOLDERS = ("emnist", "emnist/gzip", "emnist/raw", "EMNIST/raw", "gzip", "")  # the archive has the folder gzip


def find_emnist(name: str, data_dir: Path, split: Split) -> Path | None:
    """Return the folder with the files of a split, one of the usual folders in `data_dir`; None if there is none."""
    folders = (data_dir / below for below in (name, *SUBFOLDERS))
    return next((folder for folder in folders if has_idx(folder, split, _layout(name))), None)


def load_emnist(name: str, data_dir: Path, split: Split) -> ImageSet:
    """Load a split of one of the data sets from a folder, or from usual folders in it.

    Args:
        name: one of `NAMES`.
        data_dir: folder of named data sets.
        split: "train" or "test".

    Raises:
        UserError: there are no such files, or they are damaged.
    """
    part, layout = name.removeprefix(PREFIX), _layout(name)
    if (folder := find_emnist(name, data_dir, split)) is None:
        files = " and ".join(f"{name}-{split}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1"))
        raise UserError(
            f"There is no EMNIST in {data_dir}: unpack its archive gzip.zip there, so that it contains "
            f"gzip/{files}, or give the folder of these files with --data-dir."
        )
    return load_idx(folder, split, CLASSES[part], f"EMNIST {part}", layout)


def _layout(name: str) -> IdxLayout:
    prefixes: dict[Split, str] = {"train": f"{name}-train", "test": f"{name}-test"}
    return IdxLayout(prefixes, transposed=True, first_label=int(name == f"{PREFIX}letters"))


def check_no_emnist(folder: Path) -> None:
    """Check that a folder of images does not hold files of EMNIST, which are found by name.

    Raises:
        UserError: it does.
    """
    files = [path.name for path in folder.glob(f"{PREFIX}*-images*")] if folder.is_dir() else []
    if found := [name for name in NAMES if any(file.startswith(f"{name}-t") for file in files)]:
        raise UserError(f"{folder} has files of EMNIST: give --data {found[0]} --data-dir {folder}.")
