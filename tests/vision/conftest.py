"""Fixtures: a finished run that several tests read, copies of it that a test may change, and a small data set."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zerokara.core import data
from zerokara.core.data import glyphs
from zerokara.vision import classify
from zerokara.vision.studies import grid

FEW = {"train": 1200, "test": 400}  # generating thousands of digits takes seconds
TINY_GLYPHS = (
    *("--name", "tiny", "--validation-images", "200", "--epochs", "3", "--batch-size", "20", "--dropout", "0"),
    *("--warmup-epochs", "1", "--learning-rate", "5e-3", "--elastic-pixels", "0", "--ema-half-life-updates", "0"),
    *("--tta-views", "1", "--seed", "3", "--no-test", "--quiet"),
    *("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of vision.classify on 1,000 synthetic digits. Tests must not write to it."""
    root = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "NUMBER", FEW)
        patch.setattr("matplotlib.figure.Figure.draw", lambda figure, renderer: None)
        classify.main(TINY_GLYPHS)
    return root / "runs" / "tiny"


@pytest.fixture
def tiny_run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the finished run as runs/tiny in the working folder of the test."""
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    shutil.copytree(finished_run, tmp_path / "runs" / "tiny", ignore=shutil.ignore_patterns("events.*"))
    monkeypatch.chdir(tmp_path)
    return Path("runs/tiny")


@functools.cache
def first_glyphs(split: data.Split) -> data.ImageSet:
    """Return the first 120 digits of a split. Drawing the whole split takes more than a second."""
    return glyphs.glyphs(split).take(slice(0, 120))


@pytest.fixture
def few_glyphs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Reduce the generated digits to the first 120 images of a split and change to an empty working folder."""
    original = data.load

    def load(name: str, split: data.Split, **options: Any) -> data.ImageSet:
        return first_glyphs(split).take(torch.arange(120)) if name == "glyphs" else original(name, split, **options)

    monkeypatch.setattr(data, "load", load)
    monkeypatch.chdir(tmp_path)
    grid._load.cache_clear()
    yield
    grid._load.cache_clear()
