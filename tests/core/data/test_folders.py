"""Tests of folders and zips of class folders, in common layouts."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from zerokara.core.config import UserError
from zerokara.core.data import ImageSet, load


def png(value: int, side: int = 4) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), value).save(out, "PNG")
    return out.getvalue()


def write_files(root: Path, files: dict[str, bytes | int], zipped: bool = False) -> Path:
    """Write files to a folder or zip; a number is an image of that gray level, a name ending in "/" an empty folder."""
    content = {name: png(value) if isinstance(value, int) else value for name, value in files.items()}
    if zipped:
        root = root.with_suffix(".zip")
        with zipfile.ZipFile(root, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return root
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)
    return root


def gray_levels(images: ImageSet) -> list[tuple[str, int]]:
    """Return (class, gray level) of every image."""
    return [
        (images.classes[label], int(image[0, 0, 0]))
        for image, label in zip(images.images, images.labels.tolist(), strict=True)
    ]


def train_and_test(path: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    return gray_levels(load(str(path), "train")), gray_levels(load(str(path), "test"))


SPLIT: dict[str, bytes | int] = {"train/b/1.png": 1, "train/a/2.png": 2, "train/b/0.png": 3, "val/b/x.PNG": 4}
TRAIN_IMAGES = [("a", 2), ("b", 3), ("b", 1)]


@pytest.mark.parametrize("zipped", [False, True])
class TestLayouts:
    def test_train_and_val(self, tmp_path: Path, zipped: bool) -> None:
        path = write_files(tmp_path / "set", SPLIT, zipped)
        assert train_and_test(path) == (TRAIN_IMAGES, [("b", 4)])
        assert "class folders of train/ and val/" in load(str(path), "test").source

    def test_test_has_precedence_over_val(self, tmp_path: Path, zipped: bool) -> None:
        path = write_files(tmp_path / "set", {**SPLIT, "test/a/y.png": 5}, zipped)
        assert train_and_test(path) == (TRAIN_IMAGES, [("a", 5)])
        assert "val/ is ignored" in load(str(path), "train").source

    def test_enclosing_folder(self, tmp_path: Path, zipped: bool) -> None:
        enclosed = {f"imagenette/{name}": value for name, value in SPLIT.items()}
        path = write_files(tmp_path / "set", {**enclosed, "imagenette/LICENSE": b"MIT"}, zipped)
        assert train_and_test(path) == (TRAIN_IMAGES, [("b", 4)])

    def test_every_tenth_image_without_a_test_folder(self, tmp_path: Path, zipped: bool) -> None:
        files: dict[str, bytes | int] = {f"cat/{k:02}.png": k for k in range(21)}
        path = write_files(tmp_path / "set", {**files, "dog/a.png": 100, "dog/sub/b.png": 101}, zipped)
        train, test = train_and_test(path)
        assert test == [("cat", 0), ("cat", 10), ("cat", 20), ("dog", 100)]
        assert train == [("cat", k) for k in range(21) if k % 10] + [("dog", 101)]
        assert "every 10th image" in load(str(path), "test").source

    def test_train_without_test_is_split(self, tmp_path: Path, zipped: bool) -> None:
        path = write_files(tmp_path / "set", {f"train/cat/{k}.png": k for k in range(3)}, zipped)
        assert train_and_test(path) == ([("cat", 1), ("cat", 2)], [("cat", 0)])

    def test_hidden_files_are_skipped_and_other_files_are_counted(self, tmp_path: Path, zipped: bool) -> None:
        hidden: dict[str, bytes | int] = {
            ".DS_Store": b"x",
            "__MACOSX/train/a/._2.png": b"x",
            "train/a/Thumbs.db": b"x",
            "train/.git/x.png": 9,
        }
        path = write_files(
            tmp_path / "set", {**SPLIT, **hidden, "train/a/notes.txt": b"x", "train/list.csv": b"x"}, zipped
        )
        assert train_and_test(path) == (TRAIN_IMAGES, [("b", 4)])
        assert "2 other files ignored" in load(str(path), "train").source
        assert "ignored" not in load(str(path), "test").source

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"a/1.png": 1, "a/2.png": 1, "b/": b""}, "The class folder 'b' in .*set.* has no images"),
            ({"a/1.png": 1, "a/2.png": 1, "b/notes.txt": b"x"}, "The class folder 'b' in .* has no images"),
            ({**SPLIT, "val/c/1.png": 1}, "the class 'c' in val/ but not in train/"),
            ({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1}, "The class folder 'b' in .* has a single image"),
            ({"1.png": 1, "2.png": 2}, "no class folders with images in .*set"),
            ({"train/1.jpg": 1, "val/1.jpg": 1, "trainannot/1.png": 1}, "no class folders with images in .*train"),
            ({"readme.txt": b"x"}, "no class folders with images"),
            ({**SPLIT, "train/a/9.png": png(1)[:-20]}, "train/a/9.png in .*set.* cannot be decoded"),
            ({**SPLIT, "train/a/9.png": b""}, "train/a/9.png in .*set.* is empty"),
            ({**SPLIT, "train/b/9.png": png(1, 5)}, "train/b/9.png in .* has 5x5 pixels, but .*--image-size"),
        ],
    )
    def test_unusable_data_are_rejected(
        self, tmp_path: Path, zipped: bool, files: dict[str, bytes | int], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            load(str(write_files(tmp_path / "set", files, zipped)), "train")

    def test_size_and_channels(self, tmp_path: Path, zipped: bool) -> None:
        path = write_files(tmp_path / "set", {**SPLIT, "train/b/9.png": png(1, 5)}, zipped)
        assert load(str(path), "train", image_size=8, grayscale=False).shape == (3, 8, 8)


def test_damaged_zip_is_rejected(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", SPLIT, zipped=True)
    content = path.read_bytes()
    offset = 60  # in the first file's data, after its header of 43 bytes
    path.write_bytes(content[:offset] + bytes([content[offset] ^ 255]) + content[offset + 1 :])
    with pytest.raises(UserError, match=r"train/b/1.png in .*set.zip cannot be unpacked"):
        load(str(path), "train")
    path.write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"set.zip is not a valid zip archive"):
        load(str(path), "train")


def test_encrypted_zip_is_rejected(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", SPLIT, zipped=True)
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the encryption bit in both headers
        offset = content.find(signature)
        while offset >= 0:
            content[offset + flags] |= 1
            offset = content.find(signature, offset + 1)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be unpacked .*encrypted"):
        load(str(path), "train")


def test_too_large_file_is_rejected_without_reading_it(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", SPLIT)
    with (path / "train/a/2.png").open("wb") as file:
        file.truncate(300 * 2**20)  # a sparse file
    with pytest.raises(UserError, match=r"train/a/2\.png has 300 MiB"):
        load(str(path), "train")


def test_class_folder_may_be_a_symbolic_link(tmp_path: Path) -> None:
    linked = write_files(tmp_path / "linked", {"1.png": 1, "2.png": 2})
    path = write_files(tmp_path / "set", {"a/1.png": 3, "a/2.png": 4})
    (path / "b").symlink_to(linked)
    assert gray_levels(load(str(path), "train")) == [("a", 4), ("b", 2)]


def test_unreadable_folder_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_files(tmp_path / "set", SPLIT)
    original = os.scandir

    def scandir(folder: str) -> object:
        if str(folder).endswith("train/b"):
            raise PermissionError(13, "Permission denied", folder)  # simulated, because root can read all folders
        return original(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"train/b could not be read .Permission denied"):
        load(str(path), "train")


def test_imagenette(data_dir: Path) -> None:
    """Compare with the published counts: 9,469 training and 3,925 test images in ten classes."""
    images = load("imagenette64", "test", data_dir=data_dir)
    assert (images.shape, len(images), len(images.classes)) == ((3, 64, 64), 3925, 10)
    assert torch.bincount(images.labels).tolist() == [357, 386, 409, 395, 394, 389, 419, 399, 390, 387]
    assert images.classes[0] == "cassette_player"
    with zipfile.ZipFile(data_dir / "imagenette64.zip") as archive:
        name = max(name for name in archive.namelist() if name.startswith("val/tench/"))
        with Image.open(io.BytesIO(archive.read(name))) as last:
            assert images.images[-1].permute(1, 2, 0).tolist() == [
                [list(last.convert("RGB").getpixel((x, y)) or ()) for x in range(64)]  # type: ignore[arg-type]  # RGB
                for y in range(64)
            ]
