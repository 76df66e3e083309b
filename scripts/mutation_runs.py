"""Tests of mutants in copies of the repository, each in a fork of this process.

The process has imported PyTorch and other large packages, but nothing of zerokara. So a fork starts at once and imports
the code of its mutant.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.mutation_sites import Mutant

NOT_RUN = (4, 5)  # exit statuses of pytest: wrong arguments (a missing file), and no tests

PRELOADED = ("pytest", "hypothesis", "numpy", "torch", "torch._dynamo", "gymnasium", "cv2", "scipy.stats", "av")
# One thread each, because a fork of a process with threads may hang.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MAX_FILE_BYTES = 1 << 31  # a mutant must not fill the disk


class Outcome(NamedTuple):
    """Result of the tests of one file."""

    status: int  # exit status of pytest; negative: the signal that ended it
    cpu_seconds: float
    failed: str  # the first failed test; without one, the end of the output


class Job(NamedTuple):
    """Tests that run, or ran."""

    name: str
    copy: Path  # the copy of the repository
    mutant: Mutant | None


class Pool:
    """Runs tests in copies of the repository, as many at a time as there are copies.

    Args:
        root: the repository.
        folder: folder for the copies.
        workers: number of copies.
    """

    def __init__(self, root: Path, folder: Path, workers: int) -> None:
        os.environ |= dict.fromkeys(THREADS, "1") | {"MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True  # the bytecode of a mutant must not be read by another
        for name in PRELOADED:
            importlib.import_module(name)
        self.root = root
        self.free = [folder / f"copy{i}" for i in range(workers)]
        self.running: dict[int, Job] = {}  # by process
        for copy in self.free:
            _copy_repository(root, copy)

    def start(self, name: str, tests: Sequence[str], cpu_limit: int, mutant: Mutant | None = None) -> None:
        """Start tests in a free copy, with the code of a mutant or, without one, with the original code.

        Args:
            name: name of the job.
            tests: test files.
            cpu_limit: seconds of CPU time after which the tests are ended.
            mutant: change of the code.
        """
        job = Job(name, self.free.pop(), mutant)
        if mutant is not None:
            path = job.copy / mutant.file
            path.write_bytes(mutant.apply(path.read_bytes()))
            os.utime(path, (0, 0))  # not the time of the bytecode, which is that of the original code
        pid = os.fork()
        if pid == 0:
            try:
                _run_tests(self.root, job.copy, tests, cpu_limit)
            except BaseException:  # noqa: BLE001  (a fork must not return)
                traceback.print_exc()
            os._exit(70)
        self.running[pid] = job

    def wait(self) -> tuple[Job, Outcome]:
        """Wait until a job has ended. Its copy then has the original code again.

        Raises:
            RuntimeError: pytest found no tests to run, which says nothing about the mutant.
        """
        pid, status, usage = os.wait4(-1, 0)
        job = self.running.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # programs that the tests have started
        if job.mutant is not None:
            shutil.copy2(self.root / job.mutant.file, job.copy / job.mutant.file)
        self.free.append(job.copy)
        output = _log(job.copy).read_text(encoding="utf-8", errors="replace")
        code = os.waitstatus_to_exitcode(status)
        if code in NOT_RUN:
            raise RuntimeError(f"the tests of a mutant could not be run: {output[-300:]}")
        named = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        failed = "" if code == 0 else named[1] if named else output[-300:]
        return job, Outcome(code, round(usage.ru_utime + usage.ru_stime, 1), failed)


def _copy_repository(root: Path, folder: Path) -> None:
    """Copy the files of a repository that git does not ignore, and compile them once for all mutants."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # a deleted file is listed too
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    compileall.compile_dir(folder, quiet=2)


def _log(copy: Path) -> Path:
    return copy.with_suffix(".log")


def _run_tests(root: Path, copy: Path, tests: Sequence[str], cpu_limit: int) -> None:
    """Run tests in this process, which is a fork, and end it with their exit status.

    The limit is one of CPU time, which does not depend on the load of the machine. Each test also has the time limit of
    pyproject.toml.
    """
    os.setsid()
    log = os.open(_log(copy), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit, cpu_limit + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    os.chdir(copy)
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != root]
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]  # tests of scripts import those of the copy
    import pytest

    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--basetemp={copy.with_suffix('.tmp')}"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # its plugins are imported already
    status = pytest.main([*options, *tests])
    sys.stdout.flush()
    os._exit(status)
