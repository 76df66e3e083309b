"""Probe: which candidates are timed, how long that may take, and what stops a step that takes too long."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.programs import start_with_torch
from zerokara.core import probe as module
from zerokara.core.probe import Probe, TooSlowError

PARTS = 100  # operations in a step


class Clock:
    """Clock that only steps advance: a step consists of operations that take a hundredth of it each.

    The time of a step is proportional to its batch; `batch_size` is the whole one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batch_size: int = 1) -> None:
        self.now = 0.0
        self.batch_size = batch_size
        self.sizes: list[int] = []  # batch size of each step that was made
        self.steps: list[str] = []  # names of the candidates whose step ended
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def make(
        self, name: str, seconds: float, first: float | None = None, *, creation: float = 0.0
    ) -> Callable[[int], Any]:
        """Return a function that makes a step of this many seconds, the first one of `first`."""

        def step(size: int) -> None:
            takes = (seconds if first is None or name in self.steps else first) * size / self.batch_size
            for _ in range(PARTS):
                torch.zeros(2).add_(1)
                self.now += takes / PARTS
            self.steps.append(name)

        def make_step(size: int) -> Callable[[], object]:
            self.now += creation
            self.sizes.append(size)
            return partial(step, size)

        return make_step


def made(clock: Clock, seconds: Mapping[str, float]) -> dict[str, Callable[[int], Any]]:
    return {name: clock.make(name, value) for name, value in seconds.items()}


def test_candidates_take_turns_and_the_fastest_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    probe = Probe[str]()
    probe.measure({"a": clock.make("a", 0.2, first=0.9), "b": clock.make("b", 0.3)})
    assert probe.seconds == {"a": pytest.approx(0.2), "b": pytest.approx(0.3)}
    assert clock.steps == ["a", "a", "b", "b", *"abababab"]
    assert (probe.fastest(["b", "a"]), probe.cut_short, probe.stopped) == ("a", 0.0, {})


