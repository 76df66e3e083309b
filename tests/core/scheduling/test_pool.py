"""Test the process pool on this machine: limits, failures, signals, run folders that another process writes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from zerokara.core.config import EXIT_STOPPED
from zerokara.core.file_lock import lock
from zerokara.core.scheduling.job import Job
from zerokara.core.scheduling.local import LocalProcess
from zerokara.core.scheduling.pool import ProcessPool
from zerokara.core.scheduling.resources import divide_cores

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
    return Job(name, ("-S", "-c", code, *words), folder / "logs" / f"{name}.log", memory)


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
    jobs = [Job(str(i), ("-S", "-c", "import time; time.sleep(0.1)"), tmp_path / f"{i}.log", memory) for i in range(5)]
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
    deadline = time.monotonic() + 30
    while running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    end = running.poll()
    assert end is not None
    assert end.code == -signal.SIGKILL


def test_a_run_folder_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    """Start a job whose run survived a killed pool: it resumes when the run has ended, and does not run beside it."""
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = ("-S", "-c", "print('started')")
    resumed = ("-S", "-c", "print('resumed')")
    waiting = Job("a", arguments, tmp_path / "a.log", run_folder=folder, resume_arguments=resumed)
    ended: dict[str, tuple[int, str]] = {}
    with (folder / "lock").open("a") as file:
        assert lock(file)

        def on_poll(running: Sequence[Job]) -> None:
            assert not running or file.closed, "the folder is still locked"
            if polls:
                polls.pop()
            elif not file.closed:
                (folder / "config.json").touch()
                file.close()

        polls = [1, 1]
        ProcessPool(1, {}, lambda job, code, line: ended.update({job.name: (code, line)}), on_poll).run([waiting])
    assert ended == {"a": (0, "resumed")}


def test_the_folder_decides_when_the_process_starts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    waiting = Job("a", ("new",), tmp_path / "a.log", run_folder=folder, resume_arguments=("--resume",))
    assert waiting.arguments_now() == ("new",)
    folder.mkdir()
    (folder / "lock").touch()  # a run that was killed before it wrote config.json
    assert waiting.can_start()
    assert waiting.arguments_now() == ("new",)
    (folder / "config.json").touch()
    assert waiting.arguments_now() == ("--resume",)


def test_a_job_that_is_stopped_before_its_start_never_starts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / "lock").open("a") as file:
        assert lock(file)
        process = LocalProcess(Job("a", ("-S", "-c", ""), tmp_path / "a.log", run_folder=folder))
        assert process.poll() is None
        process.stop()
    end = process.poll()
    assert end is not None
    assert (end.code, (tmp_path / "a.log").exists()) == (EXIT_STOPPED, False)


@pytest.mark.parametrize(
    ("cores", "runs", "jobs", "threads", "expected"),
    [
        (2, 6, 0, 0, (2, 1)),
        (16, 6, 0, 0, (6, 2)),  # fewer runs than cores
        (2, 1, 0, 0, (1, 2)),
        (8, 6, 2, 0, (2, 4)),
        (8, 6, 0, 4, (2, 4)),
        (2, 6, 0, 4, (1, 4)),
        (2, 6, 5, 0, (5, 1)),  # --jobs may exceed the number of cores
    ],
)
def test_cores_are_divided(cores: int, runs: int, jobs: int, threads: int, expected: tuple[int, int]) -> None:
    assert divide_cores(cores, runs, jobs, threads) == expected
