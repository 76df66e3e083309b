"""Tests of EMNIST: transposed images, labels of letters from 1, usual folders."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zerokara.core.config import UserError
from zerokara.core.data import load
from zerokara.core.data.emnist import CLASSES, NAMES

IMAGES = np.arange(36, dtype=np.uint8).reshape(3, 3, 4)  # as they are stored: column by column


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_emnist(folder: Path, name: str, labels: list[int], *, raw: bool = False, images: np.ndarray = IMAGES) -> Path:
    """Write both splits as the published archive names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        content = {"images-idx3": idx(images), "labels-idx1": idx(np.array(labels, np.uint8))}
        for what, data in content.items():
            path = folder / f"{name}-{split}-{what}-ubyte{'' if raw else '.gz'}"
            path.write_bytes(data if raw else gzip.compress(data))
    return folder


def test_images_are_transposed_and_the_first_letter_has_the_label_1(tmp_path: Path) -> None:
    write_emnist(tmp_path / "gzip", "emnist-letters", [1, 26, 2])
    letters = load("emnist-letters", "train", data_dir=tmp_path)
    assert letters.images[:, 0].tolist() == IMAGES.transpose(0, 2, 1).tolist()
    assert [letters.classes[label] for label in letters.labels.tolist()] == ["A", "Z", "B"]
    assert "EMNIST letters (train), IDX files in" in letters.source
    for wrong in (0, 27):
        write_emnist(tmp_path / "gzip", "emnist-letters", [1, wrong, 2])
        with pytest.raises(UserError, match=rf"has the label {wrong}, but EMNIST letters has 26 classes, 1 to 26"):
            load("emnist-letters", "train", data_dir=tmp_path)


def test_classes_are_those_of_the_published_mappings(tmp_path: Path) -> None:
    numbers = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
    assert {name: len(classes) for name, classes in CLASSES.items()} == numbers
    write_emnist(tmp_path, "emnist-balanced", [0, 10, 46])
    balanced = load("emnist-balanced", "test", data_dir=tmp_path)
    assert [balanced.classes[label] for label in balanced.labels.tolist()] == ["0", "A", "t"]
    assert (CLASSES["byclass"][36], CLASSES["balanced"][36], CLASSES["balanced"][38]) == ("a", "a", "d")


@pytest.mark.parametrize("folder", ["emnist-digits", "emnist", "EMNIST/raw", "gzip", "."])
@pytest.mark.parametrize("raw", [False, True])
def test_usual_folders(tmp_path: Path, folder: str, raw: bool) -> None:
    write_emnist(tmp_path / folder, "emnist-digits", [3, 0, 9], raw=raw)
    assert load("emnist-digits", "test", data_dir=tmp_path).labels.tolist() == [3, 0, 9]


def test_missing_files_and_a_path_instead_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        with pytest.raises(UserError, match=rf"There is no EMNIST in .*gzip/{name}-test-images-idx3-ubyte\.gz"):
            load(name, "test", data_dir=tmp_path)
    write_emnist(tmp_path / "files", "emnist-letters", [1, 2, 3])
    with pytest.raises(UserError, match=r"has files of EMNIST: give --data emnist-letters --data-dir .*files"):
        load("files", "train", data_dir=tmp_path)


def test_a_folder_of_ones_own_with_the_name_of_a_set_is_read(tmp_path: Path) -> None:
    for index in range(4):
        path = tmp_path / "emnist-letters" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), index).save(path)
    assert load("emnist-letters", "train", data_dir=tmp_path, image_size=16).shape == (1, 16, 16)
