"""CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html) in their binary and Python forms.

Both are read from the archive as it was downloaded, or from the folder that it unpacks to.
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
class Form:
    """One form of one set: its archive, its folder, its files."""

    title: str
    archive: str
    folder: str
    files: dict[Split, tuple[str, ...]]
    names: str
    """The file with the names of the classes."""
    label_bytes: int
    """Bytes of label before each image in the binary form, of which the last counts; 0: this is the Python form."""
    key: bytes = b"labels"
    """Where the Python form keeps its labels."""
    names_key: bytes = b"label_names"


CIFAR10_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
CIFAR10_BINARY: dict[Split, tuple[str, ...]] = {
    split: tuple(f"{name}.bin" for name in names) for split, names in CIFAR10_FILES.items()
}
FORMS: dict[str, tuple[Form, ...]] = {
    "cifar10": (
        Form("CIFAR-10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin", CIFAR10_BINARY, "batches.meta.txt", 1),
        Form("CIFAR-10", "cifar-10-python.tar.gz", "cifar-10-batches-py", CIFAR10_FILES, "batches.meta", 0),
    ),
    "cifar100": (
        # A coarse label (of 20) stands before the fine one.
        Form(
            "CIFAR-100",
            "cifar-100-binary.tar.gz",
            "cifar-100-binary",
            {"train": ("train.bin",), "test": ("test.bin",)},
            "fine_label_names.txt",
            2,
        ),
        Form(
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


def find_cifar(name: str, folders: list[Path]) -> tuple[Form, Path] | None:
    """The first form of the set that lies in one of the folders, unpacked or as archive; None where there is none."""
    for folder in folders:
        for form in FORMS[name]:
            for path in (folder / form.folder, folder / form.archive):
                if path.exists():
                    return form, path
    return None


def load_cifar(form: Form, path: Path, split: Split) -> ImageSet:
    """One split of the set, from its archive or folder.

    Raises:
        UserError: files are missing, damaged, or hold anything but labels and images.
    """
    wanted = (*form.files[split], form.names)
    content = _from_folder(path, wanted) if path.is_dir() else _from_archive(path, wanted)
    where = f"{form.names} in {path}"
    if form.label_bytes:
        text = content[form.names].decode("utf-8", "replace")
        classes = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        classes = tuple(_names(unpickle(content[form.names], where).get(form.names_key), where))
    parts = [_batch(content[name], form, f"{name} in {path}") for name in form.files[split]]
    labels_N = np.concatenate([labels for labels, _ in parts])
    if int(labels_N.max()) >= len(classes):
        raise UserError(
            f"{path} has the label {int(labels_N.max())}, and {form.names} names {len(classes)} classes: "
            f"put there the files of {form.title} as they were published."
        )
    images_NCHW = np.concatenate([images for _, images in parts])
    kind = "binary" if form.label_bytes else "Python"
    return image_set(images_NCHW, labels_N, classes, f"{form.title} ({split}), {kind} form in {path}")


def unpickle(data: bytes, name: str) -> dict[bytes, Any]:
    """The dict of a pickle that holds plain values and NumPy arrays of numbers; nothing else in it is carried out.

    Raises:
        UserError: damaged, no dict, or it asks for anything else.
    """
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _UnsafeError as error:
        raise UserError(
            f"{name} asks to run {error}, which no file of CIFAR does, and was not read: "
            f"put a copy in its place that you trust."
        ) from None
    except Exception as error:  # noqa: BLE001  (bytes that make no sense end in any error, from EOFError to KeyError)
        raise UserError(f"{name} is damaged ({error_summary(error)}): put a sound copy in its place.") from None
    if not isinstance(value, dict):
        raise UserError(f"{name} holds a {type(value).__name__}, not a dict: put a sound copy in its place.")
    return {
        key.encode() if isinstance(key, str) else key: item.value if isinstance(item, _Array) else item
        for key, item in value.items()
    }


class _UnsafeError(Exception):
    """A name that a pickle has no business with."""


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows what an array of numbers is made of, and nothing more."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Callable[..., Any]] = {
            "numpy.ndarray": _Array,
            "numpy.dtype": _Number,
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),  # an array begins empty: its state follows
            "numpy._core.multiarray._reconstruct": lambda *_: _Array(),  # as NumPy 2 calls it
            "_codecs.encode": _latin1,  # how Python 3 writes bytes for Python 2
        }
        if f"{module}.{name}" not in known:
            raise _UnsafeError(f"{module}.{name}")
        return known[f"{module}.{name}"]


class _Number:
    """What stands for a NumPy dtype in a pickle: a whole or real number, never an object."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "="
        if self.code[:1] not in {"u", "i", "f"}:
            raise _UnsafeError(f"numpy's arrays of {self.code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.order = "=" if order == "|" else order  # single bytes have no order


class _Array:
    """What stands for a NumPy array in a pickle; the array itself is built of its bytes alone."""

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
        raise UserError(f"{where} has no names of classes: put a sound copy in its place.")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in value]


def _batch(data: bytes, form: Form, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and images (N, 3, 32, 32) uint8 of one file."""
    if form.label_bytes:
        row = form.label_bytes + IMAGE_BYTES
        if not data or len(data) % row:
            raise UserError(
                f"{name} has {len(data):,} bytes, no multiple of {row:,}, so it is truncated or of another set: "
                f"put a sound copy in its place."
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, row)
        labels, pixels = rows[:, form.label_bytes - 1], rows[:, form.label_bytes :]
    else:
        batch = unpickle(data, name)
        found_pixels, found = batch.get(b"data"), batch.get(form.key)
        if not (_is_rows(found_pixels) and _is_labels(found) and len(found) == len(found_pixels)):
            raise UserError(
                f"{name} does not hold as many {form.key.decode()} as rows of {IMAGE_BYTES:,} bytes: "
                f"put a sound copy in its place."
            )
        labels, pixels = np.asarray(found, np.uint8), found_pixels
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
            f"{error.filename} could not be read ({error_summary(error)}): "
            f"put the published files of the data set into {folder}."
        ) from None


def _from_archive(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The named files of a tar archive, read without unpacking, so that nothing can be written elsewhere."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in names and member.isfile() and (file := archive.extractfile(member)) is not None:
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{path} is damaged or truncated ({error_summary(error)}): put a sound copy in its place, "
            f"or remove it to have it downloaded again."
        ) from None
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} does not contain {missing[0]}: put the archive there as it was published.")
    return found
