"""IDX, the file format of MNIST (http://yann.lecun.com/exdb/mnist): magic number, big-endian sizes, values.

Shapes: N images, H, W pixels.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from zerokara.core.config import UserError, error_summary, format_count
from zerokara.core.data.types import ImageSet, Split, image_set

# Data types by the third byte of the magic number.
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CHUNK_BYTES = 2**24
MAX_BYTES = 2**32
_REPLACE = "replace it with an undamaged copy; files of MNIST and Fashion-MNIST that are removed are downloaded again"


@dataclass(frozen=True)
class IdxLayout:
    """Names of the files of a data set, and how images and labels are stored."""

    prefixes: Mapping[Split, str]
    """Beginning of the names of both files of a split."""
    transposed: bool = False
    """Images are stored column by column."""
    first_label: int = 0
    """Label of the first class."""


MNIST = IdxLayout({"train": "train", "test": "t10k"})


def read_idx(path: Path) -> np.ndarray:
    """Read the array of an IDX file, raw or gzipped, in native byte order.

    Raises:
        UserError: the file is missing, damaged, truncated or too long, or its magic number is wrong.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _read(cast(BinaryIO, gzip.open(file)) if zipped else file, path)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is damaged or truncated ({error_summary(error)}): {_REPLACE}.") from None
    except OSError as error:
        raise UserError(f"{path} could not be read ({error_summary(error)}): {_REPLACE}.") from None


def _read(file: BinaryIO, path: Path) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= 8:
        raise UserError(
            f"{path} is not an IDX file: it begins with {magic.hex() or 'nothing'}, expected 00000803 (images) or "
            f"00000801 (labels); {_REPLACE}."
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise UserError(f"{path} ends within its header: {_REPLACE}.")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    dtype = np.dtype(DTYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    # Read in chunks, because a damaged header may request more than fits in memory. One byte more than expected is
    # read to detect files that are too long.
    values = bytearray()
    while len(values) <= min(expected, MAX_BYTES) and (
        chunk := file.read(min(CHUNK_BYTES, expected + 1 - len(values)))
    ):
        values += chunk
    if len(values) != expected:
        found = f"{len(values):,}" if len(values) < expected else "more"
        raise UserError(
            f"{path} should contain {' x '.join(map(str, shape))} values ({expected:,} bytes) according to its header, "
            f"but contains {found}: {_REPLACE}."
        )
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def load_idx(folder: Path, split: Split, classes: Sequence[str], title: str, layout: IdxLayout = MNIST) -> ImageSet:
    """Load a split of MNIST, or of a set in the same format, from a folder of IDX files.

    Raises:
        UserError: a file is missing or damaged, or images and labels do not belong together.
    """
    prefix = layout.prefixes[split]
    images_path, labels_path = _find(folder, f"{prefix}-images", 3), _find(folder, f"{prefix}-labels", 1)
    images_NHW, labels_N = read_idx(images_path), read_idx(labels_path)
    if images_NHW.ndim != 3 or images_NHW.dtype != np.uint8 or not images_NHW.size:
        raise UserError(
            f"{images_path} contains {images_NHW.dtype} values of shape {images_NHW.shape}, expected uint8 images of "
            f"shape (N, H, W): replace it with the file of images."
        )
    if labels_N.ndim != 1 or labels_N.dtype != np.uint8 or len(labels_N) != len(images_NHW):
        raise UserError(
            f"{labels_path} contains {labels_N.dtype} values of shape {labels_N.shape}, but {images_path.name} has "
            f"{format_count(len(images_NHW), 'image')}: use two files that belong together."
        )
    first, last = layout.first_label, layout.first_label + len(classes) - 1
    if wrong := [label for label in (int(labels_N.min()), int(labels_N.max())) if not first <= label <= last]:
        raise UserError(
            f"{labels_path} has the label {wrong[-1]}, but {title} has {len(classes)} classes, {first} to {last}: "
            f"replace it with the labels of {title}."
        )
    if layout.transposed:
        images_NHW = images_NHW.transpose(0, 2, 1)
    source = f"{title} ({split}), IDX files in {folder}"
    return image_set(images_NHW[:, None], labels_N - np.uint8(first), tuple(classes), source)


def has_idx(folder: Path, split: Split, layout: IdxLayout = MNIST) -> bool:
    """Return True if the folder has both files of a split."""
    return all(_names(folder, f"{layout.prefixes[split]}-{what}") for what in ("images-idx3", "labels-idx1"))


def _find(folder: Path, stem: str, axes: int) -> Path:
    """Find the file of a stem such as "train-images"."""
    if found := _names(folder, f"{stem}-idx{axes}"):
        return found[0]
    raise UserError(f"There is no {stem}-idx{axes}-ubyte or {stem}-idx{axes}-ubyte.gz in {folder}: put it there.")


def _names(folder: Path, stem: str) -> list[Path]:
    """List the files of a stem, raw before gzipped. Some tools write "train-images.idx3" for "train-images-idx3"."""
    stems = (stem, ".idx".join(stem.rsplit("-idx", 1)))
    names = [f"{base}-ubyte{suffix}" for base in stems for suffix in ("", ".gz")]
    return [folder / name for name in names if (folder / name).is_file()]
