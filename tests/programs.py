"""Functions that tests of whole programs share: start a process, read its metrics, and test damaged checkpoints."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fork_server import BLANK_FIGURES
from zerokara.core import checkpoint
from zerokara.core.config import UserError

REPO = Path(__file__).parents[1]
STARTED: list[Process] = []  # in the current test


class Process:
    """Process that was forked from a server of tests/fork_server.py, with the interface of subprocess.Popen."""

    def __init__(self, libraries: tuple[str, ...], arguments: Sequence[str], pid: int, out: Path, err: Path) -> None:
        self.libraries, self.arguments, self.pid, self.out, self.err = libraries, arguments, pid, out, err
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while the process is running."""
        if self.returncode is None:
            self.returncode = ask(*self.libraries, wait=self.pid)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process if it is running."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait until the process has ended; return stdout and stderr."""
        self.sleep(timeout)
        while self.poll() is None:  # the file descriptor of a process is ready a little before waitpid is
            if not self.sleep(0.001):
                raise TimeoutError(f"process {self.pid} is still running after {timeout} s: {self.err.read_text()}")
        return self.out.read_text(), self.err.read_text()

    def wait(self) -> int:
        """Wait until the process has ended; return its exit status."""
        self.communicate()
        assert self.returncode is not None
        return self.returncode

    def sleep(self, seconds: float) -> bool:
        """Sleep until the process has ended, at most this long, without asking the server; return whether it has."""
        if self.returncode is not None:
            return True
        descriptor = os.pidfd_open(self.pid)
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)


@functools.cache
def server(*libraries: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a server of tests/fork_server.py; return it and a folder for the output of processes."""
    folder = Path(tempfile.mkdtemp(prefix="zerokara-tests-"))
    atexit.register(shutil.rmtree, folder)
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("fork_server.py"), folder / "compiled", *libraries],
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "error"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(process.communicate)
    return process, folder


def ask(*libraries: str, **request: Any) -> Any:
    """Send a request to a server and return its answer."""
    process, _ = server(*libraries)
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(request), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def start(folder: Path, *arguments: str, **environment: str) -> Process:
    """Start Python in a folder with arguments such as "-m", "agents.dqn", "--resume"; warnings are errors."""
    return fork((), folder, arguments, environment)


def start_with_torch(folder: Path, *arguments: str) -> Process:
    """Start Python as `start` does, in a process that has imported PyTorch and no other library."""
    return fork(("torch",), folder, arguments, {})


def fork(libraries: tuple[str, ...], folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Fork a process from the server that has imported these libraries, by default all of them."""
    _, outputs = server(*libraries)
    number = len(list(outputs.glob("*.out")))
    out, err = outputs / f"{number}.out", outputs / f"{number}.err"
    out.touch()
    err.touch()  # a process that is killed at once has not created it
    complete = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "error", **environment}
    request: dict[str, Any] = {"folder": str(folder), "arguments": arguments, "environment": complete}
    process = Process(libraries, arguments, ask(*libraries, **request, out=str(out), err=str(err)), out, err)
    STARTED.append(process)
    return process


def stderr_of_started() -> list[tuple[str, str]]:
    """Return a title and the end of stderr of each process that the current test has started; failures show them."""
    return [
        (f"stderr of {' '.join(each.arguments)!r:.80}, exit status {each.returncode}", each.err.read_text()[-4000:])
        for each in STARTED
    ]


def start_processes(folder: Path, number: int, *arguments: str, **environment: str) -> list[Process]:
    """Start Python in several processes that train together, with the environment variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(number)}
    address |= {BLANK_FIGURES: "1", **environment}
    return [start(folder, *arguments, **address, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(number)]


def run_processes(folder: Path, number: int, *arguments: str, status: int | None = 0) -> tuple[str, str]:
    """Run Python in several processes that train together; return the stdout of the first and the stderr of all.

    Args:
        folder: working directory.
        number: number of processes.
        arguments: of each process.
        status: exit status that every process must have; None: that of a run that a signal stopped, which is the same
            in every process.
    """
    processes = start_processes(folder, number, *arguments)
    outputs = [process.communicate(timeout=200) for process in processes]
    errors = "".join(err for _, err in outputs)
    expected = processes[0].returncode if status is None else status
    assert [process.returncode for process in processes] == [expected] * number, errors
    assert [out for out, _ in outputs[1:]] == [""] * (number - 1), "only the first process prints"
    return outputs[0][0], errors


def run_interpreter(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder as from a shell, in an interpreter of its own; warnings are errors."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def error_message(folder: Path, *arguments: str) -> str:
    """Return the error of a program that must reject its arguments: one line on stderr, and exit status 2."""
    process = start(folder, *arguments)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    return err


def wait_until(process: Process, condition: Callable[[], bool], seconds: float = 100) -> None:
    """Wait until the condition holds, the process has ended, or the time is up; the caller checks which of them."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline and not condition():
        process.sleep(0.005)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl without `speed/` values, which depend on the wall clock; drop empty lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]
    return [row for row in rows if len(row) > 1]


def last_checkpoint(run: Path, kind: str) -> dict[str, Any]:
    """Return the content of the checkpoint of a run of this kind, which callers must not change; {} without one."""
    path = run / "checkpoint-0.pt"
    if not path.exists():
        return {}
    status = path.stat()
    return read_checkpoint(path, (status.st_ino, status.st_mtime_ns), kind)


@functools.lru_cache(maxsize=1)
def read_checkpoint(path: Path, version: tuple[int, int], kind: str) -> dict[str, Any]:
    """Read a version of a file once: tests ask often for the same one while they wait for the next."""
    return checkpoint.load(path, kind)


def num_updates(run: Path, kind: str) -> int:
    """Return the number of updates in the checkpoint of a run of this kind, or -1 without a checkpoint."""
    return int(last_checkpoint(run, kind).get("updates", -1))


def signal_at(
    process: Process, run: Path, kind: str, signal_number: signal.Signals, update: int
) -> tuple[str, str, int]:
    """Send a signal once the run's checkpoint is at `update`; return stdout, stderr and the exit status."""
    wait_until(process, lambda: num_updates(run, kind) >= update, seconds=200)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=300)
    assert process.returncode is not None
    return out, err, process.returncode


def unstarted_run(uninterrupted: Path, folder: Path, name: str) -> Path:
    """Create a run folder as after a kill before the first checkpoint, with the compute settings of another run.

    The settings are copied because the fastest memory layout is measured, and two runs may choose differently.
    """
    run = folder / "runs" / name
    run.mkdir(parents=True)
    content = json.loads((uninterrupted / "config.json").read_text())
    content["config"]["name"] = name
    (run / "config.json").write_text(json.dumps(content))
    return run


def check_damage_reported(checkpoint: Path, whole: bytes, resume: Callable[[], None]) -> None:
    """Check that a truncated, empty or corrupted checkpoint is reported by its file name and is not changed."""
    for damage in (whole[: len(whole) // 2], b"", whole[:3000] + bytes(40) + whole[3040:]):
        checkpoint.write_bytes(damage)
        with pytest.raises(UserError, match=checkpoint.name):
            resume()
        assert checkpoint.read_bytes() == damage
