"""Time measurements of a run: hours of training over all restarts, and the speed since the last log entry."""

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


class LogInterval:
    """Interval that the next log entry covers.

    Args:
        count: completed steps (updates, images) at its start.
    """

    def __init__(self, count: int) -> None:
        self.count, self._start = count, time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds since the start of the interval."""
        return time.perf_counter() - self._start

    def per_second(self, count: int) -> float:
        """Return the steps per second since the start of the interval, when `count` steps are completed."""
        return (count - self.count) / self.seconds()
