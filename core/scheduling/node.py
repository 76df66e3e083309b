"""The part of the cluster's scheduler that runs on its nodes. It imports neither PyTorch nor Ray."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from zerokara.core.file_lock import is_locked
from zerokara.core.scheduling import guard
from zerokara.core.scheduling.job import Job, last_line

LOCK_SECONDS = 0.5  # interval between two looks at the lock of a run folder
# Runs `guard.main` without the packages that contain it, which take time to import.
GUARD = "import pathlib, runpy, sys; runpy.run_path(sys.argv[1])['main'](pathlib.Path(sys.argv[2]), sys.argv[3:])"
FOLDER_SECONDS = 10.0  # before a node that does not see the shared folder gives the job back


class Outcome(NamedTuple):
    """End of a job on a node."""

    code: int  # with a problem: 0 if the process was not started, otherwise 1
    last_line: str
    problem: str = ""  # why the node could not run the job, or lost it; the job must run elsewhere then


class Seen(NamedTuple):
    """View of the shared folder from a node."""

    host: str
    file: bool  # the driver's file
    lock: bool  # the driver's lock of this file


def look_at(mark: Path) -> Seen:
    """Look at the file that the driver holds locked in the shared folder."""
    return Seen(socket.gethostname(), mark.exists(), is_locked(mark))


class Runner:
    """Runs one job on a node. `stop` is called by another thread than `run`."""

    def __init__(self) -> None:
        self._guard: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def ping(self) -> None:
        """Do nothing. The call returns when the runner is on a node."""

    def run(self, job: Job, mark: Path) -> Outcome:
        """Run the job until its process has ended.

        Args:
            job: with absolute paths.
            mark: the driver's file in the shared folder.
        """
        if not mark.exists():
            self._stopped.wait(FOLDER_SECONDS)  # it is submitted again, perhaps to another node
            problem = f"{socket.gethostname()} does not see {mark.parent}, which all nodes must share"
            return Outcome(0, "", problem)
        while not job.can_start() and not self._stopped.is_set():
            time.sleep(LOCK_SECONDS)
        log_start = job.log.stat().st_size if job.log.exists() else 0
        with self._lock:
            if self._stopped.is_set():
                return Outcome(0, "", "stopped before it started")
            self._guard = subprocess.Popen(
                [sys.executable, "-c", GUARD, guard.__file__, str(job.log), sys.executable, *job.arguments_now()],
                cwd=job.working_folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **job.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            self._guard.wait()  # the process that was started; it has forked the guard
        assert self._guard.stdout is not None
        with self._guard.stdout as output:
            code = output.read().decode().strip()  # until the guard ends
        with self._lock:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard = None
        if not code:
            return Outcome(1, "", f"its process on {socket.gethostname()} was lost")
        return Outcome(int(code), last_line(job.log, log_start))

    def stop(self, *, kill: bool) -> None:
        """Ask the process to save and exit, or kill it. A job that has not started is not started any more."""
        with self._lock:
            self._stopped.set()
            if self._guard is not None and self._guard.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # the process has ended
                    self._guard.stdin.write(b"k" if kill else b"t")
