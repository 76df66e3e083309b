"""Measurement of the speed of a training program with several numbers of processes, and the choice between them.

speeds, notes = compare([1, 2, 4], partial(measure, module, arguments, seconds=5.0))
best = fastest(speeds)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

from zerokara.core.config import Stopped, format_count
from zerokara.core.machine import usable_cores
from zerokara.core.programs import import_path
from zerokara.core.speed_trial import FOLDER, POSITIONS

MIN_ITERATIONS = 2  # of a measurement; an iteration of PQN may take longer than its seconds
MAX_SECONDS = 300.0  # of a measurement, with the start of the program
MIN_RUN = 20  # times as long as a measurement: otherwise a second one would cost more than it can gain
MIN_GAIN = 1.05  # over fewer processes, below which a difference may be chance
POLL_SECONDS = 0.1
TRIAL = "speed-trial"  # name of its run


class Position(NamedTuple):
    """Position of a run after an iteration."""

    time: float  # seconds of a clock
    done: int  # updates or agent steps
    total: int  # length of the run


@dataclass(frozen=True)
class Speed:
    """Speed of a run with a number of processes."""

    processes: int
    per_s: float  # updates or agent steps per second, of all processes together
    run_seconds: float  # estimated length of the run
    seconds: float  # that the measurement took, with the start of the program


Measured = Speed | str
"""A speed, or the reason why there is none."""


def candidates(limit: int) -> list[int]:
    """Return the numbers of processes to measure: powers of two, and the limit."""
    numbers = [1]
    while numbers[-1] < limit:
        numbers.append(min(2 * numbers[-1], limit))
    return numbers


def compare(numbers: Sequence[int], measure_one: Callable[[int], Measured]) -> tuple[list[Speed], list[str]]:
    """Measure numbers of processes in increasing order, as long as more of them are faster and the run is long enough.

    Returns:
        The speeds, and reasons why numbers were left out.
    """
    speeds: list[Speed] = []
    notes: list[str] = []
    for number in numbers:
        if speeds and speeds[0].run_seconds < MIN_RUN * speeds[0].seconds:
            notes.append(f"more were not measured, because the run takes only about {speeds[0].run_seconds:.0f} s")
            break
        if len(speeds) > 1 and speeds[-1].per_s < speeds[-2].per_s:
            break
        measured = measure_one(number)
        if isinstance(measured, Speed):
            speeds.append(measured)
        else:
            notes.append(f"{format_count(number, 'process')}: {measured}")
    return speeds, notes


def fastest(speeds: Sequence[Speed]) -> int:
    """Return the number of processes to train with; 1 if nothing was measured.

    More processes must be faster by `MIN_GAIN` than fewer: one process is simpler, and resumes bit for bit.
    """
    best = Speed(1, 0.0, 0.0, 0.0)
    for speed in speeds:
        if speed.per_s > best.per_s * (MIN_GAIN if best.per_s else 1.0):
            best = speed
    return best.processes


def command(module: str, arguments: Sequence[str], processes: int) -> list[str]:
    """Return the arguments of Python that start a training program in a number of processes, by torchrun if several."""
    program = ["-m", f"zerokara.{module}", *arguments]
    if processes == 1:
        return program
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *program]


def environment(processes: int) -> dict[str, str]:
    """Return the environment of a training program in a number of processes.

    Without OMP_NUM_THREADS, torchrun sets it to 1 and prints a warning. The programs set their threads themselves.
    """
    threads = str(max(1, usable_cores() // processes))
    return {"OMP_NUM_THREADS": threads, **os.environ, **import_path()}


def measure(module: str, arguments: Sequence[str], processes: int, *, seconds: float) -> Measured:
    """Measure the speed of a training program with a number of processes.

    Args:
        module: of the program ("vision.classify").
        arguments: of the program.
        processes: their number.
        seconds: length of the measurement, after the first iteration.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zerokara-speed-") as name, _raising_stopped():
        folder = Path(name)
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command(module, [*arguments, "--name", TRIAL, "--track", "off"], processes)],
                env={**environment(processes), FOLDER: name},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches this process only
            )
        try:
            while process.poll() is None and not is_enough(positions := read_positions(folder), seconds):
                if time.monotonic() - start > MAX_SECONDS:
                    return f"no speed after {MAX_SECONDS:.0f} s"
                time.sleep(POLL_SECONDS)
            positions = read_positions(folder)
        finally:
            _kill(process)
        if len(positions) <= MIN_ITERATIONS:
            return _reason((folder / "output").read_text(encoding="utf-8", errors="replace"))
    return speed(processes, positions, time.monotonic() - start)


def is_enough(positions: Sequence[Position], seconds: float) -> bool:
    """Return True if the positions of a trial are enough for its speed."""
    return len(positions) > MIN_ITERATIONS and positions[-1].time - positions[0].time >= seconds


def speed(processes: int, positions: Sequence[Position], seconds: float) -> Speed:
    """Return the speed from the first position on, which is that after the first iteration: it fills caches.

    Args:
        processes: their number.
        positions: more than `MIN_ITERATIONS`.
        seconds: that the measurement took.
    """
    first, last = positions[0], positions[-1]
    per_s = (last.done - first.done) / (last.time - first.time)
    return Speed(processes, per_s, last.total / per_s, seconds)


def read_positions(folder: Path) -> list[Position]:
    """Read the positions of a trial, without a line that is just being written."""
    path = folder / POSITIONS
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [Position(float(time), int(done), int(total)) for time, done, total in map(str.split, lines)]


def _reason(output: str) -> str:
    """Return why a program has ended: its message, or its last line."""
    lines = output.strip().splitlines() or ["it ended before there was a speed"]
    messages = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (messages or lines[-1:])[0]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and the processes that it has started, which are in sessions of their own under torchrun."""
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        for each in (first, *first.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


@contextlib.contextmanager
def _raising_stopped() -> Iterator[None]:
    """Raise `Stopped` in the block after SIGTERM, so that no process is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
