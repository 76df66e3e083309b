"""CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html) in their binary and Python versions.

Both are read from the downloaded archive, or from the folder that it unpacks to.
"""

from __future__ import annotations

import io
import lzma
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from zerokara.core.config import UserError, error_summary
from zerokara.core.data.types import ImageSet, Split, image_set

IMAGE_BYTES = 3 * 32 * 32  # red, green, blue planes, row by row


@dataclass(frozen=True)
class Layout:
    """File layout of one version of a set: its archive, its folder, its files."""

    title: str
    archive: str
    folder: str
    files: dict[Split, tuple[str, ...]]
    names: str
    """File with the class names."""
    label_bytes: int
    """Number of label bytes before each image in the binary version, of which the last is used; 0: Python version."""
    key: bytes = b"labels"
    """Key of the labels in the Python version."""
    names_key: bytes = b"label_names"


CIFAR10_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
CIFAR10_BINARY: dict[Split, tuple[str, ...]] = {
    split: tuple(f"{name}.bin" for name in names) for split, names in CIFAR10_FILES.items()
}
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "cifar10": (
        Layout("CIFAR-10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin", CIFAR10_BINARY, "batches.meta.txt", 1),
        Layout("CIFAR-10", "cifar-10-python.tar.gz", "cifar-10-batches-py", CIFAR10_FILES, "batches.meta", 0),
    ),
    "cifar100": (
        # The coarse label (of 20 classes) precedes the fine label.
        Layout(
            "CIFAR-100",
            "cifar-100-binary.tar.gz",
            "cifar-100-binary",
            {"train": ("train.bin",), "test": ("test.bin",)},
            "fine_label_names.txt",
            2,
        ),
        Layout(
            "CIFAR-100",
            "cifar-100-python.tar.gz",
            "cifar-100-python",
            {"train": ("train",), "test": ("test",)},
            "meta",
            0,
            b"fine_labels",
            b"fine_label_names",
        ),
    ),
}


def find_cifar(name: str, folders: list[Path]) -> tuple[Layout, Path] | None:
    """Find the first version of the set in one of the folders, unpacked or as an archive; None if there is none."""
    for folder in folders:
        for layout in LAYOUTS[name]:
            for path in (folder / layout.folder, folder / layout.archive):
                if path.exists():
                    return layout, path
    return None


def load_cifar(layout: Layout, path: Path, split: Split) -> ImageSet:
    """Load one split of the set from its archive or folder.

    Raises:
        UserError: files are missing, damaged, or contain anything but labels and images.
    """
    wanted = (*layout.files[split], layout.names)
    content = _from_folder(path, wanted) if path.is_dir() else _from_archive(path, wanted)
    where = f"{layout.names} in {path}"
    if layout.label_bytes:
        text = content[layout.names].decode("utf-8", "replace")
        classes = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        classes = tuple(_names(unpickle(content[layout.names], where).get(layout.names_key), where))
    parts = [_batch(content[name], layout, f"{name} in {path}") for name in layout.files[split]]
    labels_N = np.concatenate([labels for labels, _ in parts])
    if int(labels_N.max()) >= len(classes):
        raise UserError(
            f"{path} has the label {int(labels_N.max())}, but {layout.names} lists {len(classes)} classes: "
            f"replace it with the published files of {layout.title}."
        )
    images_NCHW = np.concatenate([images for _, images in parts])
    kind = "binary" if layout.label_bytes else "Python"
    return image_set(images_NCHW, labels_N, classes, f"{layout.title} ({split}), {kind} version in {path}")


def unpickle(data: bytes, name: str) -> dict[bytes, Any]:
    """Read a pickled dict of plain values and numeric NumPy arrays. Nothing else in the pickle is executed.

    Raises:
        UserError: the data are damaged, are not a dict, or refer to any other class or function.
    """
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _UnsafeError as error:
        raise UserError(
            f"{name} was not read, because it would execute {error}, which is not part of any CIFAR file: "
            f"replace it with a copy from a trusted source."
        ) from None
    except Exception as error:  # noqa: BLE001  (invalid bytes raise any type, from EOFError to KeyError)
        raise UserError(f"{name} is damaged ({error_summary(error)}): replace it with an undamaged copy.") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{name} contains a {type(value).__name__}, expected a dict: replace it with an undamaged copy."
        )
    return {
        key.encode() if isinstance(key, str) else key: item.value if isinstance(item, _Array) else item
        for key, item in value.items()
    }


