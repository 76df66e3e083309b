"""Tests of masks as data sets really have them: nothing is truncated, confused, or dropped silently."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.core.data.test_masks import PHOTO, encode, write_files
from zerokara.core.config import UserError
from zerokara.core.data import load_masks
from zerokara.core.data.image_files import decode_mask

TWO = np.array([[0, 0, 0, 1, 1, 1]] * 4, np.uint8)


def pairs(names: str = "abcdefghijkl", images: str = "images", masks: str = "masks") -> dict[str, np.ndarray | bytes]:
    files: dict[str, np.ndarray | bytes] = {f"{images}/{name}.png": PHOTO for name in names}
    return files | {f"{masks}/{name}.png": TWO for name in names}


def test_numbers_of_classes_are_whole() -> None:
    for dtype in (np.float32, np.int32):
        assert decode_mask(encode(TWO.astype(dtype), kind="TIFF"), "m").tolist() == TWO.tolist()
    for value, message in ((0.5, "a pixel of class 0.5"), (np.nan, "of class nan"), (-1, "of class -1"), (256, "256")):
        mask = np.full((2, 2), value, np.float32)
        with pytest.raises(UserError, match=message):
            decode_mask(encode(mask, kind="TIFF"), "m")


def test_masks_in_jpeg_are_named(tmp_path: Path) -> None:
    jpeg = {f"masks/{name}.jpg": encode(TWO, kind="JPEG") for name in "xy"}
    both = load_masks(str(write_files(tmp_path / "both", {**pairs(), **jpeg})), "train")
    assert "2 masks in" in both.messages[-1]
    assert "such as masks/x.jpg: save masks as PNG" in both.messages[-1]
    only = {name: content for name, content in pairs().items() if name.startswith("images")}
    with pytest.raises(UserError, match=r"no images with masks .* 2 masks in .* compression"):
        load_masks(str(write_files(tmp_path / "only", {**only, **jpeg})), "train")


def test_images_without_a_counterpart_are_named(tmp_path: Path) -> None:
    """A second image of one name, and images in a folder without masks."""
    files = {**pairs(), "images/a.tif": encode(PHOTO, kind="TIFF"), "images/more/z.png": PHOTO}
    train = load_masks(str(write_files(tmp_path / "set", files)), "train")
    assert len(train) + 3 == 12  # two of the others are test images, one a validation image
    assert "images/a.tif has the name of images/a.png, which is used." in train.messages[-1]
    assert "images/more/z.png in" in train.messages[-1]
    assert "is in a folder without masks" in train.messages[-1]


def test_splits_have_several_names(tmp_path: Path) -> None:
    files = pairs("abc", "images/Train", "masks/training") | pairs("de", "images/VAL", "masks/validation")
    path = str(write_files(tmp_path / "set", files))
    assert (load_masks(path, "train").names, load_masks(path, "test").names) == (("b", "c"), ("d", "e"))


def test_an_image_that_exif_turns_and_its_mask_that_is_not_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    photo = PHOTO.copy()
    photo[:, :3] = 200
    Image.fromarray(photo).save(turned, "PNG", exif=exif)
    path = str(write_files(tmp_path / "set", {**pairs(), "images/c.png": turned.getvalue()}))
    train = load_masks(path, "train")
    assert "1 image is not turned by its EXIF orientation, as its mask is not" in train.messages
    assert not any("converted" in line for line in train.messages)
    assert train.images[train.names.index("c"), 0, 0].tolist() == [200] * 3 + [0] * 3


@pytest.mark.parametrize(
    ("content", "message"), [(b"caf\xe9\nstreet\n", "is not in UTF-8"), (b"a\nb\na\n", "has the class 'a' twice")]
)
def test_invalid_lists_of_classes_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = str(write_files(tmp_path / "set", {**pairs(), "classes.txt": content}))
    with pytest.raises(UserError, match=rf"classes\.txt in .* {message}"):
        load_masks(path, "train")
