"""Stopwatch: hours of training, summed over the processes that have run it."""

from __future__ import annotations

import time


class Stopwatch:
    """Stopwatch that starts when created and returns the hours when called. Interruptions of a run do not count.

    A resumed run sets `hours` to the value saved in its checkpoint.
    """

    hours: float
    """Result of the last call."""

    def __init__(self) -> None:
        self.hours = 0.0
        self._last_call = time.perf_counter()

    def __call__(self) -> float:
        """Return the hours so far, without interruptions."""
        now = time.perf_counter()
        self.hours += (now - self._last_call) / 3600
        self._last_call = now
        return self.hours
