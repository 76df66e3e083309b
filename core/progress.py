"""Progress display: a live bar on a terminal, plain lines on a pipe, nothing if silent."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from zerokara.core.config import print_on_stderr

DRAW_SECONDS = 0.1  # minimum interval between updates of a terminal
LINE_SECONDS = 10.0  # minimum interval between lines on a pipe
LOADING_SECONDS = 1.0  # loading is displayed only after this time
RATE_SECONDS = 60.0  # speed and ETA are those of this last period, because speed changes when learning starts


class Progress:
    """Progress bar and other output of a run, on stdout; without a bar, warnings go to stderr."""

    def __init__(self, silent: bool, console: Console | None = None) -> None:
        self.silent = silent
        self._console = console or Console()
        self._bar = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._drawn = -math.inf
        self._marks: deque[tuple[float, int]] = deque()  # (time in s, step), a second apart
        self._what = ""  # what is counted

    def show(self, step: int, total: int, fields: Mapping[str, Any]) -> None:
        """Display step, total and fields (texts, numbers, or tensors of one element) if the interval has passed.

        The last step is always displayed.
        """
        self._show("step", step, total, f"step {step:,}/{total:,}", fields)

    def show_loading(self, what: str, done: int, total: int) -> None:
        """Display "512 of 1,000 images read from digits.zip", as `show` does.

        It is a callback of data loaders, see `core.data.Progress`.

        Args:
            what: what is counted, such as "images read from digits.zip".
            done: number of them so far.
            total: number of them at the end; 0 if it is unknown.
        """
        position = f"{done:,} of {total:,} {what}" if total else f"{done:,} {what}"
        self._show(what, done, total or None, position, {})

    def _show(self, what: str, step: int, total: int | None, position: str, fields: Mapping[str, Any]) -> None:
        if self.silent:
            return
        if what != self._what:
            self._what = what
            self._marks.clear()  # its speed is another one
        now = time.monotonic()
        ended = total is not None and step >= total
        if now - self._drawn < (DRAW_SECONDS if self._bar else LINE_SECONDS) and not ended:
            return
        if self._drawn > -math.inf and ended and self._marks and self._marks[-1][1] == step:
            return  # the last step is already displayed
        self._drawn = now
        rate = self._rate(now, step)
        if total is not None:
            position += f"  eta {format_duration(max(total - step, 0) / rate if rate else math.nan)}"
        values = "  ".join(f"{label} {format_value(value)}" for label, value in fields.items())
        if not self._bar:
            self._print(f"{position}  {values}".rstrip())
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(
            _two_lines(position, values, step / total if total else float(ended), self._console.width), refresh=True
        )

    def print(self, text: str) -> None:
        """Print a line above the bar; nothing if silent."""
        if not self.silent:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning above the bar, or on stderr if there is no bar; also if silent."""
        if self._live is not None:
            self._print(f"warning: {text}")
        else:
            print_on_stderr(f"warning: {text}")

    def close(self, text: str = "") -> None:
        """Stop updating the bar, restore the cursor, and print the last line, also if silent."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        if text:
            self._print(text)

    def _rate(self, now: float, step: int) -> float:
        """Return the steps per second of the last minute, 0 if not known yet."""
        if not self._marks or now - self._marks[-1][0] >= 1.0 or step < self._marks[-1][1]:
            self._marks.append((now, step))
        while now - self._marks[0][0] > RATE_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        start, first = self._marks[0]
        return max(step - first, 0) / (now - start) if now > start else 0.0

    def _print(self, text: str) -> None:
        try:
            if self._live is not None:
                self._console.print(Text(text), soft_wrap=True)
            else:
                print(text, file=self._console.file, flush=True)
        except OSError:  # the reader of the pipe has exited, which must not end training
            self.silent = True


@contextmanager
def loading(silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function with which data loaders report their progress, as `Progress.show_loading`.

    The progress is displayed on stderr, because stdout may carry JSON, and only if loading takes longer than a second.
    """
    progress = Progress(silent, Console(stderr=True))
    start = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        if time.monotonic() - start > LOADING_SECONDS:
            progress.show_loading(what, done, total)

    try:
        yield show
    finally:
        progress.close()


def format_value(value: Any) -> str:
    """Format a value for display: 12,000 or 0.00123 or -20.3; NaN, a value not known yet, is "-"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    number = float(value)
    if not math.isfinite(number):
        return "-" if math.isnan(number) else str(number)
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def format_duration(seconds: float) -> str:
    """Format seconds as 12:03 or 1:02:03; "-" if not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _two_lines(position: str, values: str, fraction: float, width: int) -> Text:
    """Compose the display: bar and position, then the fields. Both lines are cut at the width of the terminal."""
    bar_width = max(0, min(40, width - len(position) - 3))
    filled = round(min(max(fraction, 0.0), 1.0) * bar_width)
    lines = Text(no_wrap=True, overflow="ellipsis")
    if bar_width:
        lines.append("━" * filled, "green").append("━" * (bar_width - filled), "bright_black").append("  ")
    return lines.append(f"{position}\n{values}")
