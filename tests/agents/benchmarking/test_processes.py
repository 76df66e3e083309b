"""Many processes: how many at once, what fails, what is stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from zerokara.agents.benchmarking.processes import Fleet, Job

# Writes what it does into a file, and leaves in good order when it is asked to.
POLITE = """
import pathlib, signal, sys, time
done = []
signal.signal(signal.SIGTERM, lambda *_: done.append(1))
pathlib.Path(sys.argv[1]).write_text("began")
while not done:
    time.sleep(0.01)
print("saved")
"""
DEAF = POLITE.replace("done.append(1)", "None")


class Recorder:
    """Remembers how jobs ended, and how many ran at once."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[int, str]] = {}
        self.together: list[set[str]] = []

    def ended(self, job: Job, code: int, said: str) -> None:
        self.ends[job.name] = (code, said)

    def watch(self, jobs: Sequence[Job]) -> None:
        self.together.append({job.name for job in jobs})


def job(folder: Path, name: str, code: str, *words: str, **needs: int) -> Job:
    return Job(name, (sys.executable, "-S", "-c", code, *words), folder / "logs" / f"{name}.log", needs)


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    seen = Recorder()
    Fleet(2, {}, seen.ended).run(
        [
            job(tmp_path, "good", "print('one'); print('two')"),
            job(tmp_path, "bad", "import sys; print('so far'); sys.exit('error: It went wrong.')"),
            job(tmp_path, "silent", ""),
        ]
    )
    assert seen.ends == {"good": (0, "two"), "bad": (1, "error: It went wrong."), "silent": (0, "")}
    assert (tmp_path / "logs" / "good.log").read_text() == "one\ntwo\n"


def test_a_log_goes_on_and_its_last_line_is_this_processs_own(tmp_path: Path) -> None:
    seen = Recorder()
    Fleet(1, {}, seen.ended).run([job(tmp_path, "a", "print('first')")])
    Fleet(1, {}, seen.ended).run([job(tmp_path, "a", "")])
    assert seen.ends == {"a": (0, "")}
    assert (tmp_path / "logs" / "a.log").read_text() == "first\n"


@pytest.mark.parametrize(
    ("at_once", "room", "needs", "most"),
    [
        (2, {"main": 100}, {"main": 1}, 2),
        (4, {"main": 100}, {"main": 40}, 2),  # memory for two
        (4, {"main": 100}, {"main": 400}, 1),  # for none: one alone says so itself
        (4, {"main": 100, "cuda:0": 50}, {"main": 1, "cuda:0": 30}, 1),
        (4, {"main": 100, "cuda:0": 50}, {"main": 1, "cuda:1": 30}, 4),
    ],
)
def test_as_many_run_at_once_as_there_is_room_for(
    tmp_path: Path, at_once: int, room: dict[str, int], needs: dict[str, int], most: int
) -> None:
    seen = Recorder()
    jobs = [
        Job(str(i), (sys.executable, "-S", "-c", "import time; time.sleep(0.1)"), tmp_path / f"{i}.log", needs)
        for i in range(5)
    ]
    Fleet(at_once, room, seen.ended, seen.watch).run(jobs)
    assert len(seen.ends) == 5
    assert max(map(len, seen.together)) == most


def interrupted(tmp_path: Path, code: str, signals: Sequence[int]) -> tuple[Fleet, Recorder]:
    """Two jobs of three at once; each signal is sent once both have begun."""
    seen = Recorder()
    jobs = [job(tmp_path, name, code, str(tmp_path / name)) for name in "abc"]
    left = list(signals)

    def watch(running: Sequence[Job]) -> None:
        seen.watch(running)
        began = [(tmp_path / name).exists() and (tmp_path / name).read_text() == "began" for name in "ab"]
        if all(began) and left and len(running) == 2:
            os.kill(os.getpid(), left.pop(0))

    fleet = Fleet(2, {}, seen.ended, watch)
    fleet.run(jobs)
    return fleet, seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_them_save_and_starts_no_more(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    fleet, seen = interrupted(tmp_path, POLITE, [number])
    assert seen.ends == {"a": (0, "saved"), "b": (0, "saved")}
    assert fleet.stopped == number.name
    assert not (tmp_path / "c").exists()
    assert signal.getsignal(number) == before


def test_a_second_signal_kills(tmp_path: Path) -> None:
    began = time.monotonic()
    _, seen = interrupted(tmp_path, DEAF, [signal.SIGINT, signal.SIGINT])
    assert {code for code, _ in seen.ends.values()} == {-signal.SIGKILL}
    assert time.monotonic() - began < 60


def test_no_process_outlives_a_mistake_of_ours(tmp_path: Path) -> None:
    def watch(jobs: Sequence[Job]) -> None:
        if (tmp_path / "a").exists():
            raise RuntimeError("in the watch")

    fleet = Fleet(1, {}, Recorder().ended, watch)
    with pytest.raises(RuntimeError, match="in the watch"):
        fleet.run([job(tmp_path, "a", DEAF, str(tmp_path / "a"))])
    (running,) = fleet._running
    assert running.process.wait(timeout=30) == -signal.SIGKILL
    running.log.close()
