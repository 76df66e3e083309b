"""Tests of what a run folder holds of the files that the run was started from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.run_inputs import check_origin, resumed_extra, resumed_file, save_input


def make_run(folder: Path, world: World = World()) -> Any:  # noqa: B008  (frozen)
    """Return a stand-in for an open run."""
    return SimpleNamespace(folder=folder, world=world)


def test_an_input_is_saved_once_by_the_main_process(tmp_path: Path) -> None:
    save_input(make_run(tmp_path, World(rank=1, size=2)), "a", b"0")
    assert not (tmp_path / "a").exists()
    save_input(make_run(tmp_path), "a", b"1")
    save_input(make_run(tmp_path), "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_an_input_that_cannot_be_saved_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone/a could not be written \(.*\)\. Solve the problem, then continue"):
        save_input(make_run(tmp_path / "gone"), "a", b"1")


def test_only_a_resumed_run_reads_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/old").mkdir(parents=True)
    Path("runs/old/config.json").write_text(json.dumps({"kind": "any", "config": {}, "extra": {"a": 1}}))
    Path("runs/old/a").touch()
    new, resumed, unnamed = (
        SimpleNamespace(name=name, resume=resume) for name, resume in (("old", False), ("old", True), ("", True))
    )
    assert [resumed_extra(config) for config in (new, resumed, unnamed)] == [{}, {"a": 1}, {}]
    assert [resumed_file(config, "a") for config in (new, resumed, unnamed)] == [None, Path("runs/old/a"), None]
    assert resumed_file(resumed, "b") is None


def test_a_file_that_is_gone_is_named_only_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.pth").touch()
    for config, words in (
        (SimpleNamespace(name="old", resume=False), ["gone.pth"]),
        (SimpleNamespace(name="old", resume=True), ["", "here.pth", "digits"]),  # digits is in the zoo
    ):
        for word in words:
            check_origin(config, word)
    with pytest.raises(UserError, match=r"There is no gone\.pth, which runs/old was started from"):
        check_origin(SimpleNamespace(name="old", resume=True), "gone.pth")
