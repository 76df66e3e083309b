"""Python interpreter that imports the large libraries once, then forks a process for every program a test starts.

Importing PyTorch and the other libraries takes seconds, and the tests start some hundred processes. A forked process
begins where a new one is after these imports: no module of zerokara is imported, no thread is running. It is run by
`tests.programs.start`, which sends a request as a line of JSON and reads the answer as such a line.

A program that itself starts programs of zerokara (a scheduler, torchrun) forks them as well; see `Child`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import inspect
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from importlib import _bootstrap_external
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    *("torch", "torch.distributed", "torch._dynamo", "torch.utils.tensorboard", "torch.utils.serialization.config"),
    *("numpy", "scipy.stats", "PIL.Image"),
    *("cv2", "matplotlib.pyplot", "gymnasium", "ale_py", "rich.console", "rich.table", "safetensors.torch", "psutil"),
    *("optuna", "optuna.importance", "sqlalchemy.orm", "alembic.context", "av", "cloudpickle"),
    *("sklearn.svm", "sklearn.ensemble", "skimage.segmentation", "torchmetrics.classification"),
    *("faster_coco_eval", "sacrebleu.metrics.bleu"),
)
OURS = frozenset({"zerokara", "agents", "core", "envs", "generative", "vision"})
BLANK_FIGURES = "ZEROKARA_BLANK_FIGURES"  # environment variable of the fixture blank_figures
INHERITED: list[Any] = []  # objects of a parent whose files a child must not close


def serve() -> None:
    """Answer requests until stdin is closed: start a process, or report the exit status of one, None if it runs."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            ended, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if answer == 0:
                redirect(os.devnull, request.pop("out"), request.pop("err"))
                leave(run(**request))
        print(json.dumps(answer), flush=True)


def redirect(*targets: str | int | None) -> None:
    """Replace stdin, stdout and stderr by files, given as paths or descriptors; None: unchanged."""
    opened = [os.open(name, os.O_RDWR | os.O_CREAT, 0o600) if isinstance(name, str) else name for name in targets]
    for descriptor, source in enumerate(opened):
        if source is not None:
            os.dup2(source, descriptor)
            if isinstance(targets[descriptor], str):
                os.close(source)


def run(folder: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run Python's arguments "-c", code, ... or "-m", module, ... in this process.

    Returns:
        The exit status.
    """
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    show_environment(environment)
    if BLANK_FIGURES in environment:
        vars(importlib.import_module("matplotlib.figure"))["Figure"].draw = lambda figure, renderer: None
    kind, program, *words = arguments
    try:
        if kind == "-m":
            sys.path[0], sys.argv = folder, [program, *words]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.path[0], sys.argv = "", [kind, *words]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(program, vars(main))
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
            return 1
        return leaving.code or 0
    except BaseException:  # noqa: BLE001  (printed, as Python does)
        traceback.print_exc()
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """End the process as Python does, except that no objects are destroyed, which takes half a second."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def show_environment(environment: Mapping[str, str]) -> None:
    """Let psutil find the environment of this process, of which a fork has a copy only: those of torchrun first."""
    status = Path("/proc/self/stat")
    if not status.exists():
        return
    start, end = map(int, status.read_text("utf-8").rpartition(")")[2].split()[47:49])
    names = sorted(environment, key=lambda name: not name.endswith("RANK"))
    content = "".join(f"{name}={environment[name]}\0" for name in names).encode()
    complete = content[: content.rfind(b"\0", 0, end - start) + 1]
    ctypes.memmove(start, complete.ljust(end - start, b"\0"), end - start)


class Child:
    """Process that a program has forked in place of `python -m <module of zerokara>`; used like subprocess.Popen.

    It has no modules of zerokara, signal handlers and open files of its parent, as if Python had been started anew.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        start_new_session: bool = False,
    ) -> None:
        self.returncode: int | None = None
        INHERITED[:] = [*threading.enumerate(), sys.stdout, sys.stderr]
        self.pid = os.fork()
        if self.pid == 0:
            if start_new_session:
                os.setsid()
            redirect(*map(target, (stdin, stdout)))
            redirect(None, None, 1 if stderr == subprocess.STDOUT else target(stderr))
            new_interpreter()
            leave(run(str(cwd or Path.cwd()), arguments, os.environ.copy() if env is None else env))

    def poll(self) -> int | None:
        """Return the exit status, None while the process is running."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended; return the exit status."""
        end = time.monotonic() + (math.inf if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.005)
        return status

    def terminate(self) -> None:
        """Send SIGTERM if the process is running."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def target(file: Any) -> str | int | None:
    """Return the path or descriptor of a file as subprocess.Popen accepts it."""
    if file == subprocess.DEVNULL:
        return os.devnull
    return file if file is None or isinstance(file, int) else int(file.fileno())


def new_interpreter() -> None:
    """Leave behind what a new Python interpreter would not have of its parent."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    atexit._clear()
    sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    INHERITED.extend(sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in {*OURS, "tests"})
    for descriptor in {int(path.name) for path in Path("/dev/fd").iterdir()} - {0, 1, 2}:
        with contextlib.suppress(OSError):  # that of the listing itself
            os.close(descriptor)
    sys.stdout, sys.stderr = (open(number, "w", 1, closefd=False) for number in (1, 2))  # noqa: SIM115


def write_compiled(path: str, data: bytes, mode: int = 0o666) -> None:
    """Write a compiled module whole or not at all; replaces importlib's function of Python 3.11.

    That ignores how many bytes were written. A program that limits the size of its files (a test of full disks) would
    truncate the modules that it imports after that, for all later programs.
    """
    part = Path(f"{path}.{os.getpid()}")
    try:
        part.write_bytes(data)  # raises OSError, which importlib ignores
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class Popen(subprocess.Popen[Any]):
    """Replacement for subprocess.Popen, which forks `python -m <module of zerokara>`."""

    def __new__(cls, args: Any, *others: Any, **options: Any) -> Any:
        """Return a `Child` if it can replace the process."""
        if isinstance(args, list | tuple) and not others and options.keys() <= {*inspect.signature(Child).parameters}:
            interpreter, *words = [word for word in args if word != "-u"]
            of_ours = words[:1] == ["-m"] and words[1].split(".")[0] in OURS
            if interpreter == sys.executable and of_ours and options.get("stdout") != subprocess.PIPE:
                return Child(words, **options)
        return super().__new__(cls)


if __name__ == "__main__":
    vars(subprocess)["Popen"] = Popen
    vars(os)["fsync"] = lambda descriptor: None  # as in tests/conftest.py
    vars(_bootstrap_external)["_write_atomic"] = write_compiled
    for library in sys.argv[2:] or LIBRARIES:
        importlib.import_module(library)
    if not Path(importlib.util.cache_from_source(Path(__file__).parents[1] / "core" / "run.py")).exists():
        # The first process compiles the modules of zerokara, the others read what it has written to this folder.
        sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False
    gc.freeze()  # the garbage collection of a process does not touch, and so copy, the memory that it shares
    serve()
