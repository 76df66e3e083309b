"""Tests that a resumed run reads its data by the rules of the release that began it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.core.data.test_box_files import load, write_image
from zerokara.core.config import UserError
from zerokara.core.data.box_types import ImageFinder
from zerokara.core.data.boxes import split
from zerokara.core.data.mask_files import list_pairs
from zerokara.core.data.reading_rules import Rules, active_rules, rules_of
from zerokara.core.data.splits import find_split_folders, named_split, split_of_file


@dataclass(frozen=True)
class Config:
    name: str = "run"
    resume: bool = True


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_config(**values: int) -> None:
    """Write the config.json of a run, as an older release did without `values`."""
    Path("runs/run").mkdir(parents=True, exist_ok=True)
    Path("runs/run/config.json").write_text(json.dumps({"kind": "detect", "config": {}, "extra": {}, **values}))


def test_rules_of_runs() -> None:
    write_config()
    with rules_of(Config()):
        assert active_rules() == Rules(1, is_limited=False)
    write_config(reading_rules=2)
    with rules_of(Config()):
        assert active_rules() == Rules(2, is_limited=False)
    with rules_of(Config(resume=False)):
        assert active_rules() == Rules(2, is_limited=True)
    with pytest.raises(UserError, match="no run in"), rules_of(Config("other")):
        pass
    assert active_rules() == Rules(2, is_limited=True)


def test_an_older_run_keeps_its_splits() -> None:
    newer = ("dev", "eval", "training_set", "seg_train", "train2017")
    write_config()
    assert all(map(named_split, newer))
    with rules_of(Config()):
        assert not any(map(named_split, newer))
        assert (named_split("Training"), named_split("valid")) == ("train", "val")
        assert (split_of_file("a_dev.json"), split_of_file("a_val2017.json")) == (None, "val")
        found = find_split_folders([f"{part}/{part}/a/1.png" for part in ("train", "test")], "set")
        assert not found.doubled
        with pytest.raises(UserError, match="no images with masks"):
            list_pairs(["images/Train/1.png", "masks/train/1.png"], lambda _: b"", "set")


def test_an_older_run_of_a_detector_keeps_its_images() -> None:
    """train/ and dev/, of which dev/ was no split; and images with damaged annotations, which had no objects."""
    for index in range(16):
        folder = Path("set", "train" if index < 8 else "dev" if index < 12 else "test")
        write_image(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text("0 .5 .5 .5 .5" if index else "damaged")
    write_config()
    new = [part.names for part in split(load(Path("set")), 0)]
    with rules_of(Config()):
        old = [part.names for part in split(load(Path("set")), 0)]
    assert list(map(len, new)) == [7, 4, 4]
    assert list(map(len, old)) == [7, 1, 4]
    assert "train/00.png" in {*old[0], *old[1]}


def test_an_older_run_keeps_how_images_are_found() -> None:
    finder = ImageFinder(["in/1.png", "out/1.png"])
    write_config()
    assert finder.by_name("1.png", "a/instances.json") is None
    with rules_of(Config()):
        assert finder.by_name("1.png", "a/instances.json") == "in/1.png"


def test_a_resumed_run_may_leave_out_more_than_a_tenth() -> None:
    for index in range(30):
        write_image(Path("set", f"{index:02}.png"))
        Path("set", f"{index:02}.txt").write_text("0 .5 .5 .5 .5")
        if index < 11:
            Path("set", f"{index:02}.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="11 of 30 images"):
        load(Path("set"))
    write_config()
    with rules_of(Config()):
        assert len(load(Path("set"))) == 19
