"""Tests of CIFAR's binary and Python versions, and of malicious pickles."""

from __future__ import annotations

import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zerokara.core.config import UserError
from zerokara.core.data import load
from zerokara.core.data.cifar import LAYOUTS, load_cifar, unpickle

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def python2(value: Any) -> bytes:
    """Pickle as in the published files: Python 2, protocol 2, byte strings for str, old module names of NumPy."""
    return b"\x80\x02" + opcodes(value) + b"."


def opcodes(value: Any) -> bytes:
    if isinstance(value, str | bytes):
        data = value.encode("latin1") if isinstance(value, str) else value
        return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(item) for pair in value.items() for item in pair) + b"u"
    assert isinstance(value, np.ndarray)
    shape = b"(" + b"".join(map(opcodes, value.shape)) + b"t"
    code, order = (value.dtype.str[1:], value.dtype.str[0])
    dtype = b"cnumpy\ndtype\n(" + opcodes(code) + b"K\x00K\x01tR"
    dtype += b"(K\x03" + opcodes(order) + b"NNN" + opcodes(-1) + opcodes(-1) + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + opcodes(value.tobytes()) + b"tb"


def python3(value: Any) -> bytes:
    """Pickle with Python 3, as for user-made sets in CIFAR's format."""
    return pickle.dumps(value, protocol=2)


def rows(seed: int, number: int = 4) -> np.ndarray:
    """Generate rows of 3,072 bytes: 1,024 red, 1,024 green, 1,024 blue."""
    return np.random.default_rng(seed).integers(256, size=(number, 3072), dtype=np.uint8)


def binary10(folder: Path) -> None:
    folder.mkdir(parents=True)
    for index, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        (folder / name).write_bytes(b"".join(bytes([index + k]) + row.tobytes() for k, row in enumerate(rows(index))))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")


def python10(folder: Path, dump: Callable[[Any], bytes]) -> None:
    folder.mkdir(parents=True)
    for index, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        batch = {"data": rows(index), "labels": [index + k for k in range(4)], "batch_label": f"batch {index}"}
        (folder / name).write_bytes(dump(batch))
    (folder / "batches.meta").write_bytes(dump({"label_names": NAMES, "num_cases_per_batch": 4, "num_vis": 3072}))


def make_archive(folder: Path, name: str) -> None:
    """Pack a folder into an archive as published, and move the folder away."""
    with tarfile.open(folder.parent / name, "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    folder.rename(folder.parent / "moved")


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("layout", ["binary", "python2", "python3"])
def test_all_versions_of_cifar_10_give_the_same_images(tmp_path: Path, layout: str, archived: bool) -> None:
    if layout == "binary":
        folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
        binary10(folder)
    else:
        folder = tmp_path / "cifar-10-batches-py"
        python10(folder, python2 if layout == "python2" else python3)
    if archived:
        make_archive(folder, f"cifar-10-{'binary' if layout == 'binary' else 'python'}.tar.gz")
    train = load("cifar10", "train", data_dir=tmp_path, download=False)
    assert (train.shape, len(train), train.classes) == ((3, 32, 32), 20, tuple(NAMES))
    assert train.labels.tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6, 4, 5, 6, 7]
    third = rows(2)[1]
    # From the description of the format: "The first 1024 bytes are the red channel values, ... row-major order".
    assert train.images[9, 0, 0].tolist() == third[:32].tolist()
    assert int(train.images[9, 2, 31, 30]) == third[2048 + 31 * 32 + 30]
    test = load("cifar10", "test", data_dir=tmp_path, download=False)
    assert test.labels.tolist() == [5, 6, 7, 8]
    assert torch.equal(test.images.flatten(1), torch.from_numpy(rows(5)))
    assert ("binary version" if layout == "binary" else "Python version") in test.source


