"""Stopwatch: the hours that a run has taken, added up over the processes that wrote it."""

from __future__ import annotations

import time


class Stopwatch:
    """Runs from the moment it is made. Called, it tells the hours, and an interruption is not among them.

    A run that goes on sets `hours` to what its checkpoint has.
    """

    hours: float
    """What it told last."""

    def __init__(self) -> None:
        self.hours = 0.0
        self._told = time.perf_counter()

    def __call__(self) -> float:
        """Hours so far, without interruptions."""
        now = time.perf_counter()
        self.hours += (now - self._told) / 3600
        self._told = now
        return self.hours
