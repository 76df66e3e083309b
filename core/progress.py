"""How far a run is: a live bar on a terminal, plain lines on a pipe, nothing when silent."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

DRAW_SECONDS = 0.1  # a terminal is drawn at most this often
LINE_SECONDS = 10.0  # a pipe gets a line at most this often
QUICK_SECONDS = 1.0  # what is read sooner needs no bar
RATE_SECONDS = 60.0  # speed and ETA look back this far, since warm-up and learning differ


class Progress:
    """The bar and whatever is printed beside it, on stdout; warnings go to stderr where there is no bar."""

    def __init__(self, silent: bool, console: Console | None = None) -> None:
        self.silent = silent
        self._console = console or Console()
        self._bar = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._drawn = -math.inf
        self._marks: deque[tuple[float, int]] = deque()  # (time in s, step), a second apart

    def show(self, step: int, total: int, fields: Mapping[str, Any]) -> None:
        """Draw step of total and the fields (texts, numbers, or tensors of one element), if it is time to."""
        if self.silent:
            return
        now = time.monotonic()
        if now - self._drawn < (DRAW_SECONDS if self._bar else LINE_SECONDS) and step < total:
            return
        if self._drawn > -math.inf and step >= total and self._marks[-1][1] == step:
            return  # the last line stands already
        self._drawn = now
        rate = self._rate(now, step)
        position = f"step {step:,}/{total:,}  eta {clock((total - step) / rate if rate else math.nan)}"
        values = "  ".join(f"{label} {readable(value)}" for label, value in fields.items())
        if not self._bar:
            self._print(f"{position}  {values}".rstrip())
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(_picture(position, values, step / total if total else 1.0, self._console.width), refresh=True)

    def print(self, text: str) -> None:
        """A line above the bar; nothing when silent."""
        if not self.silent:
            self._print(text)

    def warn(self, text: str) -> None:
        """A warning, also when silent: above the bar, or on stderr."""
        if self._live is not None:
            self._print(f"warning: {text}")
        else:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def close(self, text: str = "") -> None:
        """Leave the bar as it stands, give the cursor back, and print the last line, also when silent."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        if text:
            self._print(text)

    def _rate(self, now: float, step: int) -> float:
        """Steps per second over the last minute, 0 where nothing is known."""
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
        except OSError:  # whoever read the pipe is gone: no reason to stop training
            self.silent = True


@contextmanager
def loading(silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """What loaders of data are given to tell what is done, how much of it, and of how much.

    It is shown on stderr, for stdout may be somebody's JSON, and only where it takes longer than a second.
    """
    progress = Progress(silent, Console(stderr=True))
    began = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        if time.monotonic() - began > QUICK_SECONDS:
            progress.show(done, total, {"": what})

    try:
        yield show
    finally:
        progress.close()


def readable(value: Any) -> str:
    """A value for people: 12,000 and 0.00123 and -20.3; a number that is not there yet is "-"."""
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


def clock(seconds: float) -> str:
    """Seconds as 12:03 or 1:02:03; "-" for what is not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _picture(position: str, values: str, fraction: float, width: int) -> Text:
    """Two lines that never wrap, however narrow the terminal: bar and position, then the fields."""
    bar_width = max(0, min(40, width - len(position) - 3))
    full = round(min(max(fraction, 0.0), 1.0) * bar_width)
    lines = Text(no_wrap=True, overflow="ellipsis")
    if bar_width:
        lines.append("━" * full, "green").append("━" * (bar_width - full), "bright_black").append("  ")
    return lines.append(f"{position}\n{values}")