def test_the_minimum_is_robust_to_other_load(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def steps_taking(*seconds: float) -> Callable[[int], Callable[[], None]]:
        times = iter(seconds)

        def step() -> None:
            nonlocal now
            now += next(times)

        return lambda size: step

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    probe = Probe[str]()
    # The first step is not counted. Two of five others are slowed down by other processes.
    probe.measure({"steady": steps_taking(*[0.2] * 6), "noisy": steps_taking(0.9, 0.1, 0.19, 0.11, 0.18, 0.1)})
    assert probe.seconds == {"steady": pytest.approx(0.2), "noisy": pytest.approx(0.1)}


def test_a_slow_candidate_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    probe = Probe[str]()
    probe.measure(made(clock, {"fast": 0.1, "slow": 0.5}))
    assert (clock.steps.count("fast"), clock.steps.count("slow")) == (6, 2)


def test_a_hopeless_candidate_is_stopped_in_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ResNet of 1.2 s in float32 took 40 s in bfloat16 on a processor that emulates it."""
    clock = Clock(monkeypatch)
    probe = Probe[str]()
    probe.measure(made(clock, {"float32": 1.2, "bfloat16": 40.0, "other": 1.1}))
    assert "bfloat16" not in clock.steps
    assert probe.stopped == {"bfloat16": pytest.approx(3.6, abs=0.5)}
    assert probe.fastest(["float32", "bfloat16", "other"]) == "other"
    assert clock.now <= module.MAX_SECONDS


def test_a_long_first_step_is_not_hopeless_if_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are generated in the first step."""
    clock = Clock(monkeypatch)
    probe = Probe[str]()
    probe.measure({"a": clock.make("a", 0.05), "b": clock.make("b", 0.01, first=0.8)})
    assert probe.fastest(["a", "b"]) == "b"


def test_the_backward_pass_is_stopped() -> None:
    x = torch.ones(4, requires_grad=True)
    with module._Deadline(60) as deadline:
        loss = x.sin().sin().sum()
        deadline._end = 0.0
        with pytest.raises(TooSlowError):
            loss.backward()
    torch.ones(3).sin()  # outside of the context there is no limit


def test_the_limit_is_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    probe = Probe[str]()
    probe.measure(made(clock, {"a": 3.0, "b": 2.0, "c": 2.5, "d": 4.0}))
    assert clock.steps == ["a", "b", "c"]
    assert probe.seconds == {"a": pytest.approx(3), "b": pytest.approx(2), "c": pytest.approx(2.5)}
    assert probe.fastest("abcd") == "b"
    assert 0 < clock.now <= module.MAX_SECONDS + 0.05
    assert probe.cut_short


def test_a_first_step_beyond_the_limit_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    probe = Probe[str]()
    probe.measure(made(clock, {"a": 300.0, "b": 1.0}))
    assert (clock.steps, probe.seconds, probe.fastest("ab")) == ([], {}, "a")
    assert clock.now <= module.MAX_SECONDS * 1.5


@pytest.mark.parametrize("options", [{"updates": 10**5}, {"minutes": 20.0}])
def test_candidates_with_long_steps_are_compared_on_a_smaller_batch(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of airbench with 2,000 images took more than 10 s in float32, and bfloat16 was never tried."""
    clock = Clock(monkeypatch, batch_size=2_000)
    probe = Probe[str](**options, batch_size=2_000)
    seconds = {"float32": 11.0, "bfloat16": 5.0, "other": 14.0}
    probe.measure(made(clock, seconds))
    assert clock.sizes == [2_000, 31, 172, 172, 172]
    assert probe.seconds == {name: pytest.approx(value) for name, value in seconds.items()}
    assert probe.fastest(seconds) == "bfloat16"
    assert (probe.estimated, probe.estimated_batch) == (set(seconds), 172)
    assert 2 <= clock.steps.count("other") <= clock.steps.count("bfloat16")
    assert (probe.stopped, probe.cut_short) == ({}, 0.0)
    assert clock.now < module.MAX_SECONDS
    assert probe.run_seconds == pytest.approx(1200 if "minutes" in options else 5e5)


@pytest.mark.parametrize(
    ("batch_size", "multiple_of", "expected"),
    [(2, 1, []), (16, 8, []), (64, 8, [16]), (100, 1, [2]), (1_000, 3, [15, 9])],
)
def test_a_smaller_batch_has_at_least_two_items_for_each_part(
    batch_size: int, multiple_of: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts are gradient accumulation steps; BatchNorm needs two values in each."""
    clock = Clock(monkeypatch, batch_size=batch_size)
    probe = Probe[str](batch_size=batch_size, multiple_of=multiple_of)
    monkeypatch.setattr(probe, "_fitting_batch", lambda candidates: 10 if multiple_of == 3 else probe.batch_size)
    probe.measure(made(clock, {"a": 30.0, "b": 30.0}))
    assert list(dict.fromkeys(clock.sizes)) == [batch_size, *expected]


@pytest.mark.parametrize(("seconds", "size"), [(120.0, 31), (200.0, 2)])
def test_of_a_smaller_batch_every_candidate_has_a_step(
    seconds: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 31 items of 2,000 takes 1.9 s, and of four there is time; and then 3.1 s."""
    clock = Clock(monkeypatch, batch_size=2_000)
    probe = Probe[str](batch_size=2_000)
    probe.measure(made(clock, {"a": seconds, "b": 0.9 * seconds, "c": seconds, "d": 0.8 * seconds}))
    assert clock.sizes[1] == 31
    assert clock.sizes[2] == (31 if size == 31 else 2)
    assert len(probe.seconds) == 4
    assert probe.fastest("abcd") == "d"
    assert clock.now < module.MAX_SECONDS


def test_only_a_long_first_step_does_not_make_the_batch_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a program loads libraries."""
    clock = Clock(monkeypatch, batch_size=64)
    make = made(clock, {"a": 0.2, "b": 0.1})

    def loading(size: int) -> Callable[[], Any]:
        def step() -> None:
            clock.now += 5.0 * (not clock.steps and size == 64)
            made_step()

        made_step = make["a"](size)
        return step

    probe = Probe[str](batch_size=64)
    probe.measure({"a": loading, "b": make["b"]})
    assert clock.sizes == [64, 2, 64, 64]
    assert probe.seconds == {"a": pytest.approx(0.2), "b": pytest.approx(0.1)}
    assert not probe.estimated


@pytest.mark.parametrize(("updates", "size"), [(1_000, 256), (120, 17), (20, 256)])
def test_a_step_is_long_if_the_limit_has_no_time_for_two_of_each_candidate(
    updates: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of 1,000 updates has time for them, and one of 20 has none for a second candidate."""
    clock = Clock(monkeypatch, batch_size=256)
    probe = Probe[str](updates, batch_size=256)
    probe.measure(made(clock, {"a": 0.5, "b": 0.4, "c": 0.6}))
    assert clock.sizes[-1] == size
    assert probe.fastest("abc") == ("a" if updates == 20 else "b")
    assert probe.cut_short or updates > 20


@pytest.mark.parametrize(
    ("seconds", "updates", "sizes"), [(1.5, None, [256, 4, 256]), (40.0, None, [256, 4, 16]), (0.5, 120, [256])]
)
def test_a_single_candidate_is_timed_with_the_largest_batch_that_fits(
    seconds: float, updates: int | None, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of four items is mostly what does not depend on the batch, which would count 64 times."""
    clock = Clock(monkeypatch, batch_size=256)
    probe = Probe[str](updates, batch_size=256)
    probe.measure(made(clock, {"a": seconds}))
    assert clock.sizes == sizes
    assert probe.seconds == {"a": pytest.approx(seconds)}
    assert probe.estimated == ({"a"} if sizes[-1] < 256 else set())


def test_with_a_smaller_batch_the_likely_candidate_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, updates, stopped in ((0.5, 120, []), (30.0, 10**5, ["a"])):
        clock = Clock(monkeypatch, batch_size=256)
        probe = Probe[str](updates, batch_size=256)
        probe.measure(made(clock, dict.fromkeys("abc", seconds)), "b")
        assert list(dict.fromkeys(clock.steps)) == (["b", "a", "c"] if stopped else ["a", "b", "c"])
        assert list(probe.seconds) == ["b", "a", "c"]


def test_short_steps_of_a_short_run_are_not_made_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, batch_size=256)
    probe = Probe[str](120, batch_size=256)
    probe.measure(made(clock, {"a": 0.1, "b": 0.05}))
    assert set(clock.sizes) == {256}


def test_an_operation_that_takes_longer_than_the_limit_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, batch_size=256)
    probe = Probe[str](batch_size=256)
    seconds = 1.2 * module.MAX_SECONDS
    probe.measure(made(clock, {"a": PARTS * seconds, "b": 1.0}), "b")
    assert probe.stopped == {"a": pytest.approx(seconds)}
    assert probe.cut_short == pytest.approx(seconds)
    assert (clock.steps, probe.seconds) == ([], {})


def test_steps_of_a_gpu_are_not_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, batch_size=256)
    probe = Probe[str](batch_size=256, interruptible=False)
    probe.measure(made(clock, {"a": 3.0, "b": 2.0}))
    assert clock.sizes == [256, 256]
    assert clock.steps == ["a", "b", "a", "b"]


def test_beside_compiled_code_whole_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code is that of a batch size, so that for a smaller batch a run would compile once more."""
    clock = Clock(monkeypatch, batch_size=800)
    probe = Probe[str](minutes=600, batch_size=800)
    probe.measure(made(clock, {"a": 16.0, "b": 8.0}))
    assert probe.estimated == {"a", "b"}
    del clock.sizes[:], clock.steps[:]
    seconds = {"a": 15.0, "b": 7.0, "compiled": 4.0}
    assert probe.has_time_to_compile
    assert probe.measure_compiled("compiled", made(clock, seconds))
    assert clock.sizes == [800, 800], "of b and of the compiled code"
    assert clock.steps == ["compiled", *["b", "compiled"] * module.LONG_ROUNDS]
    assert probe.seconds == {"a": pytest.approx(16), "b": pytest.approx(7), "compiled": pytest.approx(4)}
    assert probe.estimated == {"a"}


@pytest.mark.parametrize(("minutes", "expected"), [(24, False), (26, True)])
def test_compilation_needs_time_for_three_whole_steps(
    minutes: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2% of 25 minutes, 30 s, these take 24 s."""
    clock = Clock(monkeypatch, batch_size=800)
    probe = Probe[str](minutes=minutes, batch_size=800)
    probe.measure({"a": clock.make("a", 8.0)})
    clock.now = probe._start + 1.0
    assert probe.has_time_to_compile == expected


@pytest.mark.parametrize(("updates", "limit"), [(3, 0.0), (1_000, 2.0), (10**6, 10.0), (None, 10.0)])
def test_the_limit_is_a_fraction_of_the_run(updates: int | None, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run takes `updates` steps of a tenth of a second."""
    clock = Clock(monkeypatch)
    probe = Probe[str](updates)
    names = [f"candidate {number}" for number in range(40)]
    probe.measure({name: clock.make(name, 0.1 if name == names[0] else 0.15) for name in names})
    assert probe.fastest(names) == names[0]
    assert clock.now == pytest.approx(max(limit, 0.1), abs=0.16), "at least one step of the first candidate"
    assert probe.cut_short == pytest.approx(clock.now)


def test_the_estimate_of_the_run_is_corrected_by_later_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    probe = Probe[str](1_000)
    probe.measure({"a": clock.make("a", 0.01, first=0.9)})
    assert probe.run_seconds == pytest.approx(10)
    assert probe.limit == pytest.approx(0.2)


def test_a_run_that_is_limited_in_time_has_that_length(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    assert Probe[str](5, minutes=2).run_seconds == 120
    assert Probe[str](5, minutes=2).limit == pytest.approx(2.4)


def test_creating_the_first_candidate_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads libraries that the run needs anyway. The others count."""
    clock = Clock(monkeypatch)
    probe = Probe[str]()
    probe.measure({"a": clock.make("a", 0.1, creation=30), "b": clock.make("b", 0.1, creation=1)})
    assert probe.elapsed == pytest.approx(2.2)


def test_compiled_code_is_timed_in_turns_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    probe = Probe[str]()
    probe.measure(made(clock, {"a": 0.1, "b": 0.2}))
    del clock.steps[:]
    seconds = {"a": 0.3, "b": 0.4, "compiled": 0.25}  # another program has started
    monkeypatch.setattr(probe, "_steps", {name: made(clock, seconds)[name](1) for name in "ab"})
    make = made(clock, seconds) | {"compiled": clock.make("compiled", 0.25, first=20)}
    assert probe.measure_compiled("compiled", make)
    assert clock.steps[:4] == ["compiled", "a", "b", "compiled"]
    assert probe.seconds == {name: pytest.approx(value) for name, value in seconds.items()}
    assert probe.fastest(["a", "b", "compiled"]) == "compiled"


def test_compilation_is_stopped_at_its_limit() -> None:
    probe = Probe[str](1_000, minutes=0.2 / 60 / module.MAX_FRACTION)
    handler = signal.getsignal(signal.SIGALRM)

    def compilation() -> None:
        try:
            time.sleep(30)
        except Exception:  # noqa: BLE001  (as the compiler does)
            pytest.fail("the limit was handled by the compiler")

    start = time.perf_counter()
    assert not probe.measure_compiled("compiled", {"compiled": lambda size: compilation})
    assert time.perf_counter() - start < 5
    assert probe.stopped == {"compiled": pytest.approx(0.2, abs=0.15)}
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_that_python_ignores_is_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a destructor an exception is printed and ignored. The program prints none of the probe's."""

    class Slow:
        def __del__(self) -> None:
            interrupted.append(True)
            time.sleep(0.3)  # the first alarm is raised here
            interrupted.append(False)

    def compilation() -> None:
        Slow()
        assert interrupted == [True]
        try:
            time.sleep(30)
        finally:
            time.sleep(0.3)  # an alarm during the clean-up does not end it
            ended.append(True)

    interrupted: list[bool] = []
    ended: list[bool] = []
    monkeypatch.setattr(module, "ALARM_REPEAT_SECONDS", 0.2)
    hook = sys.unraisablehook
    probe = Probe[str](1_000, minutes=0.1 / 60 / module.MAX_FRACTION)
    assert not probe.measure_compiled("compiled", {"compiled": lambda size: compilation})
    assert "compiled" in probe.stopped
    assert ended == [True]
    assert sys.unraisablehook is hook
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert capsys.readouterr().err == ""


def test_compiled_code_that_cannot_be_timed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    probe = Probe[str](10_000)
    probe.measure(made(clock, {"a": 0.1}))
    assert probe.compile_limit == pytest.approx(20)
    make = {"a": clock.make("a", 0.1), "compiled": clock.make("compiled", 0.01, first=30)}
    assert not probe.measure_compiled("compiled", make)
    assert probe.fastest(["a", "compiled"]) == "a"


def test_in_another_thread_a_compilation_runs_to_its_end() -> None:
    results: list[bool] = []
    probe = Probe[str](1_000, minutes=2)

    def measure() -> None:
        results.append(probe.measure_compiled("compiled", {"compiled": lambda size: lambda: None}))

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    assert results == [True]


def test_a_real_step_is_stopped_in_time() -> None:
    weight = torch.rand(50, 50)

    def step(repeats: int) -> None:
        for _ in range(repeats):
            weight.sin_()

    probe = Probe[str]()
    probe.measure({"a": lambda size: partial(step, 3), "b": lambda size: partial(step, 10**8)})
    assert list(probe.stopped) == ["b"]
    assert probe.stopped["b"] < 5
    assert probe.fastest("ab") == "a"


def test_a_limit_does_not_import_the_compiler(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from zerokara.core.probe import Probe; "
        "Probe(10).measure({'a': lambda size: lambda: torch.ones(2).sin()}); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    process = start_with_torch(tmp_path, "-c", code)
    assert (process.communicate(), process.returncode) == (("", ""), 0)
