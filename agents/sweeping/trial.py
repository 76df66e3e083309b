"""Training runs of a sweep: process, learning curve and value.

A learning curve is a dict: number k of an evaluation, which is due after k * eval_every_steps, -> mean raw return.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerokara.agents.qlearning.replay_deletion import delete_replays
from zerokara.agents.viewing.curves import read_metrics
from zerokara.core.config import note
from zerokara.core.file_lock import lock as lock_file
from zerokara.core.programs import import_path

# Beginning of the message of core.divergence.divergence_error, with which a diverged run exits.
DIVERGED = "Training diverged"


class TrialProcess:
    """Training run in <sweep>/runs/<name>/, in a process of its own; its output is in <sweep>/logs/<name>.log.

    Args:
        sweep: folder of the sweep, the working directory of the process.
        module: program that trains ("agents.dqn").
        arguments: command line of the program, without --name.
    """

    def __init__(self, sweep: Path, module: str, name: str, arguments: Sequence[str]) -> None:
        self.sweep, self.module, self.name, self.arguments = sweep, module, name, arguments
        self.folder = sweep / "runs" / name
        self.log = sweep / "logs" / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def poll(self) -> int | None:
        """Start or resume the run at the first call. Returns the exit code; None while the run is not finished."""
        if self._process is None and not self._stopped and not self.is_locked():
            self._process = self._start()
        if self._process is None:
            return 0 if self._stopped else None
        return self._process.poll()

    def is_locked(self) -> bool:
        """Return True if a process holds the lock of the run folder: a run that survived a killed sweep."""
        lock = self.folder / "lock"
        if not lock.exists():
            return False
        with lock.open("rb") as file:
            return not lock_file(file)

    def _start(self) -> subprocess.Popen[bytes]:
        resume = (self.folder / "config.json").exists()
        arguments = ["--resume"] if resume else self.arguments  # a resumed run reads its settings from its folder
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"zerokara.{self.module}", *arguments, "--name", self.name, "--quiet"],
                cwd=self.sweep,
                env={**os.environ, **import_path()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the sweep, which then stops every run once
            )

    def stop(self) -> None:
        """Ask the run to save and exit. A run that has not started is not started any more."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until the process has ended, if it was started."""
        if self._process is not None:
            self._process.wait()

    def last_log_line(self) -> str:
        """Return the last line of the log that is not empty, or "no output"."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def delete_replay(self) -> None:
        """Delete the saved replay buffer, which is needed only to resume the run."""
        delete_replays(self.folder, note)

    def curve(self, every_steps: int) -> dict[int, float]:
        """Read the evaluations so far.

        Args:
            every_steps: agent steps between evaluations.
        """
        path = self.folder / "metrics.jsonl"
        if not path.is_file() or b"\n" not in path.read_bytes():
            return {}
        return read_evaluations(read_metrics(path), every_steps)


def read_evaluations(rows: Sequence[Mapping[str, Any]], every_steps: int) -> dict[int, float]:
    """Return the evaluations in lines of metrics.jsonl by number: with every_steps 500, step 1,008 is number 2.

    Because parallel environments step together, an evaluation is logged at the step when it is due or a little later.
    """
    evaluations = ((row["step"] // every_steps, row.get("eval/return")) for row in rows)
    return {number: float(value) for number, value in evaluations if value is not None}


def curve_value(curve: Mapping[int, float], objective: str) -> float:
    """Return the value of a learning curve, complete or not: its last evaluation ("last") or its area ("area").

    The area is divided by the length of the curve, so that it is a return: the mean of the evaluations, each weighted
    by the interval that precedes it.
    """
    numbers = sorted(curve)
    if objective == "last":
        return curve[numbers[-1]]
    previous = [0, *numbers[:-1]]
    return math.fsum((b - a) * curve[b] for a, b in zip(previous, numbers, strict=True)) / numbers[-1]
