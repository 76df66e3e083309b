"""Tests that a resumed run finds the classes with which it was started."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from zerokara.core.config import UserError
from zerokara.core.data import ImageSet
from zerokara.core.models.model_file import write
from zerokara.core.run import Run
from zerokara.core.run_classes import keep_classes

STYLEGAN = "set (train), labels of dataset.json, every 10th image a test image, in set.zip"


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 1


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def open_run(classes: str, *, resume: bool, source: str = "set (train), class folders in set") -> None:
    """Start or resume a run with classes of one letter each."""
    images = ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), tuple(classes), source)
    with Run(Config(), kind="classify", name="run", resume=resume, quiet=True) as run:
        keep_classes(run, images, resume=resume, model_file="model.safetensors")
        run.close("")


def forget_classes() -> None:
    """Make the run one of an older release."""
    path = Path("runs/run/config.json")
    content = json.loads(path.read_text())
    del content["extra"]["classes"]
    path.write_text(json.dumps(content))


def save_model(classes: str) -> None:
    write(
        Path("runs/run/model.safetensors"), {"w": torch.zeros(1)}, {"classes": list(classes)}, "zerokara-classifier-1"
    )


def test_a_run_with_the_same_classes_is_resumed() -> None:
    open_run("ab", resume=False)
    assert Run.read_config(Path("runs/run"))["extra"]["classes"] == ["a", "b"]
    open_run("ab", resume=True)
    open_run("ab", resume=True, source=STYLEGAN)


def test_other_classes_are_refused() -> None:
    open_run("ab", resume=False)
    for classes in ("ac", "ba", "abc"):
        with pytest.raises(UserError, match=rf"with the classes a, b, but set .* has {', '.join(classes)}: rest"):
            open_run(classes, resume=True)


@pytest.mark.parametrize("source", ["set (train), class folders in set", STYLEGAN])
def test_the_classes_of_an_older_run_are_those_of_its_model(source: str) -> None:
    open_run("ab", resume=False)
    forget_classes()
    save_model("ab")
    with pytest.raises(UserError, match=r"started with the classes a, b, but set .* has 0, 1"):
        open_run("01", resume=True, source=source)
    open_run("ab", resume=True, source=source)
    assert Run.read_config(Path("runs/run"))["extra"]["classes"] == ["a", "b"]


def test_an_older_run_that_has_recorded_no_classes() -> None:
    """It may have taken the folders beside dataset.json for the classes."""
    open_run("ab", resume=False)
    forget_classes()
    with pytest.raises(UserError, match=r"not recorded, but .* move dataset\.json out of the data to resume"):
        open_run("01", resume=True, source=STYLEGAN)
    open_run("ab", resume=True)
