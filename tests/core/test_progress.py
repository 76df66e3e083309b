"""Progress display: terminals of any width, pipes, and number formats."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from zerokara.core import progress
from zerokara.core.progress import Progress, format_duration, format_value, loading


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Simulated clock in seconds, advanced by the tests."""
    time = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: time[0]))
    return time


def test_pipe_gets_a_line_every_ten_seconds(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress_bar = Progress(silent=False)
    for second in range(25):
        now[0] = 1000.0 + second
        progress_bar.show(second * 1000, 1_000_000, {"return": -20.3, "episodes": 12345})
    now[0] += 1
    progress_bar.show(1_000_000, 1_000_000, {"return": torch.tensor(20.5)})
    progress_bar.show(1_000_000, 1_000_000, {"return": 20.5})  # printed already
    assert capsys.readouterr().out.splitlines() == [
        "step 0/1,000,000  eta -  return -20.3  episodes 12,345",
        "step 10,000/1,000,000  eta 16:30  return -20.3  episodes 12,345",
        "step 20,000/1,000,000  eta 16:20  return -20.3  episodes 12,345",
        "step 1,000,000/1,000,000  eta 0:00  return 20.5",
    ]


def test_eta_uses_the_speed_of_the_last_minute(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A warm-up without training is ten times as fast and does not affect the estimate after a minute."""
    progress_bar = Progress(silent=False)
    step = 50_000  # a resumed run: earlier steps took no time in this process
    for second in range(200):
        now[0] += 1
        step += 1000 if second < 60 else 100
        progress_bar.show(step, 150_000, {})
    last = capsys.readouterr().out.splitlines()[-1]
    seconds_left = (150_000 - 50_000 - 60_000 - 131 * 100) / 100  # at 100 steps/s; the last line is from second 190
    assert last == f"step {50_000 + 60_000 + 131 * 100:,}/150,000  eta {format_duration(seconds_left)}"


def test_nothing_is_left_behind_the_last_step(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """The last rollout of PQN can end after the number of steps that was asked for."""
    progress_bar = Progress(silent=False)
    progress_bar.show(50_000, 60_000, {})
    now[0] += 20
    progress_bar.show(61_440, 60_000, {})
    assert capsys.readouterr().out.splitlines()[-1] == "step 61,440/60,000  eta 0:00"


def test_loading_is_shown_on_stderr_after_some_time(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with loading(silent=False) as report:
        report("images read from digits", 1, 3)
        now[0] += 2
        report("images read from digits", 2, 3)
    with loading(silent=True) as report:
        now[0] += 2
        report("images read from digits", 2, 3)
    assert capsys.readouterr() == ("", "2 of 3 images read from digits  eta -\n")


def test_a_loading_line_tells_how_many_of_how_many(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """The speed is that of this count alone: a second folder or the training steps after it have another one."""
    progress_bar = Progress(silent=False)
    for done in range(0, 5_121, 256):
        now[0] += 1
        progress_bar.show_loading("images read from photos.zip", done, 5_120)
    for done in (100, 1_100):
        now[0] += 10
        progress_bar.show_loading("images read from test.zip", done, 2_100)
    for step in (10, 20):
        now[0] += 10
        progress_bar.show(step, 120, {})
    assert capsys.readouterr().out.splitlines() == [
        "0 of 5,120 images read from photos.zip  eta -",
        "2,560 of 5,120 images read from photos.zip  eta 0:10",
        "5,120 of 5,120 images read from photos.zip  eta 0:00",
        "100 of 2,100 images read from test.zip  eta -",
        "1,100 of 2,100 images read from test.zip  eta 0:10",
        "step 10/120  eta -",
        "step 20/120  eta 1:40",
    ]


def test_a_loading_line_of_an_unknown_total(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A server need not send the length of a file. Such a count is displayed every ten seconds, like all others."""
    progress_bar = Progress(silent=False)
    for second in range(11):
        progress_bar.show_loading("bytes of set.gz downloaded", 1_000 * second, 0)
        now[0] += 1
    assert capsys.readouterr().out == "0 bytes of set.gz downloaded\n10,000 bytes of set.gz downloaded\n"
    on_terminal, screen = terminal(80)
    on_terminal.show_loading("bytes of set.gz downloaded", 2_048, 0)
    on_terminal.close()
    assert "2,048 bytes of set.gz downloaded" in screen.getvalue()
    assert "eta" not in screen.getvalue()


def terminal(width: int) -> tuple[Progress, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=20, color_system=None, legacy_windows=False)
    return Progress(silent=False, console=console), screen


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 37, 80, 300])
def test_terminal_of_any_width(now: list[float], width: int) -> None:
    progress_bar, screen = terminal(width)
    for step in range(5):
        now[0] += 1
        progress_bar.show(step, 4, {"return": -20.3, "a long label": "x" * 100})
    progress_bar.print("a message [bold]in brackets[/]")
    progress_bar.warn("careful")
    progress_bar.close("the end")
    text = screen.getvalue()
    assert "a message [bold]in brackets[/]" in text.replace("\n", "")
    assert "warning: careful" in text.replace("\n", "")
    assert "\x1b[?25h" in text  # the cursor is visible again
    frames = [line for line in text.replace("\r", "\n").split("\n") if "━" in line]
    assert bool(frames) == (width >= 20)  # a narrow terminal shows the numbers without the bar
    if width == 80:
        assert "step 4/4  eta 0:00" in text
        assert "return -20.3  a long label xxx" in text


def test_terminal_is_updated_ten_times_per_second(now: list[float]) -> None:
    progress_bar, screen = terminal(80)
    for _ in range(1000):
        now[0] += 0.01
        progress_bar.show(1, 10, {})
    assert 50 <= screen.getvalue().count("step 1/10") <= 110
    progress_bar.close()


def test_silent_prints_only_warnings_and_the_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress_bar = Progress(silent=True)
    progress_bar.show(1, 2, {})
    progress_bar.print("a message")
    progress_bar.warn("careful")
    progress_bar.close("the end")
    out, err = capsys.readouterr()
    assert (out, err) == ("the end\n", "warning: careful\n")


def test_closed_pipe_does_not_stop_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    class ClosedPipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", ClosedPipe())
    progress_bar = Progress(silent=False)
    progress_bar.print("a message")
    progress_bar.show(1, 2, {})
    progress_bar.close("the end")


def test_number_formats() -> None:
    values = [3, 12_000, -20.3, 0.00123456, 1234.5, 1e-9, math.nan, math.inf, "text", True, torch.tensor(0.5)]
    assert [format_value(value) for value in values] == [
        "3", "12,000", "-20.3", "0.00123", "1,234", "1e-09", "-", "inf", "text", "yes", "0.5"
    ]  # fmt: skip
    assert [format_duration(seconds) for seconds in (0, 59.6, 723, 3723, 360_000, math.nan, math.inf)] == [
        "0:00", "1:00", "12:03", "1:02:03", "100:00:00", "-", "-"
    ]  # fmt: skip
