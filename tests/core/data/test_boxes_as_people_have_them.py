"""Tests of box annotations as data sets really have them: nothing is matched wrongly, guessed, or dropped silently."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.core.data.test_box_files import boxes_of, coco, load, voc, write_image
from zerokara.core.config import UserError
from zerokara.core.data.boxes import split


def test_annotations_are_matched_with_images_of_their_own_folder(tmp_path: Path) -> None:
    """Two folders with equal file names, and an image whose name is the beginning of another name."""
    for folder, width in (("day", 40), ("night", 80)):
        write_image(tmp_path / folder / "JPEGImages" / "1.jpg", width)
        voc(tmp_path / folder / "Annotations" / "1.xml", "1.jpg", ("cat", (1, 1, width // 2, 20)))
    write_image(tmp_path / "day" / "JPEGImages" / "a.jpg")
    voc(tmp_path / "day" / "Annotations" / "a.b.xml", "", ("dog", (1, 1, 9, 9)))
    boxes = load(tmp_path, 80)
    assert boxes.names == ("day/JPEGImages/1.jpg", "night/JPEGImages/1.jpg")
    assert [boxes_of(boxes, index) for index in range(2)] == [[[0, 0, 40, 40]], [[0, 0, 40, 20]]]
    assert "left out: 1 annotation without an image of the same name: day/Annotations/a.b.xml" in boxes.messages
    assert "left out: 1 image without an annotation: day/JPEGImages/a.jpg" in boxes.messages


def test_an_image_of_another_split_is_not_taken(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "images" / "1.jpg")
    write_image(tmp_path / "train" / "images" / "2.jpg")
    voc(tmp_path / "train" / "labels" / "1.xml", "1.jpg", ("cat", (1, 1, 9, 9)))
    voc(tmp_path / "test" / "labels" / "2.xml", "2.jpg", ("cat", (1, 1, 9, 9)))
    boxes = load(tmp_path)
    assert boxes.names == ("train/images/1.jpg",)
    assert any("test/labels/2.xml" in line for line in boxes.messages)


def test_cocos_own_annotations_folder(tmp_path: Path) -> None:
    """Instances, keypoints, captions and panoptic masks of two splits: every image once, in its own split."""
    for number, part in enumerate(("train", "val")):
        write_image(tmp_path / f"{part}2017" / f"{number}.png")
        image = {"id": number, "file_name": f"{number}.png", "width": 40, "height": 20}
        row = {"id": 1, "image_id": number, "category_id": 1, "bbox": [1, 2, 3, 4]}
        everything: dict[str, dict[str, Any]] = {
            "instances": {"annotations": [row], "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]},
            "person_keypoints": {"annotations": [row], "categories": [{"id": 1, "name": "person"}]},
            "captions": {"annotations": [{"image_id": number, "caption": "a dog"}]},
            "panoptic": {
                "annotations": [{"image_id": number, "segments_info": [], "file_name": "0.png"}],
                "categories": [{"id": 1, "name": "person"}],
            },
        }
        for kind, content in everything.items():
            path = tmp_path / "annotations" / f"{kind}_{part}2017.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"images": [image], **content}))
    boxes = load(tmp_path)
    assert boxes.names == ("train2017/0.png", "val2017/1.png")
    assert boxes.splits == ("train", "val")
    assert boxes.classes == ("person", "dog")
    assert any("person_keypoints_train2017.json" in line for line in boxes.messages)


def test_equal_file_names_in_two_splits_of_coco(tmp_path: Path) -> None:
    for part, width in (("train2017", 40), ("val2017", 80)):
        write_image(tmp_path / part / "0.png", width)
        content = coco(images=[{"id": 7, "file_name": "0.png", "width": width, "height": 20}])
        (tmp_path / f"instances_{part}.json").write_text(json.dumps(content))
    boxes = load(tmp_path, 80)
    assert boxes.names == ("train2017/0.png", "val2017/0.png")
    assert boxes_of(boxes, 0) == [[4, 6, 24, 16]]  # scaled by 2
    assert boxes_of(boxes, 1) == [[2, 3, 12, 8]]


def test_a_folder_whose_name_is_a_part_of_a_word_is_not_meant(tmp_path: Path) -> None:
    """instances.json does not name the folder in/."""
    for folder in ("in", "out"):
        write_image(tmp_path / folder / "a.png")
    (tmp_path / "instances.json").write_text(json.dumps(coco(images=[{"id": 7, "file_name": "a.png"}])))
    with pytest.raises(UserError, match="annotates 1 missing image, the first"):
        load(tmp_path)
    (tmp_path / "instances.json").rename(tmp_path / "instances_out.json")
    assert load(tmp_path).names == ("out/a.png",)


def test_classes_of_two_coco_files_are_matched_by_name(tmp_path: Path) -> None:
    for name, label, number in (("a", "ant", 1), ("b", "bee", 1)):
        write_image(tmp_path / f"{name}.png")
        content = coco(
            images=[{"id": 7, "file_name": f"{name}.png"}],
            categories=[{"id": number, "name": label}],
            annotations=[{"image_id": 7, "category_id": number, "bbox": [0, 0, 5, 5]}],
        )
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    boxes = load(tmp_path)
    assert boxes.classes == ("ant", "bee")
    assert [labels.tolist() for labels in boxes.labels] == [[0], [1]]


@pytest.mark.parametrize("width", [0, None, "?"])
def test_a_size_of_0_or_null_in_coco_is_none(tmp_path: Path, width: object) -> None:
    write_image(tmp_path / "a.png")
    content = coco(images=[{"id": 7, "file_name": "a.png", "width": width, "height": 20}])
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert boxes_of(load(tmp_path), 0) == [[2, 3, 12, 8]]


def test_two_files_that_annotate_one_image_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(coco()))
    with pytest.raises(UserError, match=r"a\.png in .* is annotated twice, by one\.json .* and by two\.json"):
        load(tmp_path)


def write_turned(path: Path) -> None:
    """Write an image of 40 x 20 pixels, white at the left, which its EXIF orientation turns to 20 x 40."""
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(path, exif=exif)


def declared(path: Path, width: int, height: int, box: tuple[int, int, int, int]) -> None:
    voc(path, "", ("cat", box))
    size = f"<annotation><size><width>{width}</width><height>{height}</height></size>"
    path.write_text(path.read_text().replace("<annotation>", size))


def test_sizes_that_annotations_state(tmp_path: Path) -> None:
    """Turned by EXIF, shrunken, of another shape, and without a stated size."""
    write_turned(tmp_path / "raw.png")
    declared(tmp_path / "raw.xml", 40, 20, (1, 1, 20, 20))  # drawn on the image as it is stored
    write_turned(tmp_path / "turned.png")
    declared(tmp_path / "turned.xml", 20, 40, (1, 1, 20, 20))  # drawn on the image as it is seen
    write_image(tmp_path / "small.png", 40, 20)
    declared(tmp_path / "small.xml", 80, 40, (1, 1, 40, 40))
    write_image(tmp_path / "wrong.png", 40, 20)
    declared(tmp_path / "wrong.xml", 90, 20, (1, 1, 40, 20))
    write_image(tmp_path / "zero.png", 40, 20)
    declared(tmp_path / "zero.xml", 0, 0, (1, 1, 40, 20))
    boxes = load(tmp_path)
    rows = {
        name: (tuple(size), boxes_of(boxes, i))
        for i, (name, size) in enumerate(zip(boxes.names, boxes.sizes.tolist(), strict=True))
    }
    assert rows == {
        "raw.png": ((20, 40), [[0, 0, 20, 20]]),
        "small.png": ((20, 40), [[0, 0, 20, 20]]),
        "turned.png": ((40, 20), [[0, 0, 20, 20]]),
        "zero.png": ((20, 40), [[0, 0, 40, 20]]),
    }
    assert (boxes.picture(boxes.names.index("raw.png"))[:, :20] == 255).all()
    assert any("wrong.png" in line and "40x20" in line and "90x20" in line for line in boxes.messages)
    assert sorted(line for line in boxes.messages if line.startswith("1 image ")) == [
        "1 image has another size than its annotation states; its boxes are scaled",
        "1 image is not turned by its EXIF orientation, as its boxes are not",
    ]


def test_conversions_and_links_are_counted_as_in_all_other_data(tmp_path: Path) -> None:
    """Images with a palette and with transparency are converted, and the same image is not read by a link again."""
    for index in range(3):
        write_image(tmp_path / "set" / f"{index}.png")
        voc(tmp_path / "set" / f"{index}.xml", f"{index}.png", ("cat", (1, 1, 9, 9)))
    Image.new("P", (40, 20)).save(tmp_path / "set" / "0.png")
    Image.new("RGBA", (40, 20)).save(tmp_path / "set" / "1.png")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    boxes = load(tmp_path / "set")
    assert len(boxes) == 3
    assert "again is not followed" in boxes.messages[0]
    assert boxes.messages[1] == "converted: 1 with a palette, 1 with transparency, placed on white"


def test_a_truncated_image_is_left_out_and_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "c.json").write_text(
        json.dumps(coco(annotations=[{"image_id": 9, "category_id": 30, "bbox": [0, 0, 5, 5]}]))
    )
    boxes = load(tmp_path)
    assert boxes.names == ("b.png",)
    assert any("a.png" in line and "cannot be decoded" in line for line in boxes.messages)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"No annotated image in .* can be used.*b\.png"):
        load(tmp_path)


def yolo(folder: Path, lines: str, names: str = "", names_file: str = "data.yaml") -> None:
    write_image(folder / "images" / "a.jpg")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_text(lines, encoding="utf-8")
    if names:
        (folder / names_file).write_text(names, encoding="utf-8")


def test_yolo_polygons_become_boxes(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.1 0.2 0.5 0.2 0.5 0.8 0.3 0.9\n0 0.5 0.5 0.5 0.5\n")
    boxes = load(tmp_path)
    np.testing.assert_allclose(boxes_of(boxes, 0), [[4, 4, 20, 18], [10, 5, 30, 15]], atol=1e-5)
    assert "converted: 1 given as a polygon, read as the box around it" in boxes.messages


@pytest.mark.parametrize("empty", [{}, {"bbox": []}, {"bbox": None}])
def test_segmentations_of_coco_without_a_bbox_become_boxes(tmp_path: Path, empty: dict[str, Any]) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")  # 40 x 20
    segmentations: list[Any] = [
        [[4, 4, 20, 5, 12, 18], [2, 6, 3, 6, 3, 7]],  # two parts of one object
        {"size": [20, 40], "counts": [20 * 3 + 5, 4, 16, 4, 20 * 40 - 89]},  # rows 5 to 9 of columns 3 and 4
        {"size": [20, 40], "counts": [30, 20, 750]},  # passes the bottom of column 1
        {"size": [20, 40], "counts": "PPd01"},
        {"size": [20, 40], "counts": [1, 2]},
        [[1, 2, 3]],
    ]
    rows = [
        {"id": number, "image_id": 7, "category_id": 30, "segmentation": each, **empty}
        for number, each in enumerate(segmentations)
    ]
    (tmp_path / "c.json").write_text(json.dumps(coco(annotations=rows)))
    boxes = load(tmp_path)
    assert boxes_of(boxes, 0) == [[2, 4, 20, 18], [3, 5, 5, 9], [1, 0, 3, 20]]
    converted, left_out = boxes.messages[-2:]
    assert converted == (
        "converted: 2 given as a run-length mask without a bbox, read as the box around it, 1 given as polygons "
        "without a bbox, read as the box around them"
    )
    assert left_out.startswith("3 left out: ")
    assert "a compressed run-length mask, which is not read" in left_out
    assert "do not fit its size" in left_out
    assert "not polygons of x, y" in left_out


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("nc: 2\nnames:\n  0: red cell\n  1: 'white'\nval: x\n", ("red cell", "white")),
        ("names: ['ant, small', \"bee\"] # a comment\n", ("ant, small", "bee")),
        ("names:\n- ant # it's small\n- 'bee: large'\n", ("ant", "bee: large")),
        ("names: {0: ant, 1: bee}", ("ant", "bee")),
        ("\ufeffnames: [ant, 7]\n", ("ant", "7")),
        ("names: [yes, 010]\n", ("yes", "010")),
        ("names: {'0': on, '1': 1e3}\n", ("on", "1e3")),
        ("nc: 2\n", ("0", "1")),
    ],
)
def test_names_in_yaml(tmp_path: Path, names: str, expected: tuple[str, ...]) -> None:
    yolo(tmp_path, "1 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n", names)
    assert load(tmp_path).classes == expected


@pytest.mark.parametrize(
    "names",
    [
        *("names: [a\n", "names: 7\n", "names: [a, [b]]\n", "names: {a: b}\n", "names: [a]\nnc: 2\n"),
        *("names: " + "[" * 5000, "names: [a]\nmore: " + "x" * 2**20),
    ],
    ids=lambda names: names[:20],
)
def test_invalid_yaml_is_one_sentence(tmp_path: Path, names: str) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n", names)
    with pytest.raises(UserError, match=r"data\.yaml in .* is invalid"):
        load(tmp_path)


def test_a_list_of_names_in_another_encoding_is_refused(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n", "", "classes.txt")
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"classes\.txt in .* is invalid \(it is not in UTF-8\)"):
        load(tmp_path)


def test_byte_order_marks(tmp_path: Path) -> None:
    yolo(tmp_path, "\ufeff1 0.5 0.5 0.5 0.5\n", "\ufeffant\nbee\n", "classes.txt")
    boxes = load(tmp_path)
    assert boxes.classes == ("ant", "bee")
    assert boxes.labels[0].tolist() == [1]


def test_names_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n", "names: [ant]\n")
    (tmp_path / "classes.txt").write_text("bee\n")
    with pytest.raises(UserError, match="different class names: remove one of them"):
        load(tmp_path)


def test_a_large_class_number_needs_no_memory(tmp_path: Path) -> None:
    yolo(tmp_path, "40000000 0.5 0.5 0.5 0.5\n3 0.5 0.5 0.5 0.5\n")
    assert load(tmp_path).classes == ("3", "40000000")


def test_labels_without_an_image_and_images_without_labels_are_counted(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels" / "lost.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("ant\n")
    write_image(tmp_path / "images" / "b.jpg")
    boxes = load(tmp_path)
    assert boxes.messages == (
        "1 image without a text file counts as an image without objects: images/b.jpg",
        "left out: 1 text file without an image of the same name: labels/lost.txt",
    )


def test_splits_that_folders_are_named_after_are_used(tmp_path: Path) -> None:
    for part, number in (("train", 20), ("valid", 4), ("test", 3)):
        for index in range(number):
            write_image(tmp_path / part / "images" / f"{part}{index}.jpg")
            labels = tmp_path / part / "labels"
            labels.mkdir(exist_ok=True)
            (labels / f"{part}{index}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    boxes = load(tmp_path)
    parts = split(boxes, seed=0)
    assert [{name.split("/")[0] for name in part.names} for part in parts] == [{"train"}, {"valid"}, {"test"}]
    assert [len(part) for part in parts] == [20, 4, 3]
    assert [len(part) for part in split(boxes, seed=0, named=False)] == [19, 3, 5]
    assert not boxes.messages
    partly = dataclasses.replace(boxes, splits=(*boxes.splits[:-1], None))
    unused = f"not used: 1 image of no named split: {boxes.names[-1]}"
    assert [part.messages for part in split(partly, seed=0)] == [(unused,)] * 3
    without_val = boxes.take([i for i, part in enumerate(boxes.splits) if part != "val"])
    train, validation, test = split(without_val, seed=0)
    assert (len(train), len(validation), len(test)) == (18, 2, 3)
    assert set(train.names).isdisjoint(validation.names)
    assert {name.split("/")[0] for name in test.names} == {"test"}
    with pytest.raises(UserError, match="too few images in them"):
        split(boxes.take([i for i, part in enumerate(boxes.splits) if part == "train"]), seed=0)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/set/images/frame_images_1.jpg", "images/set/labels/frame_images_1.txt"),
        ("images/set/images/frame_images_1.jpg", "labels/set/images/frame_images_1.txt"),
        ("images/images/1.jpg", "labels/labels/1.txt"),
        ("Images/1.jpg", "Labels/1.TXT"),
    ],
)
def test_labels_of_images_in_a_folder_of_a_folder_called_images(tmp_path: Path, image: str, label: str) -> None:
    write_image(tmp_path / image)
    (tmp_path / label).parent.mkdir(parents=True)
    (tmp_path / label).write_text("0 0.5 0.5 0.5 0.5\n")
    assert boxes_of(load(tmp_path), 0) == [[10, 5, 30, 15]]


def test_keypoints_after_a_box_are_not_corners_of_a_polygon(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5 0 0 2 1 1 2\n", "names: [hand]\nkpt_shape: [2, 3]\n")
    assert boxes_of(load(tmp_path), 0) == [[10, 5, 30, 15]]
    (tmp_path / "data.yaml").write_text("names: [hand]\nkpt_shape: many\n")
    with pytest.raises(UserError, match="kpt_shape must be"):
        load(tmp_path)


def test_an_object_with_several_boxes_is_several_objects(tmp_path: Path) -> None:
    """As the tool ybat wrote them. The boxes of parts (head, hand) are not those of their object."""
    write_image(tmp_path / "a.jpg")
    corners = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    two = f"<object><name>car</name>{corners.format(1, 9)}{corners.format(21, 40)}</object>"
    part = f"<part><name>head</name>{corners.format(1, 2)}</part>"
    person = f"<object><name>person</name>{part}{corners.format(11, 20)}</object>"
    (tmp_path / "a.xml").write_text(f"<annotation>{two}{person}</annotation>")
    boxes = load(tmp_path)
    assert boxes_of(boxes, 0) == [[0, 0, 9, 9], [20, 0, 40, 9], [10, 0, 20, 9]]
    assert boxes.counts == {"car": 2, "person": 1}
    assert boxes.messages == ("1 object has several boxes, and each box counts as an object: a.xml",)


def test_ids_of_coco_as_text_and_as_numbers(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
    images = [{"id": "7", "file_name": "a.png"}, {"id": "9", "file_name": "b.png"}]
    (tmp_path / "one.json").write_text(json.dumps(coco(images=images)))
    assert boxes_of(load(tmp_path), 0) == [[2, 3, 12, 8]]
    (tmp_path / "one.json").write_text(json.dumps(coco(images=[{"id": "x", "file_name": "a.png"}])))
    with pytest.raises(UserError, match=r"no box with an area above 0: .* The first was left out: .* the id 7"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["images", "categories"])
def test_an_id_of_two_images_or_categories_is_refused(tmp_path: Path, part: str) -> None:
    """Files that were joined without new ids: boxes would be drawn in other images, or get another class."""
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
    content = coco()
    content[part][1]["id"] = content[part][0]["id"]
    (tmp_path / "one.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"one\.json in .* is invalid \(the id \d+ belongs to (a\.png|zebra) and to "):
        load(tmp_path)
    content[part][1] = content[part][0]  # an entry that is repeated
    (tmp_path / "one.json").write_text(json.dumps(content))
    assert boxes_of(load(tmp_path), 0) == [[2, 3, 12, 8]]


def test_a_class_that_no_training_image_has_is_named(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val")):
        write_image(tmp_path / part / "0.png")
        categories = [{"id": 1, "name": ("ant", "bee")[number]}]
        row = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}
        content = coco(images=[{"id": 7, "file_name": "0.png"}], categories=categories, annotations=[row])
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    assert load(tmp_path).messages == ("no training image has a box of the class bee",)


@pytest.mark.parametrize("line", ["0 3 3 8 8", "0 20 10 4 4", "0 50 50 20 20", "0 1 2 3 4 5 6", "0 nan .5 .2 .2"])
def test_lines_of_yolo_in_pixels_are_left_out(tmp_path: Path, line: str) -> None:
    yolo(tmp_path, f"{line}\n0 0.5 0.5 0.5 0.5\n", "")
    boxes = load(tmp_path)
    assert boxes_of(boxes, 0) == [[10, 5, 30, 15]]
    assert f"the line '{line}' of" in boxes.messages[-1]
    assert "must be fractions of the image's width and height" in boxes.messages[-1]


def test_boxes_that_reach_beyond_their_image_are_counted(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.9 0.5 0.4 0.5\n0 0.9 0.5 0.22 0.5\n0 0.5 0.5 0.5 0.5\n", "")  # by 4 pixels, and by .4
    boxes = load(tmp_path)
    assert boxes_of(boxes, 0)[0][2] == 40
    assert "1 box reaches beyond its image and is cut at the edges" in boxes.messages


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5\n", "names: [ant, ant]\n")
    with pytest.raises(UserError, match="has the class name 'ant' twice"):
        load(tmp_path)


def test_an_image_of_coco_without_a_name_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
    content = coco()
    content["images"].append({"id": 99})
    (tmp_path / "c.json").write_text(json.dumps(content))
    boxes = load(tmp_path)
    assert boxes_of(boxes, 0) == [[2, 3, 12, 8]]
    assert "The image {'id': 99} in c.json has no id or file_name." in boxes.messages[-1]


def test_a_single_folder_of_a_split_holds_all_images(tmp_path: Path) -> None:
    """A download of the training images only is split at random, as without this folder."""
    for number in range(10):
        write_image(tmp_path / "train" / "images" / f"{number}.png")
        (tmp_path / "train" / "labels").mkdir(exist_ok=True)
        (tmp_path / "train" / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert [len(part) for part in split(load(tmp_path), seed=0)] == [7, 1, 2]
