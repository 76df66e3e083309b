"""Signals that ask a run to stop: where they wait for the end of an update, and where they interrupt at once."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from zerokara.core.config import Stopped
from zerokara.core.distributed import World

REPEATED_SECONDS = 1.0  # SIGTERM again within this time is the same request: `timeout` and torchrun send it twice


class StopSignals:
    """Part of `Run` that handles signals."""

    world: World
    stop_requested: str | None = None  # name of the signal received inside `signals()`
    stopped = False  # True after `Run.print_stop`: the run ends before its last step because of a signal
    _interruptible = False

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Inside the block, SIGINT and SIGTERM set `stop_requested`; see also `interruptible`.

        A second signal raises KeyboardInterrupt. Under torchrun it is ignored, because torchrun sends each signal again
        to each of its processes. In another thread than the main one, signals keep their handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        first = math.inf  # time of the first signal
        interrupts = 0

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal first, interrupts
            now = time.monotonic()
            first, is_second = min(first, now), now - first > REPEATED_SECONDS
            interrupts += number == signal.SIGINT
            if (interrupts > 1 or is_second) and self.world.size == 1:
                raise KeyboardInterrupt
            is_first, self.stop_requested = not self.stop_requested, signal.Signals(number).name
            if is_first and self._interruptible:
                raise Stopped

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self, *, on: bool = True) -> Iterator[None]:
        """Inside the block, the first signal raises `Stopped` wherever the program is; with on=False it does not.

        For work that can be abandoned and repeated: measurements, evaluations, reading of data. An update, or the
        writing of several files that belong together, must not be interrupted.

        Raises:
            Stopped: a signal has been received, also before the block.
        """
        before, self._interruptible = self._interruptible, on
        try:
            if on and self.stop_requested:
                raise Stopped
            yield
        finally:
            self._interruptible = before
