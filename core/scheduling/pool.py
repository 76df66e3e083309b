"""Pool of processes, limited by number and by memory, with orderly stop by signals.

The first signal asks all processes to stop; they save, and the pool waits for them. A second signal kills them.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from zerokara.core.config import UserError
from zerokara.core.programs import program
from zerokara.core.scheduling.job import Job, Launch, RunningJob
from zerokara.core.scheduling.local import LocalProcess

POLL_SECONDS = 0.2  # interval between two polls of the processes


class ProcessPool:
    """Run jobs in order, several at the same time.

    Args:
        max_processes: maximum number of processes at the same time.
        free_memory: bytes by name; jobs that run together need no more. A single job is always started, and reports by
            itself if its memory does not suffice.
        on_exit: called with each job that has ended, its exit code and the last line of its output.
        on_poll: called at every poll with the running jobs.
        launch: gives a job to this machine or to a cluster.

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
        launch: Launch = LocalProcess,
    ) -> None:
        if not hasattr(signal, "SIGHUP"):
            raise UserError(f"{program()} needs Linux or macOS, whose signals stop its runs.")
        self.max_processes, self.free_memory = max_processes, free_memory
        self.on_exit, self.on_poll, self.launch = on_exit, on_poll, launch
        self._running: list[RunningJob] = []
        self._signals_received = self._signals_sent = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs, or until a signal is received. No process is left running when this returns."""
        waiting = deque(jobs)
        with self._signals():
            try:
                while self._running or (waiting and not self.stopped):
                    while waiting and not self.stopped and self._fits(waiting[0]):
                        self._running.append(self.launch(waiting.popleft()))
                        self._running[-1].poll()
                    self._send_signals()
                    self.on_poll([running.job for running in self._running if running.is_running])
                    time.sleep(POLL_SECONDS)
                    self._poll()
            finally:
                for running in self._running:  # some are left only if an exception was raised here
                    running.kill()

    def _fits(self, job: Job) -> bool:
        """Return True if a job can start beside the running ones."""
        if not self._running:
            return True
        together = [running.job for running in self._running] + [job]
        return len(together) <= self.max_processes and all(
            sum(other.memory.get(name, 0) for other in together) <= free for name, free in self.free_memory.items()
        )

    def _poll(self) -> None:
        """Report the processes that have ended."""
        for running in list(self._running):
            if (end := running.poll()) is not None:
                self._running.remove(running)
                self.on_exit(running.job, end.code, end.last_line)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self._signals_received += 1
            self.stopped = signal.Signals(number).name

        before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _send_signals(self) -> None:
        """Ask all processes to stop after the first signal, kill them after the second one.

        Not done in the signal handler, which may interrupt a call of the cluster's client.
        """
        received, sent = self._signals_received, self._signals_sent
        self._signals_sent = received
        for running in self._running:
            if received > max(sent, 1):
                running.kill()
            elif received > sent:
                running.stop()
