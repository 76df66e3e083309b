"""Processes on this machine.

They are started in sessions of their own, so that Ctrl-C, SIGTERM and SIGHUP reach only the scheduler: a run that
received the same Ctrl-C twice would exit without saving.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from zerokara.core.config import EXIT_STOPPED
from zerokara.core.programs import import_path
from zerokara.core.scheduling.job import Exit, Job, last_line


class LocalProcess:
    """A job on this machine. It is started by the first call of `poll` that finds its run folder free."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # size of the log before the process started, in bytes
        self._stopped = False

    @property
    def is_running(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.poll() is None

    def poll(self) -> Exit | None:
        """Start the process if it can start. Returns how it ended; None before."""
        if self._process is None and not self._stopped and self.job.can_start():
            self._process = self._start()
        if self._process is None:
            return Exit(EXIT_STOPPED, "") if self._stopped else None
        code = self._process.poll()
        return None if code is None else Exit(code, last_line(self.job.log, self._log_start))

    def _start(self) -> subprocess.Popen[bytes]:
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        with self.job.log.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                [sys.executable, *self.job.arguments_now()],
                cwd=self.job.working_folder,
                env={**os.environ, **import_path(), "PYTHONUNBUFFERED": "1", **self.job.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ask the process to save and exit. A job that has not started is not started any more."""
        asked, self._stopped = self._stopped, True
        if self._process is not None and not asked:  # a second SIGTERM would end a run that is saving
            # SIGTERM and not SIGINT: a process started in the background ignores SIGINT until it installs a handler.
            self._process.terminate()

    def kill(self) -> None:
        """Kill the process and its children, compilers for example."""
        self._stopped = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
