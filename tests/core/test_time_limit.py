"""Tests of the length of a run that is limited in time, and of the measurement of its updates, by a simulated clock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zerokara.core.distributed import World
from zerokara.core.time_limit import SecondsOf, length_in_time_limit, measure_update


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds of a simulated clock."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


class FakeRun:
    """Parts of a run that the length needs."""

    def __init__(self, world: World = World(), **extra: Any) -> None:  # noqa: B008  (frozen)
        self.world, self.extra = world, extra
        self.printed: list[str] = []
        self.warned: list[str] = []
        self.interruptible_calls: list[bool] = []
        self.print, self.warn = self.printed.append, self.warned.append

    def save_extra(self, **extra: Any) -> None:
        self.extra |= extra

    @contextlib.contextmanager
    def interruptible(self, *, on: bool = True) -> Iterator[None]:
        self.interruptible_calls.append(on)
        yield


def length(run: FakeRun, minutes: float, seconds: SecondsOf, clock: list[float], measured_in: float = 0.0) -> int:
    """Choose the length of a run that began 20 s ago, and whose measurement takes some seconds."""

    def measure() -> SecondsOf:
        clock[0] += measured_in
        return seconds

    return length_in_time_limit(run, "update", minutes, clock[0] - 20, measure)  # type: ignore[arg-type]


def test_the_longest_run_is_chosen_that_ends_in_time(clock: list[float]) -> None:
    """Of 10 minutes 570 s remain without the margin, of which 20 s have passed, and 10 s are for the measurement."""
    run = FakeRun()
    assert length(run, 10, lambda number: 2.0 * number + 40, clock, measured_in=10) == 250
    assert (run.extra, run.printed, run.warned) == ({"updates": 250}, ["--minutes 10: 250 updates"], [])
    assert length(FakeRun(), 10, lambda number: 2.0 * number + 40.1, clock, measured_in=10) == 249


def test_a_resumed_run_keeps_its_length(clock: list[float]) -> None:
    run = FakeRun(updates=7)
    assert length(run, 10, lambda number: pytest.fail("it is not measured again"), clock) == 7
    assert run.printed == ["--minutes 10: 7 updates"]


def test_a_time_that_is_too_short_is_named_and_one_update_done(clock: list[float]) -> None:
    """The start took 50 s and an update with its evaluation 140 s: 190 s, and 200 s with the margin."""
    run = FakeRun()
    assert length(run, 3.3, lambda number: 140.0 * number, clock, measured_in=30) == 1
    assert run.extra == {"updates": 1}
    (warning,) = run.warned
    assert warning == (
        "--minutes 3.3 is too short: the start and one update, with evaluation, take about 3:20. The run has one "
        "update; for a longer one, start a new run with more --minutes."
    )
    run = FakeRun()
    assert length(run, 3.34, lambda number: 140.0 * number, clock, measured_in=30) == 1
    assert run.warned == []


def test_a_signal_does_not_stop_the_measurement_of_one_of_several_processes(clock: list[float]) -> None:
    for world in (World(), World(rank=1, size=2)):
        run = FakeRun(world)
        length(run, 10, lambda number: number, clock)
        assert run.interruptible_calls == [world.size == 1]


def recorded_update(clock: list[float], seconds: Callable[[int], float]) -> tuple[Callable[[], None], list[int]]:
    """Return an update that takes seconds(n), n being the number of updates before it, and a list for that number."""
    done = [0]

    def update() -> None:
        clock[0] += seconds(done[0])
        done[0] += 1

    return update, done


@pytest.mark.parametrize(("seconds", "updates"), [(0.1001, 3 + 50), (1.001, 3 + 10), (6.006, 1 + 3), (20.0, 1 + 1)])
def test_few_long_updates_are_measured(seconds: float, updates: int, clock: list[float]) -> None:
    update, done = recorded_update(clock, lambda number: seconds)
    assert measure_update(update, World(), compiles=False) == pytest.approx(seconds)
    assert done == [updates]


def test_compilation_does_not_count(clock: list[float]) -> None:
    update, done = recorded_update(clock, lambda number: 60.0 if number < 3 else 0.5)
    assert measure_update(update, World(), compiles=True) == pytest.approx(0.5)
    assert done == [3 + 10]


def test_whole_periods_are_measured(clock: list[float]) -> None:
    """Every 16th update has a penalty that takes nine times as long: 24 units in 16 updates."""
    update, done = recorded_update(clock, lambda number: 0.36 if number % 16 == 0 else 0.04)
    assert measure_update(update, World(), compiles=False, period=16) == pytest.approx(24 * 0.04 / 16)
    assert done == [3 + 96]
    update, done = recorded_update(clock, lambda number: 2.0)
    assert measure_update(update, World(), compiles=False, period=16) == pytest.approx(2.0)
    assert done == [3 + 8], "not for longer than 15 s"


class Second(World):
    """World of the second process, which gets the values of the main process."""

    def broadcast_value(self, value: Any) -> Any:
        return self.values.pop(0)  # type: ignore[attr-defined]


def test_processes_do_as_many_updates_as_the_main_process(clock: list[float]) -> None:
    world = Second(rank=1, size=2)
    object.__setattr__(world, "values", [False, False, False, True, True, False, 0.25])
    update, done = recorded_update(clock, lambda number: 100.0)
    assert measure_update(update, world, compiles=False) == 0.25
    assert done == [3 + 2]
