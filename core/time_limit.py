"""Length of a run that is limited in time: how many epochs or updates fit is measured once, before the first update.

    began = time.perf_counter()  # before the data are read
    ...
    epochs = length_in_time_limit(run, "epoch", config.minutes, began, measure)

Schedules are functions of the update, so the number must be known at the start and must not change when the run is
resumed. A schedule that depends on wall-clock time could not be resumed exactly.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from zerokara.core.config import format_count
from zerokara.core.progress import format_duration

if TYPE_CHECKING:
    from zerokara.core.distributed import World
    from zerokara.core.run import Run

MEASURE_SECONDS = 5.0
MIN_UPDATES = 10
MAX_SECONDS = 15.0  # of the measurement, with fewer updates if they are long
WARMUP_UPDATES = 3
TIME_FRACTION = 0.95  # the rest is a safety margin
LONGEST = 10**9  # epochs or updates

SecondsOf = Callable[[int], float]
"""Returns the expected seconds of a number of epochs or updates, with all that belongs to them."""


def length_in_time_limit(run: Run, unit: str, minutes: float, began: float, measure: Callable[[], SecondsOf]) -> int:
    """Return the number of epochs or updates of a run of `minutes`, at least 1, and print it.

    It is measured in a new run and saved in `run.extra`; a resumed run keeps it. What has passed since the start, the
    measurement included, and a margin of 5% are subtracted from the time. Every process must call this function; the
    number is that of the main process.

    Args:
        run: its folder, and its processes.
        unit: "epoch" or "update".
        minutes: length of the run, above 0.
        began: `time.perf_counter()` at the start of the program.
        measure: measures how long the run takes. All processes call it.
    """
    name = f"{unit}s"
    if name not in run.extra:
        with run.interruptible(on=run.world.size == 1):  # several processes stop together
            seconds = measure()
        passed = time.perf_counter() - began
        limit = TIME_FRACTION * 60 * minutes - passed
        number = bisect.bisect_right(range(1, LONGEST), limit, key=seconds)
        if number == 0:
            needed = format_duration((passed + seconds(1)) / TIME_FRACTION)
            run.warn(
                f"--minutes {minutes:g} is too short: the start and one {unit}, with evaluation, take about {needed}. "
                f"The run has one {unit}; for a longer one, start a new run with more --minutes."
            )
        run.save_extra(**{name: max(1, number)})
    length: int = run.extra[name]
    run.print(f"--minutes {minutes:g}: {format_count(length, unit)}")
    return length


def measure_update(update: Callable[[], object], world: World, *, compiles: bool, period: int = 1) -> float:
    """Return the mean seconds of an update, measured for 5 to 15 s in all processes together.

    Args:
        update: does an update, and waits until the device has done it.
        world: processes, which communicate in an update and do equally many. All get the seconds of the main process.
        compiles: the first updates are compiled, which does not count, however long it takes.
        period: updates after which the work of an update repeats; whole periods are measured if they are short enough.
    """
    start = time.perf_counter()
    for _ in range(WARMUP_UPDATES):  # compile and fill caches
        update()
        if world.broadcast_value(not compiles and time.perf_counter() - start > MEASURE_SECONDS):
            break
    start, updates, seconds = time.perf_counter(), 0, 0.0
    while world.broadcast_value(
        seconds < MEASURE_SECONDS or (seconds < MAX_SECONDS and (updates < MIN_UPDATES or updates % period > 0))
    ):
        update()
        updates += 1
        seconds = time.perf_counter() - start
    return world.broadcast_value(seconds / updates)
