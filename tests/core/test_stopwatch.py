"""The stopwatch: hours by hand, over an interruption too."""

from __future__ import annotations

import time

import pytest

from zerokara.core.stopwatch import Stopwatch


def test_hours_are_added_up_and_interruptions_are_not_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Stopwatch()
    assert (clock(), clock.hours) == (0.0, 0.0)
    now[0] += 1_800
    assert clock() == 0.5
    now[0] += 900
    assert clock.hours == 0.5, "what was told last"
    assert (clock(), clock()) == (0.75, 0.75)

    now[0] = 9.0  # another process, on a clock of its own
    again = Stopwatch()
    now[0] += 360
    again.hours = 0.75  # out of a checkpoint; what it took to get there counts
    assert again() == pytest.approx(0.85)
