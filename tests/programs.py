"""What tests of whole programs share: a process of its own, what it wrote, and what a damaged checkpoint must do."""

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


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Python with these words ("-m", "agents.dqn", "--resume") as a process in a folder; a warning is an error."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "error", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def refusal(folder: Path, *words: str) -> str:
    """What Python with these words says when it is refused: one sentence, and exit status 2."""
    process = start(folder, *words)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    return err


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool], seconds: float = 100) -> None:
    """Wait until it is so, or the process has ended, or has taken too long; the caller looks which."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline and not reached():
        time.sleep(0.005)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics without what the wall clock says, and without lines that hold nothing else."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]
    return [line for line in told if len(line) > 1]


def updates_of(run: Path, kind: str) -> int:
    """The update of the last whole checkpoint of a run of this kind, -1 where there is none."""
    path = run / "checkpoint-0.pt"
    return int(checkpoint.load(path, kind)["updates"]) if path.exists() else -1


def disturbed(
    process: subprocess.Popen[str], run: Path, kind: str, number: signal.Signals, aim: int
) -> tuple[str, str, int]:
    """A process with a signal once the checkpoint of its run is at `aim` updates: what it printed, its exit status."""
    wait_until(process, lambda: updates_of(run, kind) >= aim, seconds=200)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return out, err, process.returncode


def begun(uninterrupted: Path, folder: Path, name: str) -> Path:
    """A run that was killed before its first checkpoint: it goes on with the machine's settings that the other found.

    Which memory layout is fastest is measured, and two runs may find differently.
    """
    run = folder / "runs" / name
    run.mkdir(parents=True)
    content = json.loads((uninterrupted / "config.json").read_text())
    content["config"]["name"] = name
    (run / "config.json").write_text(json.dumps(content))
    return run


def check_damage_is_named(checkpoint: Path, whole: bytes, resume: Callable[[], None]) -> None:
    """A checkpoint that is cut, empty, or wrong in its middle is refused by its name, and stays as it is."""
    for damage in (whole[: len(whole) // 2], b"", whole[:3000] + bytes(40) + whole[3040:]):
        checkpoint.write_bytes(damage)
        with pytest.raises(UserError, match=checkpoint.name):
            resume()
        assert checkpoint.read_bytes() == damage
