"""Tests of the progress display: terminals of any width, pipes, and number formats."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from zerokara.core import progress
from zerokara.core.progress import Progress, clock, loading, readable


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by a list with the time in seconds, which the tests set."""
    time = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: time[0]))
    return time


def test_one_line_every_ten_seconds_in_a_pipe(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(silent=False)
    for second in range(25):
        now[0] = 1000.0 + second
        shown.show(second * 1000, 1_000_000, {"return": -20.3, "episodes": 12345})
    now[0] += 1
    shown.show(1_000_000, 1_000_000, {"return": torch.tensor(20.5)})
    shown.show(1_000_000, 1_000_000, {"return": 20.5})  # not printed twice
    assert capsys.readouterr().out.splitlines() == [
        "step 0/1,000,000  eta -  return -20.3  episodes 12,345",
        "step 10,000/1,000,000  eta 16:30  return -20.3  episodes 12,345",
        "step 20,000/1,000,000  eta 16:20  return -20.3  episodes 12,345",
        "step 1,000,000/1,000,000  eta 0:00  return 20.5",
    ]


def test_the_eta_is_computed_from_the_last_minute(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A warm-up without training is ten times as fast; after a minute it has no influence."""
    shown = Progress(silent=False)
    step = 50_000  # a resumed run: earlier steps took no time in this process
    for second in range(200):
        now[0] += 1
        step += 1000 if second < 60 else 100
        shown.show(step, 150_000, {})
    last = capsys.readouterr().out.splitlines()[-1]
    now_left = (150_000 - 50_000 - 60_000 - 131 * 100) / 100  # seconds, at 100 steps/s; the line is from second 190
    assert last == f"step {50_000 + 60_000 + 131 * 100:,}/150,000  eta {clock(now_left)}"


def test_slow_loaders_are_shown_on_stderr(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with loading(silent=False) as show:
        show("reading digits", 1, 3)
        now[0] += 2
        show("reading digits", 2, 3)
    with loading(silent=True) as show:
        now[0] += 2
        show("reading digits", 2, 3)
    assert capsys.readouterr() == ("", "step 2/3  eta -   reading digits\n")


def terminal(width: int) -> tuple[Progress, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=20, color_system=None, legacy_windows=False)
    return Progress(silent=False, console=console), screen


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 37, 80, 300])
def test_lines_fit_a_terminal_of_any_width(now: list[float], width: int) -> None:
    shown, screen = terminal(width)
    for step in range(5):
        now[0] += 1
        shown.show(step, 4, {"return": -20.3, "a long label": "x" * 100})
    shown.print("a remark [bold]in brackets[/]")
    shown.warn("beware")
    shown.close("the end")
    text = screen.getvalue()
    assert "a remark [bold]in brackets[/]" in text.replace("\n", "")
    assert "warning: beware" in text.replace("\n", "")
    assert "\x1b[?25h" in text  # the cursor is visible again
    frames = [line for line in text.replace("\r", "\n").split("\n") if "━" in line]
    assert bool(frames) == (width >= 20)  # narrow terminals show the numbers without the bar
    if width == 80:
        assert "step 4/4  eta 0:00" in text
        assert "return -20.3  a long label xxx" in text


def test_a_terminal_is_updated_ten_times_per_second(now: list[float]) -> None:
    shown, screen = terminal(80)
    for _ in range(1000):
        now[0] += 0.01
        shown.show(1, 10, {})
    assert 50 <= screen.getvalue().count("step 1/10") <= 110
    shown.close()


def test_silent_prints_warnings_and_the_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(silent=True)
    shown.show(1, 2, {})
    shown.print("a remark")
    shown.warn("beware")
    shown.close("the end")
    out, err = capsys.readouterr()
    assert (out, err) == ("the end\n", "warning: beware\n")


def test_a_closed_output_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Gone())
    shown = Progress(silent=False)
    shown.print("a remark")
    shown.show(1, 2, {})
    shown.close("the end")


def test_number_formats() -> None:
    values = [3, 12_000, -20.3, 0.00123456, 1234.5, 1e-9, math.nan, math.inf, "text", True, torch.tensor(0.5)]
    assert [readable(value) for value in values] == [
        "3", "12,000", "-20.3", "0.00123", "1,234", "1e-09", "-", "inf", "text", "yes", "0.5"
    ]  # fmt: skip
    assert [clock(seconds) for seconds in (0, 59.6, 723, 3723, 360_000, math.nan, math.inf)] == [
        "0:00", "1:00", "12:03", "1:02:03", "100:00:00", "-", "-"
    ]  # fmt: skip
