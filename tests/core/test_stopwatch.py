"""Stopwatch: hours of training by hand, also after a resume. LogInterval: speed."""

from __future__ import annotations

import time

import pytest

from zerokara.core.stopwatch import LogInterval, Stopwatch


def test_hours_exclude_interruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Stopwatch()
    assert (clock(), clock.hours) == (0.0, 0.0)
    now[0] += 1_800
    assert clock() == 0.5
    now[0] += 900
    assert clock.hours == 0.5, "the value of the last call"
    assert (clock(), clock()) == (0.75, 0.75)

    now[0] = 9.0  # another process, whose clock starts at another value
    resumed = Stopwatch()
    now[0] += 360
    resumed.hours = 0.75  # from a checkpoint; the time since the start of this process is added
    assert resumed() == pytest.approx(0.85)


def test_speed_since_the_start_of_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    interval = LogInterval(100)
    now[0] += 4
    assert (interval.seconds(), interval.per_second(110)) == (4.0, 2.5)
    now[0] += 4
    assert interval.per_second(110) == 1.25
