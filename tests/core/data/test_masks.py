"""Tests of images with masks, in common layouts, and of invalid data."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from zerokara.core.config import UserError
from zerokara.core.data import UNLABELED, MaskSet, load_masks
from zerokara.core.data.image_files import decode_mask, resize_and_crop, resize_and_crop_mask
from zerokara.core.data.mask_files import CAMVID, VOC
from zerokara.core.data.splits import AnySplit

PHOTO = np.zeros((4, 6, 3), np.uint8)
MASK = np.array([[0, 0, 1, 1, 2, 2]] * 4, np.uint8)


def encode(array: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(array)
    if mode == "P":
        image = Image.fromarray(array, "L").convert("P")
        image.putdata(array.ravel().tolist())
        image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    image.save(out, kind)
    return out.getvalue()


def write_files(root: Path, files: Mapping[str, np.ndarray | bytes], *, zipped: bool = False) -> Path:
    """Write images to a folder or zip; arrays are encoded as PNG."""
    content = {name: item if isinstance(item, bytes) else encode(item) for name, item in files.items()}
    if zipped:
        with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return root.with_suffix(".zip")
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def camvid(**changes: np.ndarray | bytes | None) -> dict[str, np.ndarray | bytes]:
    """Create two training images, one for validation and one for testing; `changes` replace masks by their stem."""
    files: dict[str, np.ndarray | bytes] = {}
    for split, names in (("train", ("a", "b")), ("val", ("c",)), ("test", ("d",))):
        for name in names:
            files[f"{split}/{name}.png"] = PHOTO
            files[f"{split}annot/{name}.png"] = MASK
    for name, item in changes.items():
        path = next(path for path in files if path.endswith(f"annot/{name}.png"))
        if item is None:
            del files[path]
        else:
            files[path] = item
    return files


# Layouts.


@pytest.mark.parametrize("zipped", [False, True])
def test_camvid_classes_and_unlabeled_number(tmp_path: Path, zipped: bool) -> None:
    mask = np.array([[0, 10, 11, 11, 2, 2]] * 4, np.uint8)
    path = write_files(tmp_path / "street", camvid(b=mask), zipped=zipped)
    train = load_masks(str(path), "train")
    assert train.classes == CAMVID
    assert train.names == ("a", "b")
    assert train.shape == (3, 4, 6)
    assert train.masks[1, 0].tolist() == [0, 10, UNLABELED, UNLABELED, 2, 2]
    assert [load_masks(str(path), split).names for split in ("val", "test")] == [("c",), ("d",)]


def test_with_explicit_classes_11_is_a_class(tmp_path: Path) -> None:
    path = write_files(tmp_path / "street", camvid(b=np.full((4, 6), 11, np.uint8)))
    names = [f"thing {number}" for number in range(12)]
    assert load_masks(str(path), "train", classes=names).masks[1].unique().tolist() == [11]
    write_files(path, {"classes.txt": "\n".join(names).encode()})
    assert load_masks(str(path), "train").classes == tuple(names)


def test_voc_lists(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 15, 20, 255, 255]] * 4, np.uint8)
    files: dict[str, np.ndarray | bytes] = {
        f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg": encode(PHOTO, kind="JPEG") for name in ("x", "y", "z", "other")
    }
    files |= {f"VOCdevkit/VOC2012/SegmentationClass/{name}.png": encode(mask, "P") for name in ("x", "y", "z")}
    lists = "VOCdevkit/VOC2012/ImageSets/Segmentation"
    files |= {f"{lists}/train.txt": b"x\ny\n", f"{lists}/val.txt": b"z\n", f"{lists}/test.txt": b"unknown\n"}
    path = write_files(tmp_path / "voc", files)
    train = load_masks(str(path), "train")
    assert train.classes == VOC
    assert train.masks[0, 0].tolist() == [0, 1, 15, 20, UNLABELED, UNLABELED], "palette indices, not colors"
    # The test masks are not published, so val becomes the test split, and val is held out of train.
    assert [load_masks(str(path), split).names for split in ("train", "val", "test")] == [("y",), ("x",), ("z",)]
    write_files(path, {f"{lists}/train.txt": b"x\nw\ny\n"})
    train = load_masks(str(path), "train")
    assert train.names == ("y",)
    assert re.search(r"1 left out: .* lacks .*JPEGImages/w\.jpg, which .*train\.txt lists", train.messages[-1])
    write_files(path, {f"{lists}/train.txt": b"w\n"})
    with pytest.raises(UserError, match=r"lacks .*JPEGImages/w\.jpg, which .*train\.txt lists: add it"):
        load_masks(str(path), "train")
    inner = path / "VOCdevkit" / "VOC2012"
    (inner / "ImageSets/Segmentation/train.txt").write_text("x\ny\n")
    assert load_masks(str(inner), "test").names == ("z",), "the folder itself is given"
    for number, expected in ((10, ("y",)), (11, None)):
        missing = "".join(f"m{index}\n" for index in range(number))
        (inner / "ImageSets/Segmentation/train.txt").write_text(f"x\ny\n{missing}")
        if expected:
            assert load_masks(str(inner), "train").names == expected
        else:
            with pytest.raises(UserError, match=r"11 of 14 images in .* cannot be used"):
                load_masks(str(inner), "train")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}/{}.png", "masks/{}/{}.png"),
        ("{}/images/{}.png", "{}/labels/{}_mask.png"),
        ("set/Images/{}/{}.png", "set/annotations/{}/{}_L.png"),
    ],
)
def test_pairs_of_folders(tmp_path: Path, image: str, mask: str) -> None:
    files: dict[str, np.ndarray | bytes] = {"readme.txt": b"hello", "preview.png": PHOTO}
    for split, name in (("train", "a"), ("train", "b"), ("val", "c"), ("test", "d")):
        files |= {image.format(split, name): PHOTO, mask.format(split, name): MASK}
    path = write_files(tmp_path / "pairs", files)
    sets = [load_masks(str(path), split) for split in ("train", "val", "test")]
    assert [mask_set.names for mask_set in sets] == [("a", "b"), ("c",), ("d",)]
    assert sets[0].classes == ("class 0", "class 1", "class 2")


def test_separate_mask_folder_and_held_out_splits(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(21)]
    images = write_files(tmp_path / "photos", {f"{name}.png": PHOTO for name in names})
    masks = write_files(tmp_path / "masks", {f"{name}.png": MASK for name in names})
    splits = {split: load_masks(str(images), split, masks=str(masks)).names for split in ("train", "val", "test")}
    assert splits["test"] == ("00", "10", "20")
    assert splits["val"] == ("01", "12")
    assert sorted(sum(splits.values(), ())) == names
    with pytest.raises(UserError, match="--masks"):
        load_masks(str(images), "train")
    with pytest.raises(UserError, match=r"no .*missing.*--masks"):
        load_masks(str(images), "train", masks="missing")


def test_resizing_keeps_class_numbers(tmp_path: Path) -> None:
    big = np.kron(MASK, np.ones((3, 3), np.uint8))
    files = camvid(b=big)
    files["train/b.png"] = np.zeros((12, 18, 3), np.uint8)
    path = write_files(tmp_path / "street", files)
    with pytest.raises(UserError, match=r"b\.png in .* has 18x12 pixels, but .*a\.png has 6x4.*--image-size 4 6"):
        load_masks(str(path), "train")
    train = load_masks(str(path), "train", image_size=(4, 6))
    assert train.masks[1].tolist() == MASK.tolist()
    small = load_masks(str(path), "train", image_size=(2, 2), grayscale=True)
    assert small.shape == (1, 2, 2)
    assert small.masks[0].tolist() == [[0, 1]] * 2  # the center of 0, 1, 2


def test_a_validation_split_that_is_the_test_set_is_said(tmp_path: Path) -> None:
    files: dict[str, np.ndarray | bytes] = {}
    for name in ("train/a", "train/b", *(f"train/{number}" for number in range(10)), "val/c"):
        folder, stem = name.split("/")
        files[f"{folder}/{stem}.png"], files[f"{folder}annot/{stem}.png"] = PHOTO, MASK
    path = write_files(tmp_path / "street", files)
    said = [line for line in load_masks(str(path), "train").messages if "there is no test split" in line]
    assert len(said) == 1
    assert load_masks(str(path), "test").names == ("c",)
    whole = load_masks(str(write_files(tmp_path / "whole", camvid())), "train")
    assert not any("test split" in line for line in whole.messages)


def test_masks_are_cropped_like_images() -> None:
    for shape, size in (((9, 13), (4, 8)), ((5, 4), (10, 10)), ((7, 7), (7, 3))):
        mask = np.zeros(shape, np.uint8)
        mask[:, shape[1] // 2 :] = 200
        image = resize_and_crop(mask[..., None], size)[..., 0]
        assert resize_and_crop_mask(mask, size).shape == size
        assert np.abs(resize_and_crop_mask(mask, size).astype(int) - image).mean() < 30
        assert set(np.unique(resize_and_crop_mask(mask, size))) <= {0, 200}


# Invalid data.


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, r"train/b\.png in .* has no mask: add b\.png"),
        (MASK[:3], r"trainannot/b\.png in .* has 6x3 pixels, but its image .*b\.png has 6x4"),
        (np.arange(72, dtype=np.uint8).reshape(4, 6, 3), r"trainannot/b\.png .* has colors"),
        (b"", r"trainannot/b\.png .* is empty"),
        (encode(MASK)[:40], r"trainannot/b\.png .* cannot be decoded"),
    ],
)
def test_an_invalid_mask_is_left_out_and_named(tmp_path: Path, mask: np.ndarray | bytes | None, message: str) -> None:
    path = write_files(tmp_path / "street", camvid(b=mask))
    train = load_masks(str(path), "train")
    assert train.names == ("a",)
    assert re.search("1 left out: .*" + message, train.messages[-1])
    (path / "train/a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"No image with its mask in .* can be used"):
        load_masks(str(path), "train")


def test_a_number_without_a_class_is_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path / "street", camvid(b=np.full((4, 6), 12, np.uint8)))
    message = r"trainannot/b\.png .* class 12.*11 classes, 0 to 10.*--unlabeled"
    with pytest.raises(UserError, match=message):
        load_masks(str(path), "train")


def write_pairs(root: Path, mask: np.ndarray, names: str = "abcdefghijkl") -> str:
    files: dict[str, np.ndarray | bytes] = {}
    for name in names:
        files |= {f"images/{name}.png": PHOTO, f"masks/{name}.png": mask}
    return str(write_files(root, files))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 128), (1, 2), (7, 255)])
def test_two_values_that_are_not_0_and_1_are_refused_unless_they_are_named(tmp_path: Path, low: int, high: int) -> None:
    path = write_pairs(tmp_path / "pairs", np.where(MASK == 0, low, high).astype(np.uint8))
    for classes in ((), ("skin", "wound")):
        with pytest.raises(UserError, match=rf"values {low} .*33\.3%, {high} .*66\.7%.*--mask-values {low} {high}"):
            load_masks(path, "train", classes=classes if (low, high) != (1, 2) else ("skin", "wound"))
    train = load_masks(path, "train", classes=("skin", "wound"), mask_values=(low, high))
    assert train.masks[0].tolist() == (MASK > 0).astype(int).tolist()
    assert f"values {low} (skin) 33.3%, {high} (wound) 66.7%" in train.messages[0]
    assert load_masks(path, "test", mask_values=(low, high)).classes == ("class 0", "class 1")


def test_mask_values_must_fit_the_classes(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs", MASK)
    with pytest.raises(UserError, match="names 3 values, but there are 2 classes"):
        load_masks(path, "train", classes=("a", "b"), mask_values=(0, 1, 2))
    for values, unlabeled in (((0, 0, 1), None), ((0, 1, 2), 2)):
        with pytest.raises(UserError, match="occurs twice"):
            load_masks(path, "train", mask_values=values, unlabeled=unlabeled)
    train = load_masks(path, "train", mask_values=(0, 2), unlabeled=1)
    assert train.masks[0, 0].tolist() == [0, 0, UNLABELED, UNLABELED, 1, 1]


def test_classes_without_pixels_are_named(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs", MASK)
    train = load_masks(path, "train", classes=("sky", "road", "tree", "car", "pole"))
    assert "no pixel of train has the class car, pole" in train.messages


def test_masks_without_an_image_are_counted_and_named(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs", MASK)
    write_files(Path(path), {"masks/lost.png": MASK, "masks/other.png": MASK})
    messages = " ".join(load_masks(path, "train").messages)
    assert re.search(r"2 left out: masks/lost\.png in .* has no image of its name\. masks/other\.png in ", messages)


def test_missing_and_insufficient_data_are_rejected(tmp_path: Path) -> None:
    write_files(tmp_path / "street", camvid())
    with pytest.raises(UserError, match=r"no data set 'stret'.*did you mean street"):
        load_masks("stret", "train", data_dir=tmp_path)
    only_val = {name: item for name, item in camvid().items() if name.startswith("val")}
    with pytest.raises(UserError, match="val but no train"):
        load_masks(str(write_files(tmp_path / "val", only_val)), "train")
    with pytest.raises(UserError, match="too few images"):
        load_masks(str(write_files(tmp_path / "one", {"images/a.png": PHOTO, "masks/a.png": MASK})), "train")
    single_class = {
        f"{kind}/{name}.png": item for kind, item in (("images", PHOTO), ("masks", MASK * 0)) for name in "abc"
    }
    with pytest.raises(UserError, match="at least 2"):
        load_masks(str(write_files(tmp_path / "single", single_class)), "train")
    with pytest.raises(UserError, match="have no labeled pixel"):
        load_masks(str(tmp_path / "single"), "train", unlabeled=0, classes=("a", "b"))


def test_masks_of_other_modes() -> None:
    assert decode_mask(encode(MASK.astype(np.uint16)), "m").tolist() == MASK.tolist()
    assert decode_mask(encode(np.repeat(MASK[..., None], 3, 2)), "m").tolist() == MASK.tolist(), (
        "grayscale saved as RGB"
    )
    with pytest.raises(UserError, match="class 300"):
        decode_mask(encode(np.full((2, 2), 300, np.uint16)), "m")


def test_mask_set_validates_its_tensors() -> None:
    images, masks = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8)
    mask_set = MaskSet(images, masks, ("a", "b"), ("x", "y"), "here")
    assert mask_set.take([1]).names == ("y",)
    for invalid in (masks[:1], masks.long(), torch.full_like(masks, 2)):
        with pytest.raises(ValueError, match="masks must"):
            MaskSet(images, invalid, ("a", "b"), ("x", "y"), "here")


def test_real_camvid(data_dir: Path) -> None:
    val = load_masks("camvid", "val", data_dir=data_dir)
    assert (len(val), val.shape, val.classes) == (101, (3, 180, 240), CAMVID)
    assert UNLABELED in val.masks


def test_transparency_of_a_mask_is_ignored() -> None:
    """Some editors save gray with transparency: the gray level is the class, also of pixels that are transparent."""
    opacity = np.array([[255, 0, 128, 255, 0, 128]] * 4, np.uint8)
    assert decode_mask(encode(np.stack([MASK, opacity], 2)), "m").tolist() == MASK.tolist()


# Colored masks of CVAT.

COLORS = {"background": (0, 0, 0), "road": (128, 64, 128), "car": (0, 0, 142)}
LABELMAP = "# label:color_rgb:parts:actions\n" + "".join(
    f"{name}:{','.join(map(str, color))}::\n" for name, color in COLORS.items()
)


def colored(numbers: np.ndarray) -> np.ndarray:
    colors_KC = np.array(list(COLORS.values()), np.uint8)
    return colors_KC.take(numbers, 0)


def cvat(**changes: np.ndarray | bytes) -> dict[str, np.ndarray | bytes]:
    """Create an export of "Segmentation mask 1.1" with images; `changes` replace masks by their name."""
    names = [f"frame{index:02}" for index in range(12)]
    files: dict[str, np.ndarray | bytes] = {
        "labelmap.txt": LABELMAP.encode(),
        "ImageSets/Segmentation/default.txt": "\n".join(names).encode(),
    }
    for name in names:
        files[f"JPEGImages/{name}.jpg"] = encode(PHOTO, kind="JPEG")
        files[f"SegmentationClass/{name}.png"] = changes.get(name, colored(MASK))
        files[f"SegmentationObject/{name}.png"] = np.full((4, 6, 3), 128, np.uint8)
    return files


@pytest.mark.parametrize("zipped", [False, True])
def test_colored_masks_of_cvat(tmp_path: Path, zipped: bool) -> None:
    path = write_files(tmp_path / "task", cvat(), zipped=zipped)
    train = load_masks(str(path), "train")
    assert train.classes == tuple(COLORS)
    assert train.masks[0].tolist() == MASK.tolist()
    assert "colored masks of CVAT" in train.source
    assert len(train.messages) == 1, train.messages
    assert sum(len(load_masks(str(path), split)) for split in ("train", "val", "test")) == 12


def test_colors_of_cvat_as_palettes_as_numbers_and_with_edges(tmp_path: Path) -> None:
    """The order of a palette is not that of the classes; a mask in gray has class numbers."""
    palette = Image.fromarray(2 - MASK, "P")
    palette.putpalette([level for color in reversed(COLORS.values()) for level in color])
    out = io.BytesIO()
    palette.save(out, "PNG")
    edges = colored(MASK)
    edges[0, 0] = (224, 224, 192)  # of PASCAL VOC
    files = cvat(frame01=out.getvalue(), frame02=MASK, frame03=edges)
    train = load_masks(str(write_files(tmp_path / "task", files)), "train")
    found = dict(zip(train.names, train.masks.tolist(), strict=True))
    assert found.pop("frame03")[0][:2] == [UNLABELED, 0]
    assert all(mask == MASK.tolist() for mask in found.values())


def test_splits_of_cvat_and_separate_masks(tmp_path: Path) -> None:
    files = cvat()
    del files["ImageSets/Segmentation/default.txt"]
    for split, numbers in {"Train": range(8), "Validation": range(8, 10), "Test": range(10, 12)}.items():
        files[f"ImageSets/Segmentation/{split}.txt"] = "\n".join(f"frame{index:02}" for index in numbers).encode()
    masks = write_files(tmp_path / "masks", {n: f for n, f in files.items() if "JPEG" not in n}, zipped=True)
    images = write_files(tmp_path / "images", {n: f for n, f in files.items() if "JPEG" in n})
    whole = write_files(tmp_path / "whole", files)
    for split, number in zip(get_args(AnySplit), (8, 2, 2), strict=True):
        for data, apart in ((whole, ""), (images, str(masks))):
            loaded = load_masks(str(data), split, masks=apart)
            assert len(loaded) == number
            assert loaded.classes == tuple(COLORS)
            assert not [line for line in loaded.messages if "left out" in line]


def test_a_color_without_a_class_is_left_out_and_named(tmp_path: Path) -> None:
    other = colored(MASK)
    other[1, 1:3] = (1, 2, 3)
    train = load_masks(str(write_files(tmp_path / "task", cvat(frame04=other))), "train")
    assert "frame04" not in train.names
    message = r"frame04\.png in .* has 2 pixels of colors that labelmap\.txt does not have, such as 1,2,3"
    assert re.search(message, train.messages[-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LABELMAP + "sky:70,130::\n", r"Line 5 of labelmap\.txt in .* is 'sky:70,130::'"),
        (LABELMAP + "sky:70,130,256::\n", "each 0 to 255"),
        (LABELMAP + f"sky:{'1' * 5000},0,0::\n", "each 0 to 255"),
        (LABELMAP + "car:1,1,1::\n", r"Line 5 of .* repeats a class or a color"),
        (LABELMAP + "sky:0,0,142::\n", r"Line 5 of .* repeats a class or a color"),
        ("".join(f"{index}:{index % 256},{index // 256},9::\n" for index in range(256)), "at most 255 are supported"),
    ],
)
def test_invalid_label_maps_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write_files(tmp_path / "task", {**cvat(), "labelmap.txt": text.encode()})
    with pytest.raises(UserError, match=message):
        load_masks(str(path), "train")


def test_different_label_maps_and_one_of_another_program(tmp_path: Path) -> None:
    path = write_files(tmp_path / "task", {**cvat(), "SegmentationClass/labelmap.txt": b"a:1,1,1::\nb:2,2,2::\n"})
    with pytest.raises(UserError, match=r"different classes in .*labelmap\.txt and .*labelmap\.txt"):
        load_masks(str(path), "train")
    files: dict[str, np.ndarray | bytes] = {f"images/{index}.png": PHOTO for index in range(4)}
    files |= {f"masks/{index}.png": MASK for index in range(4)}
    other = write_files(tmp_path / "other", {**files, "labelmap.txt": b"sky\nroad\ncar\n"})
    assert load_masks(str(other), "train").classes == ("class 0", "class 1", "class 2")
