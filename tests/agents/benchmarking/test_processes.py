"""Test the process pool: limits, failures, signals."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from zerokara.agents.benchmarking.processes import Job, ProcessPool

# Creates a file when it has started, and exits in order when it receives SIGTERM.
SAVES_ON_SIGTERM = """
import pathlib, signal, sys, time
done = []
signal.signal(signal.SIGTERM, lambda *_: done.append(1))
pathlib.Path(sys.argv[1]).write_text("started")
while not done:
    time.sleep(0.01)
print("saved")
"""
IGNORES_SIGTERM = SAVES_ON_SIGTERM.replace("done.append(1)", "None")


class Recorder:
    """Record the results of jobs, and which jobs ran at the same time."""

    def __init__(self) -> None:
        self.results: dict[str, tuple[int, str]] = {}
        self.together: list[set[str]] = []

    def on_exit(self, job: Job, code: int, last_line: str) -> None:
        self.results[job.name] = (code, last_line)

    def on_poll(self, jobs: Sequence[Job]) -> None:
        self.together.append({job.name for job in jobs})


def job(folder: Path, name: str, code: str, *words: str, **memory: int) -> Job:
    return Job(name, (sys.executable, "-S", "-c", code, *words), folder / "logs" / f"{name}.log", memory)


def test_failed_job_does_not_stop_the_others(tmp_path: Path) -> None:
    recorder = Recorder()
    ProcessPool(2, {}, recorder.on_exit).run(
        [
            job(tmp_path, "good", "print('one'); print('two')"),
            job(tmp_path, "bad", "import sys; print('so far'); sys.exit('error: It went wrong.')"),
            job(tmp_path, "silent", ""),
        ]
    )
    assert recorder.results == {"good": (0, "two"), "bad": (1, "error: It went wrong."), "silent": (0, "")}
    assert (tmp_path / "logs" / "good.log").read_text() == "one\ntwo\n"


def test_log_is_appended_and_last_line_is_of_the_current_process(tmp_path: Path) -> None:
    recorder = Recorder()
    ProcessPool(1, {}, recorder.on_exit).run([job(tmp_path, "a", "print('first')")])
    ProcessPool(1, {}, recorder.on_exit).run([job(tmp_path, "a", "")])
    assert recorder.results == {"a": (0, "")}
    assert (tmp_path / "logs" / "a.log").read_text() == "first\n"


@pytest.mark.parametrize(
    ("max_processes", "free_memory", "memory", "expected"),
    [
        (2, {"main": 100}, {"main": 1}, 2),
        (4, {"main": 100}, {"main": 40}, 2),  # memory for two
        (4, {"main": 100}, {"main": 400}, 1),  # for none: a single job is always started
        (4, {"main": 100, "cuda:0": 50}, {"main": 1, "cuda:0": 30}, 1),
        (4, {"main": 100, "cuda:0": 50}, {"main": 1, "cuda:1": 30}, 4),
    ],
)
def test_number_of_processes_is_limited_by_count_and_memory(
    tmp_path: Path, max_processes: int, free_memory: dict[str, int], memory: dict[str, int], expected: int
) -> None:
    recorder = Recorder()
    jobs = [
        Job(str(i), (sys.executable, "-S", "-c", "import time; time.sleep(0.1)"), tmp_path / f"{i}.log", memory)
        for i in range(5)
    ]
    ProcessPool(max_processes, free_memory, recorder.on_exit, recorder.on_poll).run(jobs)
    assert len(recorder.results) == 5
    assert max(map(len, recorder.together)) == expected


def interrupted(tmp_path: Path, code: str, signals: Sequence[int]) -> tuple[ProcessPool, Recorder]:
    """Run three jobs, two at the same time; send each signal when two have started."""
    recorder = Recorder()
    jobs = [job(tmp_path, name, code, str(tmp_path / name)) for name in "abc"]
    left = list(signals)

    def on_poll(running: Sequence[Job]) -> None:
        recorder.on_poll(running)
        started = [(tmp_path / name).exists() and (tmp_path / name).read_text() == "started" for name in "ab"]
        if all(started) and left and len(running) == 2:
            os.kill(os.getpid(), left.pop(0))

    pool = ProcessPool(2, {}, recorder.on_exit, on_poll)
    pool.run(jobs)
    return pool, recorder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_lets_jobs_save_and_no_more_are_started(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    pool, recorder = interrupted(tmp_path, SAVES_ON_SIGTERM, [number])
    assert recorder.results == {"a": (0, "saved"), "b": (0, "saved")}
    assert pool.stopped == number.name
    assert not (tmp_path / "c").exists()
    assert signal.getsignal(number) == before


def test_second_signal_kills_all_jobs(tmp_path: Path) -> None:
    start = time.monotonic()
    _, recorder = interrupted(tmp_path, IGNORES_SIGTERM, [signal.SIGINT, signal.SIGINT])
    assert {code for code, _ in recorder.results.values()} == {-signal.SIGKILL}
    assert time.monotonic() - start < 60


def test_no_process_survives_an_exception_in_a_callback(tmp_path: Path) -> None:
    def on_poll(jobs: Sequence[Job]) -> None:
        if (tmp_path / "a").exists():
            raise RuntimeError("in the callback")

    pool = ProcessPool(1, {}, Recorder().on_exit, on_poll)
    with pytest.raises(RuntimeError, match="in the callback"):
        pool.run([job(tmp_path, "a", IGNORES_SIGTERM, str(tmp_path / "a"))])
    (running,) = pool._running
    assert running.process.wait(timeout=30) == -signal.SIGKILL
    running.log.close()
