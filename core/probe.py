"""Timing of training steps, from which the fastest hardware settings are chosen, with limits on its own duration.

    probe = Probe[Compute](updates=100_000)
    probe.measure({candidate: partial(make_step, candidate) for candidate in candidates})
    best = probe.fastest(candidates)

A choice must not cost more than it gains. Steps that are not compiled are timed for at most `MAX_SECONDS`, and for at
most `MAX_FRACTION` of the run, whose length is estimated from the first step and corrected by the following ones. A
candidate whose first step takes much longer than that of another candidate is stopped inside that step. Compilation
may take `MAX_FRACTION` of the run, together with all timings.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CandidateT = TypeVar("CandidateT")
Step = Callable[[], object]

MAX_SECONDS = 10.0
MAX_FRACTION = 0.02
MIN_COMPILE_SECONDS = 5.0  # compilation takes longer, even of a small network
HOPELESS = 3.0  # times as long as the fastest first step
NEVER_HOPELESS_SECONDS = 1.0  # first steps load libraries and generate kernels, which says nothing about later steps
ROUNDS = 5
ALARM_REPEAT_SECONDS = 0.5


class TooSlowError(BaseException):
    """The time limit of a step has passed. Not an Exception, because the compiler would handle it."""


class Probe(Generic[CandidateT]):
    """Seconds of a training step by candidate: the minimum over rounds in which the candidates take turns.

    The minimum is used because other programs can only make a step slower.

    Args:
        updates: training steps in the run; None: unknown, so that only `MAX_SECONDS` limits the measurement.
        minutes: length of a run that is limited in time; 0: it is not.
        interruptible: stop first steps that take too long; only on a CPU, where the time of an operation is that of its
            call.

    Attributes:
        stopped: seconds after which the first step of a candidate was stopped.
        cut_short: seconds after which a limit ended the measurement before its last round; 0: none did.
    """

    def __init__(self, updates: int | None = None, minutes: float = 0.0, *, interruptible: bool = True) -> None:
        self.stopped: dict[CandidateT, float] = {}
        self.cut_short = 0.0
        self._updates, self._minutes, self._interruptible = updates, minutes, interruptible
        self._start = time.perf_counter()
        self._steps: dict[CandidateT, Step] = {}
        self._first: dict[CandidateT, float] = {}  # seconds of the first step
        self._later: dict[CandidateT, float] = {}  # minimum of the following steps

    @property
    def seconds(self) -> dict[CandidateT, float]:
        """Seconds of a step. The first one counts if there was no time for another."""
        return {candidate: self._later.get(candidate, first) for candidate, first in self._first.items()}

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the measurement."""
        return time.perf_counter() - self._start

    @property
    def run_seconds(self) -> float:
        """Estimated length of the run with the fastest candidate; infinite if it is unknown."""
        if self._minutes:
            return 60 * self._minutes
        if self._updates is None or not self._first:
            return math.inf
        return self._updates * min(self.seconds.values())

    @property
    def compile_limit(self) -> float:
        """Seconds that the measurement may take with compilation."""
        return MAX_FRACTION * self.run_seconds

    @property
    def limit(self) -> float:
        """Seconds that the measurement of steps that are not compiled may take."""
        return min(MAX_SECONDS, self.compile_limit)

    def fastest(self, candidates: Iterable[CandidateT]) -> CandidateT:
        """Return the candidate with the shortest step; the first one if none was timed."""
        seconds = self.seconds
        return min(candidates, key=lambda candidate: seconds.get(candidate, math.inf))

    def measure(self, make: Mapping[CandidateT, Callable[[], Step]]) -> None:
        """Time the steps of candidates. Each step is created when its turn comes, in the order of `make`.

        A candidate that takes more than twice as long as the fastest is not timed again.
        """
        for candidate, make_step in make.items():
            if self.elapsed >= self.limit:
                self.cut_short = self.elapsed
                return
            step = make_step()
            if not self._first and not self.stopped:
                self._start = time.perf_counter()  # creating a network loads libraries that the run needs anyway
            self._time_first_step(candidate, step)
        if len(make) > 1:
            self._time_rounds(list(make), ROUNDS - 1, lambda: self.limit)

    def measure_compiled(
        self, compiled: CandidateT, make_step: Callable[[], Step], others: Collection[CandidateT]
    ) -> bool:
        """Compile a candidate in its first step, and time it in turns with others, which have been measured before.

        Returns:
            False if the limit has passed before the candidate was timed. A compilation is stopped at the limit in the
            main thread; elsewhere and on Windows it runs to its end.

        Raises:
            Exception: the compiler failed.
        """
        self._steps = {other: step for other, step in self._steps.items() if other in others}  # frees other networks
        limit, start = self.compile_limit, time.perf_counter()
        try:
            with _alarm(limit - self.elapsed):
                step = make_step()
                step()
                _synchronize()
        except TooSlowError:
            self.stopped[compiled] = time.perf_counter() - start
            return False
        self._steps[compiled] = step
        # The others are timed again beside it, so that a change of the load does not decide.
        before = {other: self._later.pop(other) for other in others if other in self._later}
        try:
            self._time_rounds(list(self._steps), ROUNDS, lambda: limit)
        finally:
            self._later = before | self._later
        if compiled not in self._later:
            return False
        self._first[compiled] = self._later[compiled]  # its first step was compilation
        return True

    def _time_first_step(self, candidate: CandidateT, step: Step) -> None:
        """Time the first step of a candidate, and a second one if that is short: the first fills caches."""
        allowed = self.limit - self.elapsed
        if self._first:
            allowed = min(allowed, max(NEVER_HOPELESS_SECONDS, HOPELESS * min(self._first.values())))
        start = time.perf_counter()
        try:
            with _Deadline(allowed) if self._interruptible else contextlib.nullcontext():
                step()
                _synchronize()
        except TooSlowError:
            self.stopped[candidate] = time.perf_counter() - start
            return
        self._steps[candidate], self._first[candidate] = step, time.perf_counter() - start
        if self._first[candidate] <= NEVER_HOPELESS_SECONDS and self.elapsed < self.limit:
            self._time(candidate)

    def _time_rounds(self, candidates: Iterable[CandidateT], rounds: int, limit: Callable[[], float]) -> None:
        """Time the candidates in turns, until a step would exceed the limit."""
        candidates = [candidate for candidate in candidates if candidate in self._steps]
        for _ in range(rounds):
            for candidate in candidates:
                fastest = min(self._later.get(other, math.inf) for other in candidates)
                seconds = self._later.get(candidate)
                if seconds is not None and seconds > 2 * fastest:
                    continue
                expected = min(self._first.get(candidate, math.inf), fastest) if seconds is None else seconds
                if self.elapsed + (0.0 if math.isinf(expected) else expected) > limit():
                    self.cut_short = self.elapsed
                    return
                self._time(candidate)

    def _time(self, candidate: CandidateT) -> None:
        """Time a step of a candidate."""
        start = time.perf_counter()
        self._steps[candidate]()
        _synchronize()
        self._later[candidate] = min(self._later.get(candidate, math.inf), time.perf_counter() - start)


class _Deadline(TorchDispatchMode):
    """Context in which an operation of PyTorch raises TooSlowError after a number of seconds, in forward and backward.

    A signal would be handled after the backward pass only, which is a single call.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._end = time.perf_counter() + seconds

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first operation imports the compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.perf_counter() > self._end:
            raise TooSlowError
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TooSlowError in the block after a number of seconds, if it runs in the main thread and not on Windows.

    Python prints and ignores an exception that is raised in a destructor or in a callback of C code, of which the
    compiler has many, so the alarm is repeated until the block has ended.
    """
    if (
        math.isinf(seconds)
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if not isinstance(sys.exception(), TooSlowError):  # a handler of the first one is not interrupted
            raise TooSlowError

    def ignore(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not TooSlowError:
            hook(unraisable)

    before, hook = signal.signal(signal.SIGALRM, stop), sys.unraisablehook
    try:
        sys.unraisablehook = ignore
        # 0 would switch the timer off.
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), ALARM_REPEAT_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGALRM, before)


def _synchronize() -> None:
    """Wait until the GPU has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
