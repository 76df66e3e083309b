"""Display of the runs of a pool: a progress bar over all of them, and a line for each one that ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from zerokara.core.config import EXIT_STOPPED
from zerokara.core.progress import Progress
from zerokara.core.scheduling.job import Job


class Monitor:
    """Progress bar over all runs, and one line for each run that ends.

    Args:
        lengths: name of each run -> its length, such as steps.
        finished: names of the runs that are finished from the start.
        progress: bar.
        position: returns how far a running run is, by its name.
        is_finished: returns True if a run whose process exited with code 0 is finished, by its name.
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        finished: Collection[str],
        progress: Progress,
        position: Callable[[str], int],
        is_finished: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.failed: dict[str, str] = {}  # name of the run -> reason
        self._lengths, self._progress, self._is_finished = lengths, progress, is_finished
        self._position_of = position
        self._positions = {name: length if name in finished else 0 for name, length in lengths.items()}
        self._finished = len(finished)

    def update(self, jobs: Sequence[Job]) -> None:
        """Display the progress of all runs together.

        Args:
            jobs: those that are running.
        """
        for job in jobs:
            self._positions[job.name] = self._position_of(job.name)
        names = ", ".join(job.name for job in jobs) if len(jobs) < 3 else str(len(jobs))
        fields = {"finished": f"{self._finished} of {len(self._lengths)}", "running": names}
        total = sum(self._lengths.values())
        self._progress.show(min(sum(self._positions.values()), total), total, fields)

    def on_exit(self, job: Job, code: int, last_line: str, stopped: bool) -> None:
        """Print the result of a run that has ended.

        Args:
            job: its process.
            code: exit code.
            last_line: of its output.
            stopped: the pool was asked to stop.
        """
        if code == 0 and self._is_finished(job.name):
            self._finished += 1
            self._positions[job.name] = self._lengths[job.name]
            self._progress.print(f"{job.name}: {last_line}")
        elif stopped:
            self._progress.print(f"{job.name}: stopped; {last_line or 'no output yet'}")
        else:
            reason = f"killed by {signal_name(-code)}" if code < 0 else ""
            if code in (0, EXIT_STOPPED):
                reason = "stopped from outside; repeat the same command to resume it."
            self.failed[job.name] = reason or last_line.removeprefix("error: ") or f"exit code {code}"
            self._progress.warn(
                f"{job.name} failed, the other runs continue: {self.failed[job.name]} Complete output: {job.log}"
            )


def signal_name(number: int) -> str:
    """Return the name of a signal; "signal 40" of one without a name, as most real-time signals are."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_step(folder: Path) -> int:
    """Return the step of the last complete line of metrics.jsonl in a run folder; 0 if there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return int(json.loads(file.read().split(b"\n")[-2])["step"])
    except (OSError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        return 0
