"""Tests of LSUN: WebP images in LMDB databases, one for each category and split."""

from __future__ import annotations

import io
import re
from pathlib import Path

import lmdb
import pytest
from PIL import Image

from zerokara.core.config import UserError
from zerokara.core.data import load


def write_database(folder: Path, values: list[bytes | tuple[int, int, int]], side: int = 8) -> Path:
    """Write a database; a color is an image of that color. Keys have 40 hexadecimal digits, as in LSUN."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**22) as database, database.begin(write=True) as view:
        for index, value in enumerate(values):
            view.put(f"{index:040x}".encode(), webp(value, side) if isinstance(value, tuple) else value)
    return folder


def webp(color: tuple[int, int, int], side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), color).save(out, "WEBP", lossless=True)
    return out.getvalue()


def red_values(path: Path, split: str) -> list[int]:
    images = load(str(path), "train" if split == "train" else "test")
    return images.images[:, 0, 0, 0].tolist()


def test_category_with_validation_database(tmp_path: Path) -> None:
    train = write_database(tmp_path / "church_outdoor_train_lmdb", [(1, 0, 9), (2, 0, 9), (3, 0, 9)])
    write_database(tmp_path / "church_outdoor_val_lmdb", [(4, 0, 9)])
    images = load(str(train), "train")
    assert (images.shape, images.classes, images.labels.tolist()) == ((3, 8, 8), ("church_outdoor",), [0, 0, 0])
    assert images.images[1, :, 0, 0].tolist() == [2, 0, 9]
    assert (red_values(train, "train"), red_values(train, "test")) == ([1, 2, 3], [4])
    assert "LSUN church_outdoor (train), LMDB in" in images.source


def test_folder_of_categories_with_and_without_validation(tmp_path: Path) -> None:
    write_database(tmp_path / "b_train_lmdb", [(k, 0, 0) for k in range(12)])
    write_database(tmp_path / "a_train_lmdb", [(100, 0, 0)])
    write_database(tmp_path / "a_val_lmdb", [(101, 0, 0)])
    train, test = load(str(tmp_path), "train"), load(str(tmp_path), "test")
    assert train.classes == test.classes == ("a", "b")
    assert train.images[:, 0, 0, 0].tolist() == [100, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert test.images[:, 0, 0, 0].tolist() == [101, 0, 10]
    assert test.labels.tolist() == [0, 1, 1]


def test_grayscale_and_color_categories_are_combined(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("L", (8, 8), 50).save(out, "PNG")
    write_database(tmp_path / "a_train_lmdb", [out.getvalue()] * 2)
    write_database(tmp_path / "b_train_lmdb", [(1, 2, 3)] * 2)
    assert load(str(tmp_path), "train").images[:, :, 0, 0].tolist() == [[50] * 3, [1, 2, 3]]


def test_name_in_data_dir_and_resizing(tmp_path: Path) -> None:
    write_database(tmp_path / "cat", [(1, 0, 0)] * 3, side=16)
    assert load("cat", "train", data_dir=tmp_path, image_size=8, grayscale=True).shape == (1, 8, 8)


def test_damaged_databases_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0001 in a in .* cannot be decoded"):
        load(str(write_database(tmp_path / "a_train_lmdb", [(1, 0, 0), b"invalid"])), "train")
    with pytest.raises(UserError, match=r"database of one in .* has no train images"):
        load(str(write_database(tmp_path / "one_lmdb", [(1, 0, 0)])), "train")
    write_database(tmp_path / "sizes" / "a_train_lmdb", [(1, 0, 0)] * 2)
    write_database(tmp_path / "sizes" / "b_train_lmdb", [(1, 0, 0)] * 2, side=9)
    with pytest.raises(
        UserError, match=r"images of b in .* another size than those of the categories before: .*--image-size 8"
    ):
        load(str(tmp_path / "sizes"), "train")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "data.mdb").write_bytes(b"invalid" * 4096)
    with pytest.raises(UserError, match=r"data\.mdb is not a complete LMDB database"):
        load(str(tmp_path / "broken"), "train")


@pytest.mark.parametrize("kept", [0, 100, 5_000, 0.5, 0.99])
def test_a_truncated_database_is_refused(tmp_path: Path, kept: float) -> None:
    """LMDB maps the file into memory, and a missing page ends the process with SIGBUS."""
    folder = write_database(tmp_path / "x_train_lmdb", [(k, 0, 0) for k in range(200)], side=64)
    file = folder / "data.mdb"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(UserError, match=r"data\.mdb is not a complete LMDB database"):
        load(str(folder), "train")
    file.write_bytes(content)
    assert len(load(str(folder), "train")) == 180


def test_a_database_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    """A size that leads out of the file would end the process with SIGBUS."""
    folder = write_database(tmp_path / "x_train_lmdb", [(k, 0, 0) for k in range(200)], side=64)
    file = folder / "data.mdb"
    content = file.read_bytes()
    key = f"{77:040x}".encode()  # the size of a value is 8 bytes before its key
    damaged = re.sub(b".{4}(.{4})" + key, lambda found: b"\xff\xff\xff\x3f" + found[1] + key, content, flags=re.DOTALL)
    assert len(damaged) == len(content)
    assert damaged != content
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"data\.mdb is damaged inside"):
        load(str(folder), "train")
    file.write_bytes(content)
    assert len(load(str(folder), "train")) == 180
