"""A training program that publishes its phase, so that tests/soak/kills.py can kill it in a chosen one.

    python -c "from tests.soak.phases import main; main()" <phase file> <module> <arguments of the program>

The phase file holds the current phase and how often each phase was entered. The program itself is unchanged: functions
of zerokara are wrapped before it is imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import mmap
import os
import random
import runpy
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PHASES = ("start-up", "training", "write", "evaluation")
_LAYOUT = struct.Struct(f"<B{len(PHASES)}I")  # index of the current phase, and how often each one was entered

# Functions during which a program is in a phase. Each is wrapped before a module imports it by name.
WRAPPED = (
    ("zerokara.core.checkpoint", "write_atomically", "write"),
    ("zerokara.core.run", "Run.save", "write"),
    ("zerokara.core.run", "Run.flush", "write"),
    ("zerokara.agents.training.session", "Session.evaluate_and_log", "evaluation"),
    ("zerokara.generative.scoring.evaluation", "evaluate", "evaluation"),
    ("zerokara.vision.classification.learner", "Training.score", "evaluation"),
)
# Few digits of the synthetic data set: generating thousands of them takes seconds.
DIGITS = {"train": 400, "test": 100}


class PhaseFile:
    """Phase of a process, in a file that another process reads at any moment.

    Args:
        path: the file; another process has created it with `PhaseReader`.
        log: receives a line (monotonic time in seconds, phase) for every change; None: no log.
    """

    def __init__(self, path: Path, log: Path | None = None) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._counts = [0] * len(PHASES)
        self._log = log.open("w", buffering=1, encoding="utf-8") if log is not None else None
        self.phase = ""
        self.enter("start-up")

    def enter(self, phase: str) -> None:
        """Set the current phase, and count it. A program that returns to its phase before enters it once more."""
        self._counts[PHASES.index(phase)] += 1
        self.phase = phase
        self._memory[:] = _LAYOUT.pack(PHASES.index(phase), *self._counts)
        if self._log is not None:
            print(time.monotonic(), phase, file=self._log)

    @contextlib.contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Be in the phase inside the block."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)


class PhaseReader:
    """Creates the phase file of a process that is not yet started, and reads it in a microsecond."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_LAYOUT.size))
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size, access=mmap.ACCESS_READ)

    def phase(self) -> str:
        """Return the current phase."""
        return PHASES[self._memory[0]]

    def count(self, phase: str) -> int:
        """Return how often the phase was entered."""
        return int(_LAYOUT.unpack(self._memory)[1 + PHASES.index(phase)])


def wrap(module: str, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function or method, given as "function" or "Class.method", by `wrapper` of it."""
    *owners, attribute = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, attribute)
    setattr(owner, attribute, functools.wraps(function)(wrapper(function)))


def main() -> None:
    """Run the program that the command line names, with its phases in the phase file."""
    _, file, module, *words = sys.argv
    log = os.environ.get("PHASE_LOG")
    phases = PhaseFile(Path(file), Path(log) if log else None)

    def in_phase(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            with phases.inside(phase):
                return function(*args, **options)

        return wrapped

    def then_training(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            phases.enter("training")
            return result

        return wrapped

    for place, name, phase in WRAPPED:
        if place.split(".")[1] in ("core", module.split(".")[0]):
            wrap(place, name, functools.partial(in_phase, phase))
    wrap("zerokara.core.run", "Run.restore", then_training)  # a program calls it once, at the end of its start-up
    vars(importlib.import_module("zerokara.core.data.glyphs"))["NUMBER"] = DIGITS
    # The programs do not draw from these generators and do not seed them; their states are in the checkpoints.
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
