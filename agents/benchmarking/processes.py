"""Many runs as processes of their own, as many at once as there is room for.

Ctrl-C, SIGTERM and SIGHUP come here, not to the runs, which are in sessions of their own: a run that got the same
Ctrl-C twice would leave without saving. They are asked to stop once, save, and are waited for; a second signal kills
them.
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

LOOK_SECONDS = 0.2  # between two looks at the processes


@dataclass(frozen=True)
class Job:
    """A process that is to run."""

    name: str
    command: tuple[str, ...]
    log: Path  # where all that it says is appended
    needs: Mapping[str, int]  # bytes of "main" memory and of devices


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: BinaryIO
    began: int  # length of the log before


class Fleet:
    """Runs jobs in their order.

    Args:
        at_once: processes at the most.
        room: bytes by name; jobs that run together need no more. One alone always runs: it says itself what it lacks.
        ended: told of every job that ended: the job, its exit code, and the last line that it wrote.
        watch: called again and again with the jobs that run.
    """

    stopped: str | None = None  # the signal's name, once one came

    def __init__(
        self,
        at_once: int,
        room: Mapping[str, int],
        ended: Callable[[Job, int, str], None],
        watch: Callable[[Sequence[Job]], None] = lambda jobs: None,
    ) -> None:
        self.at_once, self.room, self.ended, self.watch = at_once, room, ended, watch
        self._running: list[_Running] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """All of them, or as far as it comes until a signal; when this returns, none is running."""
        waiting = deque(jobs)
        with self._signals():
            try:
                while self._running or (waiting and not self.stopped):
                    while waiting and not self.stopped and self._fits(waiting[0]):
                        self._start(waiting.popleft())
                    self.watch([running.job for running in self._running])
                    time.sleep(LOOK_SECONDS)
                    self._look()
            finally:
                self._ask(signal.SIGKILL)  # only where something went wrong here is there one left

    def _fits(self, job: Job) -> bool:
        if not self._running:
            return True
        together = [running.job for running in self._running] + [job]
        return len(together) <= self.at_once and all(
            sum(one.needs.get(name, 0) for one in together) <= free for name, free in self.room.items()
        )

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = job.log.open("ab")
        began = log.tell()  # before the process starts: it shares the position in the file
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._running.append(_Running(job, process, log, began))
        if self.stopped:  # the signal came while it was being started
            process.terminate()

    def _look(self) -> None:
        for running in list(self._running):
            code = running.process.poll()
            if code is None:
                continue
            self._running.remove(running)
            running.log.close()
            said = running.job.log.read_bytes()[running.began :].decode(errors="replace").strip().splitlines()
            self.ended(running.job, code, said[-1] if said else "")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            # Not SIGINT, which a process that was started in the background ignores until it says otherwise.
            self._ask(signal.SIGKILL if self.stopped else signal.SIGTERM)
            self.stopped = signal.Signals(number).name

        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: signal.Signals) -> None:
        for running in self._running:
            if number == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.process.pid, number)  # with the compilers that it may have started
            else:
                running.process.send_signal(number)
