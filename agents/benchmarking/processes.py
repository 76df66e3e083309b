"""Process pool for training runs, limited by number and by memory.

The runs are started in sessions of their own, so that Ctrl-C, SIGTERM and SIGHUP reach only this process: a run that
received the same Ctrl-C twice would exit without saving. The first signal asks all runs to stop; they save, and the
pool waits for them. A second signal kills them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from zerokara.core.config import UserError

POLL_SECONDS = 0.2  # interval between two polls of the processes


@dataclass(frozen=True)
class Job:
    """Command of a process, its log file and its memory."""

    name: str
    command: tuple[str, ...]
    log: Path  # stdout and stderr are appended
    memory: Mapping[str, int]  # bytes of "main" memory and of GPUs, by device name


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: BinaryIO
    log_start: int  # size of the log before the process started, in bytes


class ProcessPool:
    """Run jobs in order, several at the same time.

    Args:
        max_processes: maximum number of processes at the same time.
        free_memory: bytes by name; jobs that run together need no more. A single job is always started, and reports by
            itself if its memory does not suffice.
        on_exit: called with each job that has ended, its exit code and the last line of its output.
        on_poll: called at every poll with the running jobs.

    Raises:
        UserError: the system is Windows.
    """

    stopped: str | None = None  # name of the signal, after one was received

    def __init__(
        self,
        max_processes: int,
        free_memory: Mapping[str, int],
        on_exit: Callable[[Job, int, str], None],
        on_poll: Callable[[Sequence[Job]], None] = lambda jobs: None,
    ) -> None:
        if not hasattr(signal, "SIGHUP"):
            raise UserError("agents.benchmark needs Linux or macOS, whose signals stop its runs.")
        self.max_processes, self.free_memory = max_processes, free_memory
        self.on_exit, self.on_poll = on_exit, on_poll
        self._running: list[_Running] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs, or until a signal is received. No process is left running when this returns."""
        waiting = deque(jobs)
        with self._signals():
            try:
                while self._running or (waiting and not self.stopped):
                    while waiting and not self.stopped and self._fits(waiting[0]):
                        self._start(waiting.popleft())
                    self.on_poll([running.job for running in self._running])
                    time.sleep(POLL_SECONDS)
                    self._poll()
            finally:
                self._send(signal.SIGKILL)  # processes are left only if an exception was raised here

    def _fits(self, job: Job) -> bool:
        """Return True if a job can start beside the running ones."""
        if not self._running:
            return True
        together = [running.job for running in self._running] + [job]
        return len(together) <= self.max_processes and all(
            sum(other.memory.get(name, 0) for other in together) <= free for name, free in self.free_memory.items()
        )

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = job.log.open("ab")
        log_start = log.tell()  # before the process starts, because it shares the file position
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._running.append(_Running(job, process, log, log_start))
        if self.stopped:  # a signal was received while the process was being started
            process.terminate()

    def _poll(self) -> None:
        """Report the processes that have ended."""
        for running in list(self._running):
            code = running.process.poll()
            if code is None:
                continue
            self._running.remove(running)
            running.log.close()
            lines = running.job.log.read_bytes()[running.log_start :].decode(errors="replace").strip().splitlines()
            self.on_exit(running.job, code, lines[-1] if lines else "")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def handle(number: int, frame: FrameType | None) -> None:
            # SIGTERM and not SIGINT: a process started in the background ignores SIGINT until it installs a handler.
            self._send(signal.SIGKILL if self.stopped else signal.SIGTERM)
            self.stopped = signal.Signals(number).name

        before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _send(self, number: signal.Signals) -> None:
        for running in self._running:
            if number == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.process.pid, number)  # includes compilers that the process may have started
            else:
                running.process.send_signal(number)
