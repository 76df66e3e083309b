"""IDX, the format of MNIST (http://yann.lecun.com/exdb/mnist): a magic number, big-endian sizes, then the values.

Shapes: N images, H, W pixels.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from zerokara.core.config import UserError, error_summary
from zerokara.core.data.types import ImageSet, Split, image_set

# the magic number's third byte
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
SPLIT_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
CHUNK_BYTES = 2**24


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, raw or gzipped, in the machine's byte order.

    Raises:
        UserError: the file is missing, has a wrong magic number, is truncated, too long, or damaged.
    """
    mend = "put a sound copy in its place, or remove it to have it downloaded again"
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _read(cast(BinaryIO, gzip.open(file)) if zipped else file, path)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is damaged or truncated ({error_summary(error)}): {mend}.") from None
    except OSError as error:
        raise UserError(f"{path} could not be read ({error_summary(error)}): {mend}.") from None


def _read(file: BinaryIO, path: Path) -> np.ndarray:
    mend = "put a sound copy in its place, or remove it to have it downloaded again"
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= 8:
        raise UserError(
            f"{path} is no IDX file: it begins with {magic.hex() or 'nothing'}, and 00000803 (images) or "
            f"00000801 (labels) was expected; {mend}."
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise UserError(f"{path} ends within its header: {mend}.")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    dtype = np.dtype(DTYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    # In pieces, since a damaged header may promise more than memory holds; one byte too many shows a file too long.
    values = bytearray()
    while len(values) <= expected and (chunk := file.read(min(CHUNK_BYTES, expected + 1 - len(values)))):
        values += chunk
    if len(values) != expected:
        found = f"{len(values):,}" if len(values) < expected else "more"
        raise UserError(
            f"{path} promises {' x '.join(map(str, shape))} values, {expected:,} bytes, and holds {found}: {mend}."
        )
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def load_idx(folder: Path, split: Split, classes: Sequence[str], title: str) -> ImageSet:
    """MNIST or a set in its form, from the folder of its IDX files.

    Raises:
        UserError: a file is missing or broken, or images and labels do not fit each other.
    """
    prefix = SPLIT_PREFIX[split]
    images_path, labels_path = _find(folder, f"{prefix}-images", 3), _find(folder, f"{prefix}-labels", 1)
    images_NHW, labels_N = read_idx(images_path), read_idx(labels_path)
    if images_NHW.ndim != 3 or images_NHW.dtype != np.uint8 or not images_NHW.size:
        raise UserError(
            f"{images_path} holds {images_NHW.dtype} values of shape {images_NHW.shape}: "
            f"images are (N, H, W) bytes; put the file of images there."
        )
    if labels_N.ndim != 1 or labels_N.dtype != np.uint8 or len(labels_N) != len(images_NHW):
        raise UserError(
            f"{labels_path} holds {labels_N.dtype} values of shape {labels_N.shape}, and {images_path.name} has "
            f"{len(images_NHW):,} images: put there two files that belong together."
        )
    if int(labels_N.max()) >= len(classes):
        raise UserError(
            f"{labels_path} has the label {int(labels_N.max())}, and {title} has {len(classes)} classes: "
            f"put there the labels of {title}."
        )
    return image_set(images_NHW[:, None], labels_N, tuple(classes), f"{title} ({split}), IDX files in {folder}")


def has_idx(folder: Path, split: Split) -> bool:
    """Whether the folder has both files of a split."""
    return all(_names(folder, f"{SPLIT_PREFIX[split]}-{what}") for what in ("images-idx3", "labels-idx1"))


def _find(folder: Path, stem: str, axes: int) -> Path:
    """The file of a stem such as "train-images"."""
    if found := _names(folder, f"{stem}-idx{axes}"):
        return found[0]
    raise UserError(f"There is no {stem}-idx{axes}-ubyte or {stem}-idx{axes}-ubyte.gz in {folder}: put it there.")


def _names(folder: Path, stem: str) -> list[Path]:
    """Files of a stem such as "train-images-idx3", raw before gzipped; some tools write ".idx3" for "-idx3"."""
    stems = (stem, ".idx".join(stem.rsplit("-idx", 1)))
    names = [f"{base}-ubyte{suffix}" for base in stems for suffix in ("", ".gz")]
    return [folder / name for name in names if (folder / name).is_file()]
