"""One run of a sweep: a process of its own, its learning curve while it runs, and what it is worth.

A curve is a dict: the number k of an evaluation, which is due after k times eval_every_steps, and its mean raw return.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerokara.agents.viewing.curves import read_metrics
from zerokara.core.programs import import_path

DIVERGED = (
    "Training diverged"  # beginning of the message of core.divergence.divergence_error, with which an agent exits
)


class Child:
    """A run of an agent in <sweep>/runs/<name>/; what it prints goes to <sweep>/logs/<name>.log.

    Args:
        sweep: the sweep's folder, in which the process runs.
        module: the agent's entry.
        words: its command line, without --name.
    """

    def __init__(self, sweep: Path, module: str, name: str, words: Sequence[str]) -> None:
        self.sweep, self.module, self.name, self.words = sweep, module, name, words
        self.folder = sweep / "runs" / name
        self.log = sweep / "logs" / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def poll(self) -> int | None:
        """Begin it or go on with it; its exit code once it has ended, None until then."""
        if self._process is None and not self._stopped and not self.is_in_use():
            self._process = self._start()
        if self._process is None:
            return 0 if self._stopped else None
        return self._process.poll()

    def is_in_use(self) -> bool:
        """Whether a process writes the folder: one that outlived a sweep which was killed."""
        lock = self.folder / "lock"
        if not lock.exists():
            return False
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        going_on = (self.folder / "config.json").exists()
        words = ["--resume"] if going_on else self.words  # a run that goes on takes its settings from its folder
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"zerokara.{self.module}", *words, "--name", self.name, "--quiet"],
                cwd=self.sweep,
                env={**os.environ, **import_path()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the sweep's, which then stops every run once
            )

    def stop(self) -> None:
        """Ask it to save and end; one that has not begun never will."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended, if it ever began."""
        if self._process is not None:
            self._process.wait()

    def last_words(self) -> str:
        """The last line that it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def forget_replay(self) -> None:
        """Free the disk of the agent's memory, which is needed only to go on."""
        for folder in self.folder.glob("replay-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def curve(self, every_steps: int) -> dict[int, float]:
        """Its evaluations so far."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file() or b"\n" not in path.read_bytes():
            return {}
        return read_evaluations(read_metrics(path), every_steps)


def read_evaluations(rows: Sequence[Mapping[str, Any]], every_steps: int) -> dict[int, float]:
    """The evaluations among lines of metrics, by their number: the one at step 1,008 of every 500 is the second.

    Environments step together, so that an evaluation comes at the first step at which it is due or a little later.
    """
    found = ((row["step"] // every_steps, row.get("eval/return")) for row in rows)
    return {number: float(value) for number, value in found if value is not None}


def worth(curve: Mapping[int, float], objective: str) -> float:
    """What a curve is worth up to where it goes: its last value ("last"), or the area under it ("area").

    The area is divided by its length, so that it is a return: the mean of the evaluations, each counting for the
    stretch that led to it.
    """
    numbers = sorted(curve)
    if objective == "last":
        return curve[numbers[-1]]
    before = [0, *numbers[:-1]]
    return math.fsum((b - a) * curve[b] for a, b in zip(before, numbers, strict=True)) / numbers[-1]
