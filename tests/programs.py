"""Functions that tests of whole programs share: start a process, read its metrics, and test damaged checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zerokara.core import checkpoint
from zerokara.core.config import UserError

REPO = Path(__file__).parents[1]


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python in a folder with arguments such as "-m", "agents.dqn", "--resume"; warnings are errors."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "error", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def error_message(folder: Path, *arguments: str) -> str:
    """Return the error of a program that must reject its arguments: one line on stderr, and exit status 2."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    return err


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 100) -> None:
    """Wait until the condition holds, the process has ended, or the time is up; the caller checks which of them."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline and not condition():
        time.sleep(0.005)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl without `speed/` values, which depend on the wall clock; drop empty lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]
    return [row for row in rows if len(row) > 1]


def num_updates(run: Path, kind: str) -> int:
    """Return the number of updates in the checkpoint of a run of this kind, or -1 without a checkpoint."""
    path = run / "checkpoint-0.pt"
    return int(checkpoint.load(path, kind)["updates"]) if path.exists() else -1


def signal_at(
    process: subprocess.Popen[str], run: Path, kind: str, signal_number: signal.Signals, update: int
) -> tuple[str, str, int]:
    """Send a signal once the run's checkpoint is at `update`; return stdout, stderr and the exit status."""
    wait_until(process, lambda: num_updates(run, kind) >= update, seconds=200)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=300)
    return out, err, process.returncode


def unstarted_run(uninterrupted: Path, folder: Path, name: str) -> Path:
    """Create a run folder as after a kill before the first checkpoint, with the compute settings of another run.

    The settings are copied because the fastest memory layout is measured, and two runs may choose differently.
    """
    run = folder / "runs" / name
    run.mkdir(parents=True)
    content = json.loads((uninterrupted / "config.json").read_text())
    content["config"]["name"] = name
    (run / "config.json").write_text(json.dumps(content))
    return run


def check_damage_reported(checkpoint: Path, whole: bytes, resume: Callable[[], None]) -> None:
    """Check that a truncated, empty or corrupted checkpoint is reported by its file name and is not changed."""
    for damage in (whole[: len(whole) // 2], b"", whole[:3000] + bytes(40) + whole[3040:]):
        checkpoint.write_bytes(damage)
        with pytest.raises(UserError, match=checkpoint.name):
            resume()
        assert checkpoint.read_bytes() == damage
