"""Signals: what they stop, when they stop it, and what a second one does."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zerokara.core.config import Stopped
from zerokara.core.distributed import World
from zerokara.core.run import Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Config of the tests."""

    resume: bool = False


def new(root: Path, name: str = "a", *, resume: bool = False, **options: Any) -> Run:
    return Run(Config(), kind="dqn", name=name, resume=resume, quiet=True, root=root, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_request_a_stop(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with new(tmp_path) as run:
        with run.signals():
            assert [run.stop_requested] == [None]
            os.kill(os.getpid(), number)
            assert run.stop_requested == number.name
            os.kill(os.getpid(), signal.SIGTERM)  # a SIGTERM after the first signal has no effect
            if number == signal.SIGINT:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(number) is before


def test_a_second_signal_stops_at_once_but_not_a_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends SIGTERM to the process and to its group, so that it arrives twice."""
    clock = [100.0]
    monkeypatch.setattr("zerokara.core.stop_signals.time.monotonic", lambda: clock[0])
    with new(tmp_path) as run, run.signals():
        signal.raise_signal(signal.SIGTERM)
        clock[0] += 0.9
        signal.raise_signal(signal.SIGTERM)
        assert run.stop_requested == "SIGTERM"
        clock[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_of_torchrun_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("zerokara.core.stop_signals.time.monotonic", lambda: clock[0])
    with new(tmp_path) as run, run.signals():
        monkeypatch.setattr(run, "world", World(size=2))
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            clock[0] += 10


def test_a_signal_interrupts_what_is_interruptible(tmp_path: Path) -> None:
    done: list[str] = []
    with new(tmp_path) as run, run.signals():
        with run.interruptible(), run.interruptible(on=False):
            signal.raise_signal(signal.SIGTERM)
            done.append("an update")
        with pytest.raises(Stopped), run.interruptible():  # the signal arrived before
            done.append("an evaluation")
        signal.raise_signal(signal.SIGTERM)  # no longer inside a block
        assert done == ["an update"]
        assert not run.stopped
    with new(tmp_path, "b") as run, run.signals():
        with pytest.raises(Stopped), run.interruptible(), contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGINT)
        assert (run.stop_requested, done) == ("SIGINT", ["an update"])


def test_closing_is_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new(tmp_path) as run, run.signals(), run.interruptible():
        monkeypatch.setattr(run, "flush", lambda: signal.raise_signal(signal.SIGTERM))
        run.close()
    with new(tmp_path, resume=True):  # the folder is unlocked
        pass
