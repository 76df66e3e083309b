"""Tests of the choice of one color behind the transparent pixels of all training images."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.core.data.test_lsun import write_database
from zerokara.core.config import UserError
from zerokara.core.data import folders
from zerokara.core.data.backgrounds import choose_background, describe_background
from zerokara.core.data.file_reading import read_file
from zerokara.core.data.sources import training_lumas


def icon(level: int) -> bytes:
    """Encode an image with transparency and a square of this gray level."""
    picture, out = Image.new("RGBA", (32, 32), (0, 0, 0, 0)), io.BytesIO()
    picture.paste((level, level, level, 255), (8, 8, 16, 16))
    picture.save(out, "PNG")
    return out.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_the_background_that_fewer_images_resemble() -> None:
    assert choose_background([225.0, 30.0, 225.0, 100.0]) == ("black", 1, 2)
    assert choose_background([224.0, 31.0, 30.0, 225.0]) == ("white", 1, 1)
    assert describe_background("icons", [225.0, 30.0, 225.0]) == (
        "icons: 3 images with transparency, all placed on black (2 cannot be told from white, 1 from black); "
        "--background chooses the color."
    )


@pytest.mark.parametrize("split", ["train", ""])
def test_training_images_with_transparency_are_looked_at(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither test images nor formats without transparency; images that cannot be read are left out."""
    read: list[str] = []

    def recording(path: Path) -> bytes:
        read.append(path.name)
        return read_file(path)

    monkeypatch.setattr(folders, "read_file", recording)
    if split:
        for name in "ab":
            write(tmp_path / "test" / name / "0.png", icon(1))
    else:
        for name in "ab":
            write(tmp_path / name / "0.png", icon(1))  # the first of ten is a test image
    for name, level in (("a", 255), ("b", 7)):
        write(tmp_path / split / name / "1.png", icon(level))
        write(tmp_path / split / name / "2.jpg", b"is not read")
        write(tmp_path / split / name / "3.png", b"not an image")
        Image.new("RGB", (8, 8), "white").save(tmp_path / split / name / "4.png")
    assert training_lumas(str(tmp_path), None, None) == [255, 7]
    assert sorted(read) == sorted(["1.png", "3.png", "4.png"] * 2)


def test_all_categories_of_lsun_have_one_background(tmp_path: Path) -> None:
    write_database(tmp_path / "a_train_lmdb", [icon(1), icon(250), icon(251)])
    write_database(tmp_path / "b_train_lmdb", [icon(20)])
    write_database(tmp_path / "b_val_lmdb", [icon(2)])
    assert training_lumas(str(tmp_path), None, None) == [250, 251, 20]


def test_named_sets_have_no_transparency_and_mistakes_are_reported(tmp_path: Path) -> None:
    assert training_lumas("glyphs", None, None) == []
    assert training_lumas("no-such-set", tmp_path, None) == []  # `load` reports it
    write(tmp_path / "readme.txt", b"")
    with pytest.raises(UserError, match="There are no class folders with images"):
        training_lumas(str(tmp_path), None, None)
