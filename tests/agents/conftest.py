"""Fixtures with a finished run: one that tests may only read, and a copy that they may change."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from tests.agents.small_runs import CATCH
from zerokara.agents import dqn

TINY_CATCH = (
    *CATCH,
    *("--name", "catch", "--total-steps", "400", "--learning-starts", "100", "--batch-size", "8"),
    *("--train-every-steps", "16", "--replay-capacity", "1000", "--log-every-steps", "40"),
    *("--eval-every-steps", "200", "--eval-episodes", "2"),
)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder runs/catch of a run of 400 steps, created by the program itself. Tests must not write to it."""
    root = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(root):
        dqn.main(TINY_CATCH)
    return root / "runs" / "catch"


@pytest.fixture
def catch_run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of the run as runs/catch in the working folder of the test."""
    shutil.copytree(finished_run, tmp_path / "runs" / "catch", ignore=shutil.ignore_patterns("replay-*", "tensorboard"))
    monkeypatch.chdir(tmp_path)
    return Path("runs/catch")
