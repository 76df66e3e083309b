"""Tests of damaged box annotations, whose images are left out and named, and of names of folders and classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.core.data.test_box_files import load, voc, write_image
from tests.core.data.test_boxes_as_people_have_them import yolo
from zerokara.core.config import UserError
from zerokara.core.data.box_files import read_boxes


@pytest.mark.parametrize("damage", [b"\xff\xd8\xff damaged", b"0 30 30 8 8\n1 x"])
def test_an_image_with_a_damaged_label_file_is_not_one_without_objects(tmp_path: Path, damage: bytes) -> None:
    for index in range(30):
        write_image(tmp_path / f"{index:02}.png")
        (tmp_path / f"{index:02}.txt").write_bytes(damage if index < 10 else b"" if index == 29 else b"0 .5 .5 .5 .5")
    boxes = load(tmp_path)
    assert boxes.names == tuple(f"{index}.png" for index in range(10, 30))
    assert [len(each) for each in boxes.boxes] == [1] * 19 + [0]
    assert not any("without an annotation" in line for line in boxes.messages)
    (tmp_path / "10.txt").write_bytes(damage)
    with pytest.raises(UserError, match=r"11 of 30 images in .* 00.png has no valid annotation in 00.txt"):
        load(tmp_path)


def test_a_label_file_that_cannot_be_read_is_not_one_without_objects(tmp_path: Path) -> None:
    def read(name: str) -> bytes:
        if name == "a.txt":
            raise UserError("a.txt is damaged.")
        return b"0 .5 .5 .5 .5"

    listing = read_boxes(["a.png", "a.txt", "b.png", "b.txt"], read, tmp_path)
    assert [each.picture for each in listing.pictures] == ["b.png"]
    assert listing.unusable == {"a.png": "a.txt is damaged."}


@pytest.mark.parametrize("damaged", [10, 11])
def test_damaged_annotations_count_as_images_that_cannot_be_used(tmp_path: Path, damaged: int) -> None:
    for index in range(30):
        write_image(tmp_path / "JPEGImages" / f"{index}.png")
        voc(tmp_path / "Annotations" / f"{index}.xml", "", ("cat", (1, 1, 9, 9)))
        if index < damaged:
            (tmp_path / "Annotations" / f"{index}.xml").write_text("<annotation>")
    if damaged == 10:
        assert len(load(tmp_path)) == 20
    else:
        with pytest.raises(UserError, match=r"11 of 30 images in .* cannot be used"):
            load(tmp_path)


@pytest.mark.parametrize("kind", ["image", "box"])
def test_invalid_entries_of_coco_count_as_images_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    for index in range(30):
        write_image(tmp_path / f"{index}.png")
    images: list[dict[str, Any]] = [{"id": index, "file_name": f"{index}.png"} for index in range(30)]
    rows: list[dict[str, Any]] = [{"image_id": index, "category_id": 1, "bbox": [1, 2, 3, 4]} for index in range(30)]
    for index in range(11):
        if kind == "image":
            images[index] = {"id": index}
        else:
            rows[index]["bbox"] = [1, 2]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "ant"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"11 of 30 images in .* cannot be used"):
        load(tmp_path)


def test_folders_of_several_words_in_the_name_of_an_annotation_file(tmp_path: Path) -> None:
    """site_a.json belongs to site_a, not to site, whose name is a part of it."""
    content = {"images": [{"id": 1, "file_name": "1.png"}], "categories": [{"id": 1, "name": "ant"}]}
    (tmp_path / "annotations").mkdir()
    for folder in ("site", "site_a", "site-b"):
        write_image(tmp_path / folder / "1.png")
        row = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
        (tmp_path / "annotations" / f"{folder}.json").write_text(json.dumps({**content, "annotations": [row]}))
    assert load(tmp_path).names == ("site-b/1.png", "site/1.png", "site_a/1.png")


@pytest.mark.parametrize("value", ["null", "~", ""])
def test_names_of_yaml_that_are_null_are_absent(tmp_path: Path, value: str) -> None:
    yolo(tmp_path, "3 .5 .5 .5 .5", f"names: {value}")
    assert load(tmp_path).classes == ("3",)


@pytest.mark.parametrize("names", ["names: {0: a, 0: b}", "names: [a]\nnames: [b]"])
def test_a_key_that_yaml_has_twice_is_refused(tmp_path: Path, names: str) -> None:
    yolo(tmp_path, "0 .5 .5 .5 .5", names)
    with pytest.raises(UserError, match=r"data.yaml in .* is invalid .* occurs twice"):
        load(tmp_path)
