"""Tests of folders and zips of class folders, in common layouts."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
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
        assert "there is no test split: the validation split is the test set" in load(str(path), "test").source

    def test_test_has_precedence_over_val(self, tmp_path: Path, zipped: bool) -> None:
        path = write_files(tmp_path / "set", {**SPLIT, "test/a/y.png": 5}, zipped)
        assert train_and_test(path) == (TRAIN_IMAGES, [("a", 5)])
        assert "val/ is ignored" in load(str(path), "train").source
        assert "no test split" not in load(str(path), "train").source

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
        assert load(str(path), "train").messages == ("ignored: 1 .csv, 1 .txt",)
        assert load(str(path), "test").messages == ("no test image has the class a",)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"a/1.png": 1, "a/2.png": 1, "b/": b""}, "The class folder 'b' in .*set.* has no images"),
            ({"a/1.png": 1, "a/2.png": 1, "b/notes.txt": b"x"}, "The class folder 'b' in .* has no images"),
            ({**SPLIT, "val/c/1.png": 1}, "the class 'c' in val/ but not in train/"),
            ({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1}, "The class folder 'b' in .* has a single image"),
            (
                {"1.png": 1, "2.png": 2, "notes.txt": b"x"},
                r"^There are 2 images, but no class folders .*set.*: move .*, as in .*set.*/<class>/<image>\.png, and",
            ),
            ({"train/1.jpg": 1, "val/1.jpg": 1, "trainannot/1.png": 1}, "no class folders with images in .*train"),
            ({"readme.txt": b"x"}, "^There are no class folders with images"),
            (
                {**SPLIT, "train/a/2.png": png(1)[:-20]},
                "No image of the class 'a' .*2.png in .*set.* cannot be decoded",
            ),
            ({"a/1.png": b"", "a/2.png": b""}, "no readable images in .*set.* is empty"),
            ({"test/a/1.png": 1, "val/a/1.png": 1}, "set.* has test/ and val/ but no train/"),
            ({**SPLIT, "Train/a/1.png": 1}, "Train/ and train/, both for the train images"),
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
    train = load(str(path), "train")
    assert gray_levels(train) == [("a", 2), ("b", 3)]
    assert "train/b/1.png in" in train.messages[0]
    assert "cannot be unpacked" in train.messages[0]
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
    with pytest.raises(UserError, match=r"No image of the class 'a' .*train/a/2\.png has 300 MiB"):
        load(str(path), "train")


def test_class_folder_may_be_a_symbolic_link(tmp_path: Path) -> None:
    linked = write_files(tmp_path / "linked", {"1.png": 1, "2.png": 2})
    path = write_files(tmp_path / "set", {"a/1.png": 3, "a/2.png": 4})
    (path / "b").symlink_to(linked)
    assert gray_levels(load(str(path), "train")) == [("a", 4), ("b", 2)]


def test_links_into_the_tree_are_not_followed(tmp_path: Path) -> None:
    """A link to the folder itself, to its parent, to a class, and two links to one folder outside."""
    outside = write_files(tmp_path / "outside", {"1.png": 5, "2.png": 6})
    path = write_files(tmp_path / "top" / "set", {"a/1.png": 1, "a/2.png": 2, "b/1.png": 3, "b/2.png": 4})
    (path / "a" / "again").symlink_to(path)
    (path / "b" / "up").symlink_to(path.parent)
    (path / "a_link").symlink_to(path / "a")
    (path / "c").symlink_to(outside)
    (path / "d").symlink_to(outside)
    train, test = load(str(path), "train"), load(str(path), "test")
    assert sorted(gray_levels(train) + gray_levels(test)) == [
        *(("a", 1), ("a", 2), ("b", 3), ("b", 4), ("c", 5), ("c", 6))
    ]
    notes = [line for line in train.messages if "is not followed" in line]
    assert len(notes) == 4
    (up,) = (line for line in notes if "b/up is" in line)
    assert up.endswith(f"it is a link to {path.parent}, a folder that holds it")
    assert sum("are read already" in line for line in notes) == 2  # a_link and d


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", "valid"), ("Train", "Test"), ("training", "validation"), ("TRAIN", "testing"), ("train", "VAL")),
        *(("training_set", "test_set"), ("train2017", "val2017"), ("Train-Images", "dev"), ("trainset", "testset")),
    ],
)
@pytest.mark.parametrize("layout", ["{split}/{label}/{name}", "set/{split}/{label}/{name}", "{label}/{split}/{name}"])
def test_folders_of_splits_are_not_classes(tmp_path: Path, train: str, test: str, layout: str) -> None:
    files: dict[str, bytes | int] = {}
    for value, (split, label) in enumerate(((train, "cat"), (train, "dog"), (test, "cat"), (test, "dog"))):
        for number in range(2):
            files[layout.format(split=split, label=label, name=f"{number}.png")] = value
    path = write_files(tmp_path / "pictures", files)
    assert train_and_test(path) == (
        [("cat", 0), ("cat", 0), ("dog", 1), ("dog", 1)],
        [("cat", 2), ("cat", 2), ("dog", 3), ("dog", 3)],
    )


def test_folders_of_splits_inside_of_themselves(tmp_path: Path) -> None:
    files: dict[str, bytes | int] = {
        f"{s}/{s}/{c}/{k}.png": k for s in ("seg_train", "seg_test") for c in "ab" for k in (1, 2)
    }
    path = write_files(tmp_path / "set", {**files, "seg_pred/1.png": 9})
    assert train_and_test(path) == ([("a", 1), ("a", 2), ("b", 1), ("b", 2)],) * 2
    files = {f"{s}/{c}/{k}.png": k for s in ("train", "test") for c in ("car", "train") for k in (1, 2)}
    assert load(str(write_files(tmp_path / "other", files)), "train").classes == ("car", "train")


def test_equal_folders_in_all_classes_are_mentioned(tmp_path: Path) -> None:
    files: dict[str, bytes | int] = {f"{year}/{c}/{k}.png": k for year in (2019, 2020) for c in "ab" for k in (1, 2)}
    images = load(str(write_files(tmp_path / "set", files)), "train")
    assert images.classes == ("2019", "2020")
    assert any("each class (2019, 2020) has the same folders (a, b)" in line for line in images.messages)
    files = {f"{folder}/{c}/{k}.png": k for folder in ("raw/train", "raw/test", "more") for c in "ab" for k in (1, 2)}
    images = load(str(write_files(tmp_path / "raw", files)), "train")
    assert images.classes == ("more", "raw")
    assert any("the folders test, train in raw/ are not used as splits" in line for line in images.messages)
    images = load(str(write_files(tmp_path / "set", {"2019/c/1.png": 1})), "train")
    assert not any("same folders" in line for line in images.messages)


def test_links_in_a_zip_are_named(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {f"{c}/{k}.png": k for c in "ab" for k in (1, 2)}, zipped=True)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("a/3.png", "c"):
            link = zipfile.ZipInfo(name)
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "a/1.png")
    images = load(str(path), "train")
    assert gray_levels(images) == [("a", 2), ("b", 2)]
    assert any("2 links in" in line and "such as a/3.png" in line for line in images.messages)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {f"{label}/{k}.png": k for label in ("car", "train") for k in range(3)})
    assert load(str(path), "train").classes == ("car", "train")


def test_images_outside_of_the_folders_of_the_splits_are_mentioned(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {**SPLIT, "extra/c/1.png": 1})
    train = load(str(path), "train")
    assert train.classes == ("a", "b")
    assert "not used: 1 image outside of train/, val/, such as extra/c/1.png" in train.messages


def test_a_damaged_image_is_left_out_and_named(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {**SPLIT, "train/a/9.png": png(1)[:-20], "train/a/8.png": b""})
    train = load(str(path), "train")
    assert gray_levels(train) == TRAIN_IMAGES
    assert train.messages[-1].startswith("2 left out: ")
    assert "8.png in" in train.messages[-1]
    assert "9.png in" in train.messages[-1]


def test_the_unreadable_image_of_the_class_is_named(tmp_path: Path) -> None:
    files = {**SPLIT, "train/a/0.png": b"", "train/b/0.png": b"", "train/b/1.png": png(1)[:-20]}
    path = write_files(tmp_path / "set", files)
    with pytest.raises(UserError, match=r"No image of the class 'b' in .*: train/b/0\.png in .* is empty"):
        load(str(path), "train")


def test_formats_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {**SPLIT, "train/a/photo.HEIC": b"x", "train/b/x.jfif": png(9)})
    train = load(str(path), "train")
    assert ("b", 9) in gray_levels(train)
    assert "train/a/photo.HEIC has a format that cannot be read here: save it as PNG or JPEG." in train.messages[-1]


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


def test_a_zip_that_another_program_must_unpack(tmp_path: Path) -> None:
    """The Windows Explorer packs large archives with Deflate64."""
    path = write_files(tmp_path / "set", SPLIT, zipped=True)
    content = bytearray(path.read_bytes())
    for signature, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        offset = content.find(signature)
        while offset >= 0:
            content[offset + method] = 9
            offset = content.find(signature, offset + 1)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be unpacked .*Deflate64\): unpack the archive"):
        load(str(path), "train")


def test_a_zip_with_the_separators_of_windows(tmp_path: Path) -> None:
    path = write_files(tmp_path / "set", {name.replace("/", "\\"): value for name, value in SPLIT.items()}, zipped=True)
    train = load(str(path), "train")
    assert gray_levels(train) == gray_levels(load(str(write_files(tmp_path / "other", SPLIT, zipped=True)), "train"))


def stylegan(labels: object) -> dict[str, bytes | int]:
    """Return images of three gray levels in folders of five, with their labels beside them."""
    files: dict[str, bytes | int] = {f"{index // 5:05}/img{index:08}.png": index % 3 for index in range(15)}
    return {**files, "dataset.json": json.dumps({"labels": labels}).encode()}


@pytest.mark.parametrize("zipped", [True, False])
def test_labels_of_stylegan_are_the_classes_and_not_its_folders(tmp_path: Path, zipped: bool) -> None:
    """The folders of NVIDIA's dataset tool only limit the number of files in each."""
    names = [name for name in stylegan(None) if name.endswith(".png")]
    labels = [[name, 10 - int(index % 3)] for index, name in enumerate(names)]
    path = str(write_files(tmp_path / "set", stylegan(labels), zipped))
    train, test = load(path, "train"), load(path, "test")
    assert train.classes == test.classes == ("8", "9", "10")
    assert set(gray_levels(train)) == {("10", 0), ("9", 1), ("8", 2)}
    assert (len(train), len(test)) == (12, 3)
    assert "labels of dataset.json" in train.source
    assert not train.messages


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"has no classes, as its dataset\.json says"),
        ([["00000/img00000000.png", [0.5, 0.5]]], "not pairs of an image and the number of a class"),
        ([["00000/img00000000.png", "cat"]], "not pairs of an image and the number of a class"),
        ([["elsewhere.png", 1]], r"has none of the images in its dataset\.json"),
    ],
)
def test_labels_of_stylegan_that_give_no_classes_are_refused(tmp_path: Path, labels: object, message: str) -> None:
    path = write_files(tmp_path / "set", stylegan(labels))
    with pytest.raises(UserError, match=message):
        load(str(path), "train")
    (path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json in .* is not valid JSON"):
        load(str(path), "train")
    for content in ("{}", '{"labels": ["cat", "dog"]}', '{"labels": {"0": "cat"}}'):  # of another program
        (path / "dataset.json").write_text(content)
        assert load(str(path), "train").classes == ("00000", "00001", "00002")


def test_a_class_without_test_images_keeps_the_numbers_of_the_others(tmp_path: Path) -> None:
    files: dict[str, bytes | int] = {f"train/{name}/1.png": value for name, value in (("a", 1), ("b", 2), ("c", 3))}
    path = write_files(tmp_path / "set", {**files, "test/a/1.png": 1, "test/c/1.png": 3})
    test = load(str(path), "test")
    assert gray_levels(test) == [("a", 1), ("c", 3)]
    assert test.messages == ("no test image has the class b",)


def stylegan_splits(folders: Sequence[str], at_root: bool) -> dict[str, bytes | int]:
    """Return the images of `stylegan` in folders of splits, with one dataset.json, or one in each folder."""
    names = [name for name in stylegan(None) if name.endswith(".png")]
    files: dict[str, bytes | int] = {f"{top}/{name}": k % 3 for top in folders for k, name in enumerate(names)}
    rows = [[name, k % 3] for k, name in enumerate(names)]
    tables = {"dataset.json": [[f"{top}/{name}", label] for top in folders for name, label in rows]}
    tables = tables if at_root else {f"{top}/dataset.json": rows for top in folders}
    return files | {path: json.dumps({"labels": table}).encode() for path, table in tables.items()}


@pytest.mark.parametrize("at_root", [True, False])
def test_labels_of_stylegan_in_folders_of_splits(tmp_path: Path, at_root: bool) -> None:
    """Test images were every tenth one, and two files of labels were ignored."""
    path = str(write_files(tmp_path / "set", stylegan_splits(("train", "test"), at_root)))
    train, test = load(path, "train"), load(path, "test")
    assert train.classes == test.classes == ("0", "1", "2")
    assert (len(train), len(test)) == (15, 15)
    assert train.labels.tolist() == train.images[:, 0, 0, 0].tolist()
    assert "labels of dataset.json in train/ and test/" in train.source


def test_several_files_of_labels_are_one_set(tmp_path: Path) -> None:
    files = stylegan_splits(("cats", "dogs"), at_root=False)
    path = write_files(tmp_path / "set", {**files, ".trash/dataset.json": b"{", "readme/dataset.json": b"{}"})
    train = load(str(path), "train")
    assert (len(train), train.classes) == (27, ("0", "1", "2"))
    (path / "dataset.json").write_text(json.dumps({"labels": [["cats/00000/img00000000.png", 2]]}))
    with pytest.raises(UserError, match=r"cats/00000/img00000000\.png in .* has the label [02] in one dataset\.json"):
        load(str(path), "train")


def test_a_label_of_test_images_that_no_training_image_has_is_refused(tmp_path: Path) -> None:
    files = stylegan_splits(("train", "test"), at_root=False)
    rows = [[name.removeprefix("test/"), 7] for name in files if name.startswith("test/") and name.endswith(".png")]
    path = write_files(tmp_path / "set", {**files, "test/dataset.json": json.dumps({"labels": rows}).encode()})
    with pytest.raises(UserError, match=r"has the class '7' in test/ but not in train/"):
        load(str(path), "test")
