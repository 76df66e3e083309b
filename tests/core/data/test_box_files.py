"""Tests of box annotation readers: the three formats, in folders and archives, and invalid data."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zerokara.core.config import UserError
from zerokara.core.data.boxes import BoxSet, load_boxes, pad_to_canvas, resize_to, split


def write_image(path: Path, width: int = 40, height: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 100, np.uint8)).save(path)


def voc(path: Path, filename: str, *objects: tuple[str, tuple[Any, ...]]) -> None:
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        f"</bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{filename}</filename>{rows}</annotation>")


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """Write two images, one of which was renamed after its annotation, and an empty box."""
    folder = tmp_path / "voc"
    write_image(folder / "JPEGImages" / "a.jpg")
    write_image(folder / "JPEGImages" / "b.jpg", 20, 40)
    voc(folder / "Annotations" / "a.xml", "old-name.jpg", ("cat", (1, 1, 20, 20)), ("dog", (21, 11, 40, 20)))
    voc(folder / "Annotations" / "b.xml", "b.jpg", ("cat", (5, 5, 5, 5)), ("cat", (1, 1, 99, 4)))
    return folder


def load(path: Path, side: int = 40) -> BoxSet:
    return load_boxes(str(path), image_side=side)


def boxes_of(boxes: BoxSet, index: int) -> list[list[float]]:
    rows: list[list[float]] = boxes.boxes[index].tolist()
    return rows


def test_voc(voc_folder: Path) -> None:
    boxes = load(voc_folder)
    assert boxes.names == ("JPEGImages/a.jpg", "JPEGImages/b.jpg")
    assert boxes.classes == ("cat", "dog")
    assert boxes_of(boxes, 0) == [[0, 0, 20, 20], [20, 10, 40, 20]]
    assert boxes_of(boxes, 1) == [[0, 0, 20, 4]]  # clipped to the image
    assert [labels.tolist() for labels in boxes.labels] == [[0, 1], [0]]
    assert boxes.counts == {"cat": 2, "dog": 1}
    assert boxes.messages == (
        "1 box reaches beyond its image and is cut at the edges",
        "1 left out: cat (5, 5, 5, 5) in Annotations/b.xml: the box has no area.",
    )
    assert "PASCAL VOC" in boxes.source


def test_archive_and_rescaling(voc_folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "voc.zip", "w") as archive:
        for file in voc_folder.rglob("*.*"):
            archive.write(file, file.relative_to(voc_folder.parent))
    boxes = load_boxes("voc", image_side=80, data_dir=tmp_path)
    assert boxes.images.shape == (2, 3, 80, 80)
    boxes = load(tmp_path / "voc.zip", 80)
    assert boxes.images.shape == (2, 3, 80, 80)  # one is wide and one is tall
    assert boxes.sizes.tolist() == [[40, 80], [80, 40]]
    assert boxes.scales.tolist() == [2, 2]
    assert boxes_of(boxes, 0) == [[0, 0, 40, 40], [40, 20, 80, 40]]
    assert boxes.picture(1).shape == (80, 40, 3)


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
        "categories": [{"id": 30, "name": "zebra"}, {"id": 20, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 30, "bbox": [2, 3, 10, 5]},
            {"id": 2, "image_id": 7, "category_id": 20, "bbox": [2, 3, 0, 5]},
            {"id": 3, "image_id": 7, "category_id": 20, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
        **changes,
    }


def test_coco(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "train" / f"{name}.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances.json").write_text(json.dumps(coco()))
    (tmp_path / "notes.json").write_text("[1, 2]")
    boxes = load(tmp_path)
    assert boxes.classes == ("ant", "zebra")  # sorted by id
    assert boxes_of(boxes, 0) == [[2, 3, 12, 8]]
    assert boxes.labels[0].tolist() == [1]
    assert len(boxes.boxes[1]) == 0
    assert boxes.messages[-1].startswith("2 left out: ")
    assert "a crowd of ant" in boxes.messages[-1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": 8, "category_id": 30, "bbox": [0, 0, 1, 1]}, "no image with the id 8"),
        ({"image_id": 7, "category_id": 30, "bbox": [0, 0, 1]}, "bbox is not four numbers"),
        ({"image_id": 7, "category_id": 31, "bbox": [0, 0, 1, 1]}, "no category with the id 31"),
        ({"image_id": 7, "category_id": 30, "bbox": [float("nan"), 0, 1, 1]}, "has no area"),
        ({"image_id": 7, "category_id": 30, "bbox": [0, 0, float("inf"), 1]}, "is infinite"),
        ({"image_id": 7, "category_id": None, "bbox": [0, 0, 1, 1]}, "it has no image_id or category_id"),
        ({"image_id": [7], "category_id": 30, "bbox": [0, 0, 1, 1]}, "it has no image_id or category_id"),
        ({"bbox": [0, 0, 1, 1]}, "it has no image_id or category_id"),
    ],
)
def test_an_invalid_annotation_of_coco_is_left_out_and_named(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
    content = coco()
    content["annotations"].append({"id": 4, **changes})
    (tmp_path / "c.json").write_text(json.dumps(content))
    boxes = load(tmp_path)
    assert [len(rows) for rows in boxes.boxes] == [1, 0]
    assert reason in boxes.messages[-1]
    assert "c.json" in boxes.messages[-1]


@pytest.mark.parametrize(
    "changes",
    [{"images": [{"id": 1, "file_name": "missing.png"}]}, {"images": [{"id": 1}]}, {"categories": [{"id": "x"}]}],
)
def test_invalid_coco_is_rejected(tmp_path: Path, changes: dict[str, Any]) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
    (tmp_path / "c.json").write_text(json.dumps(coco(**changes)))
    with pytest.raises(UserError, match=r"c\.json"):
        load(tmp_path)


def test_yolo(tmp_path: Path) -> None:
    for name in ("a", "b", "empty"):
        write_image(tmp_path / "images" / "train" / f"{name}.jpg")
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("1 0.5 0.5 0.5 1.0\n\n0 0.1 0.1 0.2 0.2\n")
    (labels / "b.txt").write_text("1 0.5 0.5 0.0 1.0\n0 1.5 0.5 0.1 0.1\n")
    boxes = load(tmp_path)
    assert boxes.classes == ("0", "1")
    torch.testing.assert_close(boxes.boxes[0], torch.tensor([[10.0, 0, 30, 20], [0, 0, 8, 4]]))
    assert boxes.labels[0].tolist() == [1, 0]
    assert [len(boxes) for boxes in boxes.boxes] == [2, 0, 0]
    assert boxes.messages[-1].startswith("2 left out: ")
    assert "outside of the image" in boxes.messages[-1]
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: ['ant', \"bee\"]\n")
    assert load(tmp_path).classes == ("ant", "bee")
    (labels / "b.txt").write_text("2 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError, match="has boxes of class 2"):
        load(tmp_path)
    (labels / "b.txt").write_text("ant 0.5 0.5\n")
    assert "the line 'ant 0.5 0.5' of labels/train/b.txt" in load(tmp_path).messages[-1]
    (labels / "a.txt").write_text("0 0.5 0.5 0.1 0.1 0.9\n")
    with pytest.raises(UserError, match=r"no valid YOLO annotation.*a\.txt"):
        load(tmp_path)


def test_error_messages(tmp_path: Path, voc_folder: Path) -> None:
    with pytest.raises(UserError, match="There is no data set"):
        load(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no images"):
        load(empty)
    write_image(empty / "a.png")
    with pytest.raises(UserError, match="has no box annotations"):
        load(empty)
    broken = voc_folder / "Annotations" / "a.xml"
    for text in ("", "<annotation><object>", "<?xml version='1.0' encoding='none'?><annotation/>"):
        broken.write_text(text)
        assert "Annotations/a.xml in" in (line := load(voc_folder).messages[-1])
        assert "2 left out" in line
        assert "is invalid" in line
    alone = voc_folder.with_name("alone")
    write_image(alone / "a.jpg")
    (alone / "a.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"a\.xml in .* is invalid"):
        load(alone)
    broken.write_text("<annotation><object><name>cat</name></object></annotation>")
    assert any("cat in Annotations/a.xml: the box has not four numbers" in line for line in load(voc_folder).messages)


def test_canvas() -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, :20] = 200
    small, scale = resize_to(wide, 20)
    assert (small.shape, scale) == ((10, 20, 3), 0.5)
    canvas = pad_to_canvas(small, 12, 20)
    assert canvas.shape == (3, 12, 20)
    assert (canvas[:, 10:] == 100).all()
    assert np.array_equal(canvas[:, :10].transpose(1, 2, 0), small)


def test_splits_are_disjoint_and_depend_on_the_seed(voc_folder: Path) -> None:
    box_set = load(voc_folder).take([0, 1] * 10)
    box_set = BoxSet(**{**vars(box_set), "names": tuple(map(str, range(20)))})
    train, validation, test = split(box_set, seed=0)
    assert (len(train), len(validation), len(test)) == (14, 2, 4)
    assert sorted(train.names + validation.names + test.names) == sorted(box_set.names)
    assert split(box_set, seed=0)[2].names == test.names
    assert any(split(box_set, seed=seed)[2].names != test.names for seed in range(1, 4))
    with pytest.raises(UserError, match="too few"):
        split(box_set.take(range(9)), seed=0)


def test_bccd(data_dir: Path) -> None:
    boxes = load_boxes("bccd", image_side=64, data_dir=data_dir)
    assert len(boxes) == 364
    assert boxes.images.shape == (364, 3, 48, 64)
    assert boxes.counts == {"Platelets": 361, "RBC": 4153, "WBC": 372}
    assert boxes.messages[-1].startswith("2 left out: ")
    assert "BloodImage_00338" in boxes.messages[-1]