def test_cifar_100_uses_the_fine_label(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(100)]
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(bytes([3, 99]) + rows(0, 1).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(names))
    other = tmp_path / "other" / "cifar-100-python"
    other.mkdir(parents=True)
    batch = {"data": rows(0, 1), "fine_labels": [99], "coarse_labels": [3], "filenames": ["a.png"]}
    for name in ("train", "test"):
        (other / name).write_bytes(python2(batch))
    (other / "meta").write_bytes(python2({"fine_label_names": names, "coarse_label_names": ["x"] * 20}))
    for path in (tmp_path, tmp_path / "other"):
        images = load("cifar100", "train", data_dir=path, download=False)
        assert (images.labels.tolist(), images.classes[99]) == ([99], "class 99")
        assert torch.equal(images.images.flatten(), torch.from_numpy(rows(0, 1)).flatten())


class Malicious:
    """Object whose pickle executes a function when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("executed"), "done"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"data": Malicious()}), "would execute pathlib.*not part of any CIFAR file"),
        (pickle.dumps({"data": np.array([Malicious()], dtype=object)}), "would execute numpy's arrays of 'O8'"),
        (b"cos\nsystem\n(S'echo'\ntR.", "would execute os.system"),
        (b"c_codecs\nencode\n(S'x'\nS'bz2'\ntR.", "would execute the codec"),
        (pickle.dumps([1, 2]), "contains a list, expected a dict"),
        (pickle.dumps({"data": 1})[:-3], "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_unsafe_and_damaged_pickles_are_rejected(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        unpickle(content, "batch")
    assert list(tmp_path.iterdir()) == []


def test_unpickled_arrays_equal_the_originals() -> None:
    arrays = {
        "big-endian": np.arange(6, dtype=">i4").reshape(2, 3),
        "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "bytes": np.arange(3, dtype=np.uint8),
    }
    result = unpickle(python3(arrays), "batch")
    for key, value in arrays.items():
        np.testing.assert_array_equal(result[key.encode()], value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3.bin", rows(0).tobytes()[:-1], "not a multiple of 3,073"),
        ("data_batch_3.bin", b"", "not a multiple of 3,073"),
        ("data_batch_3.bin", bytes([10]) + rows(0, 1).tobytes(), "has the label 10, but .* lists 10 classes"),
        ("data_batch_3.bin", None, "data_batch_3.bin could not be read"),
    ],
)
def test_damaged_batches_are_rejected(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    binary10(folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load("cifar10", "train", data_dir=tmp_path, download=False)


@pytest.mark.parametrize(
    "batch",
    [
        {"data": rows(0), "labels": [1, 2, 3]},
        {"data": rows(0)[:, :100], "labels": [0] * 4},
        {"data": rows(0).astype(np.float32), "labels": [0] * 4},
        {"data": rows(0), "labels": [0, 1, 2, "3"]},
        {"data": rows(0)},
    ],
)
def test_inconsistent_python_batches_are_rejected(tmp_path: Path, batch: dict[str, Any]) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    python10(folder, python2)
    (folder / "test_batch").write_bytes(python2(batch))
    with pytest.raises(UserError, match=r"test_batch in .* equal numbers of labels and of rows"):
        load("cifar10", "test", data_dir=tmp_path, download=False)


def test_damaged_archive_is_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    binary10(folder)
    make_archive(folder, "cifar-10-binary.tar.gz")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz is damaged or truncated"):
        load("cifar10", "train", data_dir=tmp_path, download=False)
    with tarfile.open(archive, "w:gz") as writer:
        writer.add(tmp_path / "moved" / "batches.meta.txt", "batches.meta.txt")
    with pytest.raises(UserError, match=r"does not contain test_batch\.bin"):
        load_cifar(LAYOUTS["cifar10"][0], archive, "test")


def test_jpeg_copy_is_described_in_the_source(data_dir: Path) -> None:
    """The channel means equal the commonly used ones, up to the changes by JPEG compression."""
    images = load("cifar10", "test", data_dir=data_dir, download=False)
    assert images.source.startswith("a copy of CIFAR-10 as image files")
    assert images.source.endswith("JPEG")
    assert (images.shape, images.classes) == ((3, 32, 32), tuple(NAMES))
    assert torch.bincount(images.labels).tolist() == [1000] * 10
    means = images.images.double().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4942, 0.4851, 0.4504], dtype=torch.float64), atol=1e-3, rtol=0)
