"""Test the display of a pool's runs: what counts as finished, stopped or failed, and why."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
from rich.console import Console

from zerokara.core.config import EXIT_STOPPED
from zerokara.core.progress import Progress
from zerokara.core.scheduling.job import Job
from zerokara.core.scheduling.monitor import Monitor, last_step


def ended(code: int, line: str, *, stopped: bool = False, finished: bool = True) -> tuple[dict[str, str], str]:
    """Report the end of one of two runs. Returns the failed runs and the output."""
    out = io.StringIO()
    progress = Progress(silent=False, console=Console(file=out, width=200))
    monitor = Monitor({"a": 100, "b": 100}, ["b"], progress, lambda name: 50, lambda name: finished)
    job = Job("a", (), Path("a.log"))
    monitor.update([job])
    monitor.on_exit(job, code, line, stopped)
    return monitor.failed, out.getvalue()


def test_results_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    failed, out = ended(0, "reached 20")
    assert (failed, out.splitlines()[-1]) == ({}, "a: reached 20")
    assert "step 150/200" in out
    assert "finished 1 of 2  running a" in out
    assert ended(EXIT_STOPPED, "saved", stopped=True)[1].splitlines()[-1] == "a: stopped; saved"
    assert ended(2, "error: There is no game.")[0] == {"a": "There is no game."}
    assert ended(3, "")[0] == {"a": "exit code 3"}
    assert ended(-signal.SIGKILL, "step 3")[0] == {"a": "killed by SIGKILL"}
    assert ended(-40, "step 3")[0] == {"a": "killed by signal 40"}  # a real-time signal
    outside = "stopped from outside; repeat the same command to resume it."
    assert ended(EXIT_STOPPED, "saved")[0] == {"a": outside}
    assert ended(0, "saved", finished=False)[0] == {"a": outside}
    assert "warning: a failed, the other runs continue: exit code 3 Complete output: a.log" in capsys.readouterr().err


def test_last_step_of_incomplete_metrics(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text("")
    assert last_step(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"ste')
    assert last_step(tmp_path) == 20
