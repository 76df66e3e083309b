"""Resuming a run: from its checkpoint, from the start without a checkpoint, and with the same compute settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.run import Run


@dataclass(frozen=True)
class Config:
    """Config of the tests."""

    seed: int = 1
    compile: str = "off"


def new(root: Path, *, resume: bool = False, quiet: bool = True) -> Run:
    return Run(Config(), kind="pqn", name="a", resume=resume, quiet=quiet, root=root)


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_resume_from_the_checkpoint(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        latest = run.path("checkpoint-0.pt")
        run.log(1, {"x": 1.0})
        run.save(latest, {"step": 1, "weights": torch.ones(2)})
        run.log(2, {"x": 2.0})
    assert set(checkpoint.load(latest, "pqn")) == {"step", "weights", "run"}
    restored: list[dict[str, Any]] = []
    with new(tmp_path, resume=True) as resumed:
        assert resumed.restore(latest, restored.append)
        resumed.log(2, {"x": 3.0})
    assert (restored[0]["step"], restored[0]["weights"].tolist()) == (1, [1, 1])
    assert rows(resumed) == [{"step": 1, "x": 1.0}, {"step": 2, "x": 3.0}], "metrics after the checkpoint are discarded"


def test_resume_without_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.log(1, {"x": 1.0})
    with new(tmp_path, resume=True) as resumed:
        assert not resumed.restore(resumed.path("checkpoint-0.pt"), lambda state: pytest.fail("there is no checkpoint"))
    assert rows(resumed) == []


def test_new_run_does_not_load_a_checkpoint(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.save(run.path("checkpoint-0.pt"), {"step": 1})
        assert not run.restore(run.path("checkpoint-0.pt"), lambda state: pytest.fail("resume is False"))


def test_checkpoint_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        checkpoint.save(run.path("checkpoint-0.pt"), {"step": 1}, "dqn")
    with new(tmp_path, resume=True) as resumed, pytest.raises(UserError, match="was written by 'dqn', not 'pqn'"):
        resumed.restore(resumed.path("checkpoint-0.pt"), lambda state: pytest.fail("the checkpoint was loaded"))


def test_compute_settings_are_chosen_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    expected = Compute(threads=torch.get_num_threads(), reason="no other candidates")

    def choose() -> Compute:
        calls.append("choose")
        return expected

    with new(tmp_path) as run:
        assert run.compute(choose, 10) == run.compute(choose, 10) == expected
    with new(tmp_path, resume=True, quiet=False) as resumed:
        assert resumed.compute(choose, 10) == resumed.compute(choose, 10) == expected
        assert capsys.readouterr().out == "compute: no other candidates\n", "printed once"
    assert calls == ["choose"]


@pytest.mark.parametrize(
    ("compile", "shown"),
    [
        ("on", "the fastest hardware settings, and compiling, which can take minutes"),
        ("off", "the fastest hardware settings"),
    ],
)
def test_the_progress_shows_that_a_run_compiles_before_its_first_step(
    compile: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress: list[tuple[Any, ...]] = []
    with Run(Config(compile=compile), kind="pqn", name="a", resume=False, quiet=True, root=tmp_path) as run:
        monkeypatch.setattr(run, "progress", lambda *arguments: progress.append(arguments))
        run.compute(lambda: Compute(threads=torch.get_num_threads()), 10)
    assert progress == [(0, 10, {"measuring": shown})]