class _UnsafeError(Exception):
    """Raised if a pickle refers to a class or function that is not allowed."""


class _Unpickler(pickle.Unpickler):
    """Unpickler that allows only what is needed for numeric arrays."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Callable[..., Any]] = {
            "numpy.ndarray": _Array,
            "numpy.dtype": _DType,
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),  # creates an empty array; its state follows
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),  # name in NumPy 2
            "_codecs.encode": _latin1,  # bytes, pickled by Python 3 for Python 2
        }
        if f"{module}.{name}" not in known:
            raise _UnsafeError(f"{module}.{name}")
        return known[f"{module}.{name}"]


class _DType:
    """Replacement of a NumPy dtype in a pickle: integers or floating-point numbers, never objects."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "="
        if self.code[:1] not in {"u", "i", "f"}:
            raise _UnsafeError(f"numpy's arrays of {self.code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.order = "=" if order == "|" else order  # single bytes have no byte order


class _Array:
    """Replacement of a NumPy array in a pickle; the array is created from its raw bytes."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number, by_columns, data = state
        flat = np.frombuffer(data, np.dtype(number.code).newbyteorder(number.order))
        self.value = flat.reshape(shape, order="F" if by_columns else "C")


def _latin1(text: str, encoding: str | bytes) -> bytes:
    if encoding not in {"latin1", b"latin1"}:
        raise _UnsafeError(f"the codec {encoding!r}")
    return text.encode("latin1")


def _names(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, bytes | str) for name in value):
        raise UserError(f"{where} has no class names: replace it with an undamaged copy.")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in value]


def _batch(data: bytes, layout: Layout, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Parse one file into labels (N,) and images (N, 3, 32, 32) uint8."""
    if layout.label_bytes:
        row = layout.label_bytes + IMAGE_BYTES
        if not data or len(data) % row:
            raise UserError(
                f"{name} has {len(data):,} bytes, which is not a multiple of {row:,}, so it is truncated or from "
                f"another set: replace it with an undamaged copy."
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, row)
        labels, pixels = rows[:, layout.label_bytes - 1], rows[:, layout.label_bytes :]
    else:
        batch = unpickle(data, name)
        data_rows, data_labels = batch.get(b"data"), batch.get(layout.key)
        if not (_is_rows(data_rows) and _is_labels(data_labels) and len(data_labels) == len(data_rows)):
            raise UserError(
                f"{name} does not contain equal numbers of {layout.key.decode()} and of rows of {IMAGE_BYTES:,} bytes: "
                f"replace it with an undamaged copy."
            )
        labels, pixels = np.asarray(data_labels, np.uint8), data_rows
    return labels, pixels.reshape(-1, 3, 32, 32)


def _is_rows(value: Any) -> TypeGuard[np.ndarray]:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape[1:] == (IMAGE_BYTES,)


def _is_labels(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) > 0 and all(type(v) is int and 0 <= v < 256 for v in value)


def _from_folder(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise UserError(
            f"{error.filename} could not be read ({error_summary(error)}): copy the published files of the set into "
            f"{folder}."
        ) from None


def _from_archive(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Read the named files of a tar archive into memory, without unpacking it to disk."""
    content: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in names and member.isfile() and (file := archive.extractfile(member)) is not None:
                    content[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path} is damaged or truncated ({error_summary(error)}): replace it with an undamaged copy, "
            f"or remove it to download it again."
        ) from None
    if missing := [name for name in names if name not in content]:
        raise UserError(f"{path} does not contain {missing[0]}: replace it with the published archive.")
    return content
