"""Timing of training steps, from which the fastest hardware settings are chosen, with limits on its own duration.

    probe = Probe[Compute](updates=100_000, batch_size=256)
    probe.measure({candidate: partial(make_step, candidate) for candidate in candidates})
    best = probe.fastest(candidates)

A choice must not cost more than it gains. Steps that are not compiled are timed for at most `MAX_SECONDS`, and for at
most `MAX_FRACTION` of the run, whose length is estimated from the first step and corrected by the following ones. A
candidate whose first step takes much longer than that of another candidate is stopped inside that step. Compilation
may take `MAX_FRACTION` of the run, together with all timings.

Long steps: the first step of the first candidate is stopped if it takes more than `LONG_FRACTION` of the limit, and all
candidates are timed with a smaller batch. Otherwise this candidate would take all of the time, and the others would
never be tried (docs/LOG.md). They begin with the one that the processor's instructions suggest, so that it is used if
even this takes too long. Nearly all of a step is proportional to its batch, so the fastest candidate is that of the
whole batch, and the duration of a whole step is estimated in proportion. What does not depend on the batch, such as the
optimizer's step and the conversion of weights to bfloat16, counts too much: the duration is estimated too long rather
than too short. So the batch is the largest one with which three steps of each candidate fit into the limit. Compiled
code is always timed with the whole batch, and beside it only the fastest of the others: it is compiled for the shapes
of its tensors, so for a smaller batch everything would be compiled a second time when the run starts. On a GPU no step
can be stopped, and none is made smaller.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CandidateT = TypeVar("CandidateT")
Step = Callable[[], object]
MakeStep = Callable[[int], Step]
"""Returns a training step with this batch size."""

MAX_SECONDS = 10.0
MAX_FRACTION = 0.02
MIN_COMPILE_SECONDS = 5.0  # compilation takes longer, even of a small network
HOPELESS = 3.0  # times as long as the fastest first step
NEVER_HOPELESS_SECONDS = 1.0  # first steps load libraries and generate kernels, which says nothing about later steps
ROUNDS = 5
LONG_ROUNDS = 2  # of whole steps, if a step is long
LONG_FRACTION = 0.1  # of the limit
NEVER_LONG_SECONDS = 0.2  # a smaller batch would be timed with more of what does not depend on the batch
SHRINKING = 64  # a step that was stopped is timed with this part of the batch, from which the fitting one follows
MIN_BATCH = 2  # BatchNorm needs more than one value per channel
ALARM_REPEAT_SECONDS = 0.5


class TooSlowError(BaseException):
    """The time limit of a step has passed. Not an Exception, because the compiler would handle it."""


class Probe(Generic[CandidateT]):
    """Seconds of a training step by candidate: the minimum over rounds in which the candidates take turns.

    The minimum is used because other programs can only make a step slower.

    Args:
        updates: training steps in the run; None: unknown, so that only `MAX_SECONDS` limits the measurement.
        minutes: length of a run that is limited in time; 0: it is not.
        batch_size: of a training step.
        multiple_of: smaller batches are multiples of this number.
        interruptible: stop first steps that take too long; only on a CPU, where the time of an operation is that of its
            call.

    Attributes:
        batch_size: with which steps are timed; smaller than that of a training step if such a step is long.
        estimated: candidates that were timed with a smaller batch only, and so whose seconds are estimated.
        estimated_batch: size of this batch.
        stopped: seconds after which the first step of a candidate was stopped.
        cut_short: seconds after which a limit ended the measurement before its last round; 0: none did.
    """

    def __init__(
        self,
        updates: int | None = None,
        minutes: float = 0.0,
        *,
        batch_size: int = 1,
        multiple_of: int = 1,
        interruptible: bool = True,
    ) -> None:
        self.batch_size = self._whole_batch = batch_size
        self.estimated: set[CandidateT] = set()
        self.estimated_batch = batch_size
        self.stopped: dict[CandidateT, float] = {}
        self.cut_short = 0.0
        self._updates, self._minutes, self._interruptible = updates, minutes, interruptible
        self._multiple_of = multiple_of
        self._start = time.perf_counter()
        self._steps: dict[CandidateT, Step] = {}
        # Both in seconds of a whole step:
        self._first: dict[CandidateT, float] = {}  # the first step
        self._later: dict[CandidateT, float] = {}  # minimum of the following steps

    @property
    def seconds(self) -> dict[CandidateT, float]:
        """Seconds of a step with the whole batch. The first one counts if there was no time for another."""
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

    @property
    def has_time_to_compile(self) -> bool:
        """False if compilation, and two steps of the compiled code and one beside it, would exceed the limit."""
        steps = 3 * min(self.seconds.values(), default=0.0)
        return self.elapsed + MIN_COMPILE_SECONDS + steps <= self.compile_limit

    def fastest(self, candidates: Iterable[CandidateT]) -> CandidateT:
        """Return the candidate with the shortest step; the first one if none was timed."""
        seconds = self.seconds
        return min(candidates, key=lambda candidate: seconds.get(candidate, math.inf))

    def measure(self, make: Mapping[CandidateT, MakeStep], likely: CandidateT | None = None) -> None:
        """Time the steps of candidates. Each step is created when its turn comes, in the order of `make`.

        A candidate that takes more than twice as long as the fastest is not timed again.

        Args:
            make: steps of the candidates.
            likely: the candidate that is probably the fastest. If a step is long, it comes first, so that it is chosen
                if there is no time for another.
        """
        first = self._time_first_candidate(make, likely)
        others = [candidate for candidate in make if candidate != first]
        for candidate in others:
            if self.elapsed >= self.limit:
                self.cut_short = self.elapsed
                break
            self._time_first_step(candidate, make[candidate](self.batch_size), self.limit - self.elapsed)
        else:
            if others:
                self._time_rounds(list(make), ROUNDS - 1, lambda: self.limit)
        if self.batch_size < self._whole_batch:
            self.estimated, self.estimated_batch = set(self._first), self.batch_size
            if len(self._first | self.stopped) == len(make):  # there were as many rounds as fit
                self.cut_short = 0.0

    def measure_compiled(self, compiled: CandidateT, make: Mapping[CandidateT, MakeStep]) -> bool:
        """Compile a candidate in its first step, and time it in turns with others, which have been measured before.

        Args:
            compiled: the candidate.
            make: steps of this candidate and of the others. If steps were timed with a smaller batch, only the fastest
                of the others is timed beside it.

        Returns:
            False if the limit has passed before the candidate was timed. A compilation is stopped at the limit in the
            main thread; elsewhere and on Windows it runs to its end.

        Raises:
            Exception: the compiler failed.
        """
        is_long = self.batch_size < self._whole_batch
        self.batch_size = self._whole_batch
        if is_long:
            other = self.fastest(candidate for candidate in make if candidate != compiled)
            self._steps = {other: make[other](self.batch_size)}
        else:
            self._steps = {other: step for other, step in self._steps.items() if other in make}  # frees other networks
        limit, start = self.compile_limit, time.perf_counter()
        try:
            with _alarm(limit - self.elapsed):
                step = make[compiled](self.batch_size)
                step()
                _synchronize()
        except TooSlowError:
            self.stopped[compiled] = time.perf_counter() - start
            return False
        self._steps[compiled] = step
        # The others are timed again beside it, so that a change of the load does not decide.
        before = {other: self._later.pop(other) for other in self._steps if other in self._later}
        try:
            self._time_rounds(list(self._steps), LONG_ROUNDS if is_long else ROUNDS, lambda: limit)
        finally:
            self.estimated -= self._later.keys() & self._steps.keys()
            self._later = before | self._later
        if compiled not in self._later:
            return False
        self._first[compiled] = self._later[compiled]  # its first step was compilation
        return True

    @property
    def _min_batch(self) -> int:
        """Smallest batch with which a step is timed."""
        return MIN_BATCH * self._multiple_of

    @property
    def _is_divisible(self) -> bool:
        """True if steps may be timed with a smaller batch than `batch_size`."""
        return self._interruptible and self.batch_size > self._min_batch

    @property
    def _fraction(self) -> float:
        """Fraction of a training step that a timed step has."""
        return self.batch_size / self._whole_batch

    def _time_first_candidate(self, make: Mapping[CandidateT, MakeStep], likely: CandidateT | None) -> CandidateT:
        """Find the batch size for all candidates, and time the first steps of one of them. Return that candidate.

        Args:
            make: steps of the candidates.
            likely: as for `measure`.
        """
        candidate = next(iter(make))
        step = make[candidate](self.batch_size)
        self._start = time.perf_counter()  # creating a network loads libraries that the run needs anyway
        while True:
            allowed = self.limit - self.elapsed
            if allowed <= 0:  # a single operation of the whole step, or the creation of this one, took all of the time
                self.cut_short = self.elapsed
                return candidate
            if self._is_divisible:  # of a smaller batch, every candidate should have a step
                is_whole = self.batch_size == self._whole_batch
                long = LONG_FRACTION * self.limit if is_whole else allowed / len(make)
                allowed = min(allowed, max(NEVER_LONG_SECONDS, long))
            self._time_first_step(candidate, step, allowed)
            if candidate in self._first or not self._is_divisible:
                break
            candidate = candidate if likely is None else likely
            step = self._smaller_step(make[candidate], self.batch_size // SHRINKING)
        if candidate in self._first:
            size = self._fitting_batch(len(make))
            if size != self.batch_size:
                if size < self.batch_size and likely is not None:
                    candidate = likely
                self._time_first_step(candidate, self._smaller_step(make[candidate], size), self.limit - self.elapsed)
        return candidate

    def _smaller_step(self, make_step: MakeStep, size: int) -> Step:
        """Return a step of about this batch size, which is that of all further steps. Earlier timings are dropped."""
        for results in (self._steps, self._first, self._later):
            results.clear()
        if size < self._whole_batch:
            size = max(self._min_batch, size // self._multiple_of * self._multiple_of)
        self.batch_size = size
        return make_step(size)

    def _fitting_batch(self, candidates: int) -> int:
        """Return the batch size with which to go on, after the first candidate was timed.

        The whole batch stays if there is time for two steps of each candidate, or nothing to compare. A smaller one
        becomes as large as the limit permits: the first steps of a program load libraries, and perhaps only they were
        long.
        """
        is_smaller = self.batch_size < self._whole_batch
        steps = candidates * (3 if is_smaller else 2)  # others may be slower, and are created first
        seconds = min(self.seconds.values()) * self._fraction
        fitting = int(self.batch_size * (self.limit - self.elapsed) / (steps * seconds))
        if is_smaller:
            return min(fitting, self._whole_batch) if fitting >= 2 * self.batch_size else self.batch_size
        is_long = candidates > 1 and self._is_divisible and seconds > NEVER_LONG_SECONDS
        return fitting if is_long and 0 < fitting < self.batch_size else self.batch_size

    def _time_first_step(self, candidate: CandidateT, step: Step, allowed: float) -> None:
        """Time the first step of a candidate, and a second one if that is short: the first fills caches.

        Args:
            candidate: whose step it is.
            step: the step.
            allowed: seconds after which it is stopped.
        """
        if self._first:
            fastest = self._fraction * min(self._first.values())
            allowed = min(allowed, max(NEVER_HOPELESS_SECONDS, HOPELESS * fastest))
        start = time.perf_counter()
        try:
            with _Deadline(allowed) if self._interruptible else contextlib.nullcontext():
                step()
                _synchronize()
        except TooSlowError:
            self.stopped[candidate] = time.perf_counter() - start
            return
        seconds = time.perf_counter() - start
        self._steps[candidate], self._first[candidate] = step, seconds / self._fraction
        self.stopped.pop(candidate, None)  # with a larger batch
        if seconds <= NEVER_HOPELESS_SECONDS and self.elapsed < self.limit:
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
                if self.elapsed + (0.0 if math.isinf(expected) else self._fraction * expected) > limit():
                    self.cut_short = self.elapsed
                    return
                self._time(candidate)

    def _time(self, candidate: CandidateT) -> None:
        """Time a step of a candidate."""
        start = time.perf_counter()
        self._steps[candidate]()
        _synchronize()
        seconds = (time.perf_counter() - start) / self._fraction
        self._later[candidate] = min(self._later.get(candidate, math.inf), seconds)


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
