"""Tests of remarks on the splits that folders are named after."""

from __future__ import annotations

from pathlib import Path

from tests.core.data.test_box_files import load, write_image
from zerokara.core.data.boxes import split
from zerokara.core.data.splits import VALIDATION_IS_TEST


def test_a_validation_split_of_boxes_that_is_the_test_set_is_said(tmp_path: Path) -> None:
    def write(part: str, number: int) -> None:
        for index in range(number):
            write_image(tmp_path / part / "images" / f"{part}{index}.jpg")
            labels = tmp_path / part / "labels"
            labels.mkdir(exist_ok=True)
            (labels / f"{part}{index}.txt").write_text("0 0.5 0.5 0.5 0.5\n")

    write("train", 10)
    write("valid", 3)
    parts = split(load(tmp_path), seed=0)
    assert [len(part) for part in parts] == [9, 1, 3]
    assert [part.messages for part in parts] == [(VALIDATION_IS_TEST,)] * 3
    write("test", 2)
    assert [part.messages for part in split(load(tmp_path), seed=0)] == [()] * 3
