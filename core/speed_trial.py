"""Part of `core.processes` in a training program: what its environment variables say, and the positions of a trial.

`core.processes` measures each number of processes in a trial: the training program itself runs in a temporary folder,
and appends a line to a file after each iteration of its loop, until `core.processes` ends it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = "ZEROKARA_SPEED_TRIAL"
"""Environment variable: folder of a trial, which has its run folder and its positions; unset in other runs."""
CHOICE = "ZEROKARA_PROCESSES"
"""Environment variable: the choice of `core.processes` as JSON, which a new run saves."""
POSITIONS = "positions"
"""File in the folder of a trial, with a line for each iteration: seconds of a clock, position, length of the run."""


def folder_of_runs(root: Path) -> Path:
    """Return the folder that holds the run: that of a trial, or `root`."""
    trial = os.environ.get(FOLDER)
    return Path(trial) if trial else root


def choice() -> dict[str, Any]:
    """Return what a new run saves about its number of processes; empty without `core.processes`."""
    text = os.environ.get(CHOICE)
    return {"processes": json.loads(text)} if text else {}


def record_position(position: int, total: int) -> None:
    """Record the position of a trial after an iteration; in other runs do nothing.

    Args:
        position: in updates or agent steps.
        total: length of the run, in the same unit.
    """
    trial = os.environ.get(FOLDER)
    if trial:
        with Path(trial, POSITIONS).open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()} {position} {total}\n")
