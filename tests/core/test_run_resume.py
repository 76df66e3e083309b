"""Tests of resuming: from a checkpoint, from the start, and with the same hardware settings."""

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
    """Config of the test runs."""

    seed: int = 1


def new(root: Path, *, resume: bool = False, quiet: bool = True) -> Run:
    return Run(Config(), kind="pqn", name="a", resume=resume, quiet=quiet, root=root)


def rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        latest = run.path("checkpoint-0.pt")
        run.log(1, {"x": 1.0})
        run.save(latest, {"step": 1, "weights": torch.ones(2)})
        run.log(2, {"x": 2.0})
    assert set(checkpoint.load(latest, "pqn")) == {"step", "weights", "run"}
    taken: list[dict[str, Any]] = []
    with new(tmp_path, resume=True) as again:
        assert again.restore(latest, taken.append)
        again.log(2, {"x": 3.0})
    assert (taken[0]["step"], taken[0]["weights"].tolist()) == (1, [1, 1])
    assert rows(again) == [{"step": 1, "x": 1.0}, {"step": 2, "x": 3.0}], "metrics after the checkpoint are removed"


def test_a_run_without_a_checkpoint_restarts(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.log(1, {"x": 1.0})
    with new(tmp_path, resume=True) as again:
        assert not again.restore(again.path("checkpoint-0.pt"), lambda state: pytest.fail("there is none"))
    assert rows(again) == []


def test_a_new_run_loads_no_checkpoint(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.save(run.path("checkpoint-0.pt"), {"step": 1})
        assert not run.restore(run.path("checkpoint-0.pt"), lambda state: pytest.fail("the run must not be resumed"))


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        checkpoint.save(run.path("checkpoint-0.pt"), {"step": 1}, "dqn")
    with new(tmp_path, resume=True) as again, pytest.raises(UserError, match="was written by 'dqn', not 'pqn'"):
        again.restore(again.path("checkpoint-0.pt"), lambda state: pytest.fail("it was read"))


def test_hardware_settings_are_selected_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    found = Compute(threads=torch.get_num_threads(), reason="it is the only one")

    def choose() -> Compute:
        calls.append("choose")
        return found

    with new(tmp_path) as run:
        assert run.compute(choose, 10) == run.compute(choose, 10) == found
    with new(tmp_path, resume=True, quiet=False) as again:
        assert again.compute(choose, 10) == again.compute(choose, 10) == found
        assert capsys.readouterr().out == "compute: it is the only one\n", "printed only once"
    assert calls == ["choose"]
