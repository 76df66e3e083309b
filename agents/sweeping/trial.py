"""Training runs of a sweep: process, learning curve and value.

A learning curve is a dict: number k of an evaluation, which is due after k * eval_every_steps, -> mean raw return.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerokara.agents.qlearning.replay_deletion import delete_replays
from zerokara.core.config import note
from zerokara.core.metrics import read_metrics
from zerokara.core.scheduling.job import Exit, Job, Launch
from zerokara.core.scheduling.local import LocalProcess

# Beginning of the message of core.divergence.divergence_error, with which a diverged run exits.
DIVERGED = "Training diverged"
POLL_SECONDS = 0.1  # interval between two polls of a process that is waited for


def run_name(trial: int, seed: int) -> str:
    """Return the name of a run, which is that of its folder in runs/ of the sweep."""
    return f"{trial}-seed-{seed}"


class TrialProcess:
    """Training run in <sweep>/runs/<name>/, in a process of its own; its output is in <sweep>/logs/<name>.log.

    Args:
        sweep: folder of the sweep, the working directory of the process.
        module: program that trains ("agents.dqn").
        arguments: command line of the program, without --name.
        launch: gives the run to this machine or to a cluster.
    """

    def __init__(
        self, sweep: Path, module: str, name: str, arguments: Sequence[str], launch: Launch = LocalProcess
    ) -> None:
        self.folder = sweep / "runs" / name
        self.log = sweep / "logs" / f"{name}.log"
        program, named = ("-m", f"zerokara.{module}"), ("--name", name, "--quiet")
        self._running = launch(
            Job(
                name,
                (*program, *arguments, *named),
                self.log,
                run_folder=self.folder,
                resume_arguments=(*program, "--resume", *named),  # a resumed run reads its settings from its folder
                working_folder=sweep,
            )
        )

    def poll(self) -> Exit | None:
        """Start or resume the run as soon as possible. Returns how it ended; None before."""
        return self._running.poll()

    def stop(self) -> None:
        """Ask the run to save and exit. A run that has not started is not started any more."""
        self._running.stop()

    def wait(self) -> None:
        """Wait until the process has ended, if it was started."""
        while self._running.poll() is None:
            time.sleep(POLL_SECONDS)

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
