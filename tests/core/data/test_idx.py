"""Tests of IDX files: examples of the format, damaged files, and MNIST."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerokara.core.config import UserError
from zerokara.core.data import load
from zerokara.core.data.idx import load_idx, read_idx

# Two images of 2x3 pixels and their labels, in the format of MNIST's web page.
IMAGES = bytes.fromhex("00000803 00000002 00000002 00000003 000102030405 f0f1f2f3f4ff")
LABELS = bytes.fromhex("00000801 00000002 0701")
DIGITS = tuple("0123456789")


def write_mnist(folder: Path, images: bytes = IMAGES, labels: bytes = LABELS, prefix: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return folder


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_raw_and_gzipped_files(tmp_path: Path, pack: type[bytes]) -> None:
    """Compression is detected from the content, not from the name."""
    path = tmp_path / "file"
    path.write_bytes(pack(IMAGES))
    assert read_idx(path).tolist() == [[[0, 1, 2], [3, 4, 5]], [[0xF0, 0xF1, 0xF2], [0xF3, 0xF4, 0xFF]]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("00000901 00000002 ff7f", np.array([-1, 127], "i1")),
        ("00000b01 00000002 ffff0100", np.array([-1, 256], "i2")),
        ("00000c01 00000001 00000100", np.array([256], "i4")),
        ("00000d01 00000001 3fc00000", np.array([1.5], "f4")),
        ("00000e01 00000001 3ff8000000000000", np.array([1.5], "f8")),
        ("00000802 00000000 00000005", np.zeros((0, 5), "u1")),
    ],
)
def test_all_types_are_read_in_native_byte_order(tmp_path: Path, content: str, expected: np.ndarray) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes.fromhex(content))
    actual = read_idx(path)
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == expected.dtype


@given(cut=st.integers(0, len(IMAGES) - 1))
def test_truncated_file_is_rejected(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "images"
    path.write_bytes(IMAGES[:cut])
    with pytest.raises(UserError, match="images"):
        read_idx(path)


@given(cut=st.integers(2, len(gzip.compress(IMAGES, mtime=0)) - 1))
def test_truncated_gzip_is_rejected(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "images.gz"
    path.write_bytes(gzip.compress(IMAGES, mtime=0)[:cut])
    with pytest.raises(UserError, match=r"images.gz"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG" + IMAGES, "is not an IDX file: it begins with 89504e47"),
        (b"", "begins with nothing"),
        (bytes.fromhex("00000a01 00000001 00"), "begins with 00000a01"),
        (IMAGES + b"\0", "contains more"),
        (bytes.fromhex("00000803 ffffffff ffffffff ffffffff 00"), "contains 1:"),  # does not allocate the memory
        (gzip.compress(IMAGES, mtime=0)[:-8] + b"\0" * 8, "CRC"),
    ],
)
def test_damaged_file_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_load_images_and_labels(tmp_path: Path) -> None:
    images = load_idx(write_mnist(tmp_path), "train", DIGITS, "MNIST")
    assert (images.shape, images.labels.tolist()) == ((1, 2, 3), [7, 1])
    assert images.images[1, 0].tolist() == [[0xF0, 0xF1, 0xF2], [0xF3, 0xF4, 0xFF]]
    images.images[0] = 1  # it is writable


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, bytes.fromhex("00000801 00000003 070102"), "has 2 images: use two files that belong together"),
        (IMAGES, bytes.fromhex("00000801 00000002 070a"), "has the label 10, but MNIST has 10 classes"),
        (LABELS, LABELS, r"expected uint8 images of shape \(N, H, W\)"),
        (IMAGES, IMAGES, "belong together"),
    ],
)
def test_inconsistent_files_are_rejected(tmp_path: Path, images: bytes, labels: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_idx(write_mnist(tmp_path, images, labels), "train", DIGITS, "MNIST")


@pytest.mark.parametrize("path", ["mnist", "mnist/raw", "MNIST/raw"])
def test_mnist_is_found_in_common_folders(tmp_path: Path, path: str) -> None:
    write_mnist(tmp_path / path, prefix="t10k")
    assert load("mnist", "test", data_dir=tmp_path, download=False).labels.tolist() == [7, 1]


def test_file_names_with_a_dot_are_found(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    for path in (tmp_path / "mnist").iterdir():
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(load("mnist", "train", data_dir=tmp_path, download=False)) == 2


def test_real_mnist(data_dir: Path) -> None:
    """Compare with the commonly used mean and standard deviation, and with the known class counts."""
    train = load("mnist", "train", data_dir=data_dir, download=False)
    test = load("mnist", "test", data_dir=data_dir, download=False)
    assert (train.shape, len(train), len(test)) == ((1, 28, 28), 60_000, 10_000)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(train.labels).tolist() == counts
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    pixels = train.images.double() / 255
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == (0.1307, 0.3081)
