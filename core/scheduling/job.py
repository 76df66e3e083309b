"""A process to run, and the interface of a running one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from zerokara.core.file_lock import is_locked


@dataclass(frozen=True)
class Job:
    """Process of the Python interpreter, with its files and its memory.

    A job with a run folder starts when no process holds the lock of the folder: a run may survive a killed scheduler,
    or belong to another one. If the folder holds a run then, the process gets `resume_arguments`.
    """

    name: str
    arguments: tuple[str, ...]  # of the interpreter
    log: Path  # stdout and stderr are appended
    memory: Mapping[str, int] = field(default_factory=dict)  # bytes of "main" memory and of GPUs, by device name
    run_folder: Path | None = None
    resume_arguments: tuple[str, ...] = ()
    working_folder: Path = Path()
    environment: Mapping[str, str] = field(default_factory=dict)  # in addition to that of the scheduler or node

    def can_start(self) -> bool:
        """Return False if another process is writing the run folder."""
        return self.run_folder is None or not is_locked(self.run_folder / "lock")

    def arguments_now(self) -> tuple[str, ...]:
        """Return the arguments that start the run or, if its folder already holds it, resume it."""
        resumes = self.run_folder is not None and (self.run_folder / "config.json").exists()
        return self.resume_arguments if resumes else self.arguments


class Exit(NamedTuple):
    """End of a process."""

    code: int  # negative: number of the signal that killed it
    last_line: str  # of its output since it was started, or the reason why there is none


class RunningJob(Protocol):
    """A job that was given to a machine or cluster, and that starts as soon as possible."""

    job: Job

    @property
    def is_running(self) -> bool:
        """True while its process runs, False while it waits to be started."""

    def poll(self) -> Exit | None:
        """Return how the process ended, None before. Must be called regularly: the job is started here, too."""

    def stop(self) -> None:
        """Ask the process to save and exit. A job that has not started is not started any more."""

    def kill(self) -> None:
        """Kill the process, and those that it has started."""


Launch = Callable[[Job], RunningJob]


def last_line(log: Path, start: int) -> str:
    """Return the last line of a log that is not empty, from byte `start` on; "" if there is none."""
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""
