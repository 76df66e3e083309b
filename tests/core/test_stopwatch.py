"""Tests of the stopwatch: hand-computed hours, also of resumed runs."""

from __future__ import annotations

import time

import pytest

from zerokara.core.stopwatch import Stopwatch


def test_hours_are_summed_without_interruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Stopwatch()
    assert (clock(), clock.hours) == (0.0, 0.0)
    now[0] += 1_800
    assert clock() == 0.5
    now[0] += 900
    assert clock.hours == 0.5, "hours at the last call"
    assert (clock(), clock()) == (0.75, 0.75)

    now[0] = 9.0  # another process with another clock
    again = Stopwatch()
    now[0] += 360
    again.hours = 0.75  # restored from a checkpoint: earlier hours are included
    assert again() == pytest.approx(0.85)
