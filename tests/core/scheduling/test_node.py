"""Test the part of the cluster's scheduler that runs on its nodes: ends, signals, a killed worker, missing folders."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from zerokara.core.file_lock import lock
from zerokara.core.scheduling import node
from zerokara.core.scheduling.job import Job
from zerokara.core.scheduling.node import Outcome, Runner, look_at

REPO = Path(__file__).parents[3]
# Writes its process id when it has started, and exits in order when it receives SIGTERM.
SAVES_ON_SIGTERM = """
import os, pathlib, signal, sys, time
done = []
signal.signal(signal.SIGTERM, lambda *_: done.append(1))
path = pathlib.Path(sys.argv[1])
path.with_suffix(".new").write_text(str(os.getpid()))
path.with_suffix(".new").rename(path)
while not done:
    time.sleep(0.01)
time.sleep(0.2)
path.with_suffix(".saved").touch()
print("saved")
"""
IGNORES_SIGTERM = SAVES_ON_SIGTERM.replace("done.append(1)", "None")


def job(folder: Path, code: str, *words: str, run_folder: Path | None = None) -> Job:
    arguments = ("-S", "-c", code, *words)
    return Job("a", arguments, folder / "logs" / "a.log", run_folder=run_folder, working_folder=folder)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def run_in_thread(runner: Runner, one: Job, mark: Path) -> tuple[threading.Thread, list[Outcome]]:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(one, mark)))
    thread.start()
    return thread, outcomes


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('one'); print('two')", (0, "two")),
        ("import sys; sys.exit('error: It went wrong.')", (1, "error: It went wrong.")),
        ("import os; os.kill(os.getpid(), 9)", (-9, "")),
        ("import os; print(os.getcwd())", (0, "{folder}")),
    ],
)
def test_end_of_a_process(tmp_path: Path, code: str, expected: tuple[int, str]) -> None:
    outcome = Runner().run(job(tmp_path, code), tmp_path)
    assert outcome == (expected[0], expected[1].format(folder=tmp_path), "")


def test_last_line_is_of_the_current_process(tmp_path: Path) -> None:
    assert Runner().run(job(tmp_path, "print('first')"), tmp_path).last_line == "first"
    assert Runner().run(job(tmp_path, ""), tmp_path) == (0, "", "")
    assert (tmp_path / "logs" / "a.log").read_text() == "first\n"


@pytest.mark.parametrize(
    ("code", "kill", "expected"),
    [(SAVES_ON_SIGTERM, False, (0, "saved", "")), (IGNORES_SIGTERM, True, (-signal.SIGKILL, "", ""))],
)
def test_stop_lets_the_process_save_and_kill_does_not(tmp_path: Path, code: str, kill: bool, expected: Outcome) -> None:
    runner = Runner()
    thread, outcomes = run_in_thread(runner, job(tmp_path, code, str(tmp_path / "pid")), tmp_path)
    wait_for((tmp_path / "pid").exists)
    runner.stop(kill=kill)
    thread.join(60)
    assert outcomes == [expected]


def test_a_killed_worker_lets_the_process_save(tmp_path: Path) -> None:
    """Ray ends a worker when the driver dies. The process of the run must neither be lost nor go on unseen."""
    one = job(tmp_path, SAVES_ON_SIGTERM, str(tmp_path / "pid"))
    (tmp_path / "job").write_bytes(pickle.dumps(one))
    code = (
        "import pathlib, pickle, sys\n"
        "from zerokara.core.scheduling.node import Runner\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "Runner().run(pickle.loads((folder / 'job').read_bytes()), folder)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": str(REPO)})
    wait_for((tmp_path / "pid").exists)
    process = int((tmp_path / "pid").read_text())
    assert psutil.Process(worker.pid).children() == [], "Ray kills the children of a worker that ends"
    worker.kill()
    worker.wait()
    wait_for((tmp_path / "pid.saved").exists)
    wait_for(lambda: not Path(f"/proc/{process}").exists())
    assert (tmp_path / "logs" / "a.log").read_text() == "saved\n"


def test_nodes_import_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = "import sys, zerokara.core.scheduling.node\nprint({'torch', 'ray', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


def test_a_node_without_the_shared_folder_gives_the_job_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "FOLDER_SECONDS", 0.0)
    outcome = Runner().run(job(tmp_path, "print('ran')"), tmp_path / "elsewhere" / "mark")
    assert f"does not see {tmp_path / 'elsewhere'}, which all nodes must share" in outcome.problem
    assert not (tmp_path / "logs").exists()


def test_a_locked_run_folder_is_waited_for_and_the_wait_can_be_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for stops in (True, False):
        runner = Runner()
        with (folder / "lock").open("a") as file:
            assert lock(file)
            waiting = job(tmp_path, "print('ran')", run_folder=folder)
            thread, outcomes = run_in_thread(runner, waiting, tmp_path)
            time.sleep(0.1)
            assert not (tmp_path / "logs").exists()
            if stops:
                runner.stop(kill=False)
                thread.join(60)
        thread.join(60)
        assert outcomes == [Outcome(0, "", "stopped before it started") if stops else Outcome(0, "ran", "")]


def test_what_a_node_sees_of_the_shared_folder(tmp_path: Path) -> None:
    assert look_at(tmp_path / "mark")[1:] == (False, False)
    with (tmp_path / "mark").open("a") as file:
        assert look_at(tmp_path / "mark")[1:] == (True, False), "on a file system whose locks do not reach other nodes"
        assert lock(file)
        assert look_at(tmp_path / "mark")[1:] == (True, True)
