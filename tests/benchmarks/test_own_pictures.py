"""Tests of simulated photographs of digits: the preprocessing of vision.predict gives fewer errors than none."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks import own_pictures
from zerokara.core import data
from zerokara.core.data import glyphs

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_preprocessing_lowers_the_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 40, "test": 20})
    images = data.load("glyphs", "train")
    asked: list[Any] = []

    def load(name: str, split: str) -> Any:
        asked.append((name, split))
        return images

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(data, "hold_out", lambda whole, number, seed: (whole, whole))
    # A large sheet has thirteen times the pixels of the others, and is drawn by the same function.
    smaller = {name: draw for name, draw in own_pictures.KINDS.items() if name != "a large sheet"}
    monkeypatch.setattr(own_pictures, "KINDS", smaller)
    monkeypatch.setattr(sys, "argv", ["own_pictures.py", "digits", "--number", "5"])
    own_pictures.main()
    result = json.loads(capsys.readouterr().out)
    assert asked == [("mnist", "train")], "the test set was read"
    assert result["images"] == 5
    assert list(result["errors"]) == list(own_pictures.KINDS)
    paper = result["errors"]["ink on shaded paper"]
    assert paper["as predict does"] < paper["as is"]


def test_paper_is_light_and_ink_dark() -> None:
    image_HW = np.zeros((28, 28), np.uint8)
    image_HW[8:20, 12:16] = 255
    rng = np.random.default_rng(0)
    picture = own_pictures.paper(own_pictures.enlarged(image_HW), rng, margin=0, noise=0, shade=0)
    assert picture.shape == (336, 336, 3)
    assert picture[5, 5].tolist() == list(own_pictures.PAPER)
    assert picture[168, 168].tolist() == list(own_pictures.INK)
    assert own_pictures.tight(image_HW).shape == (12, 4)
