"""Python interpreter that imports the large libraries once, then forks a process for every program a test starts.

Importing PyTorch and the other libraries takes seconds, and the tests start some hundred processes. A forked process
begins where a new one is after these imports: no module of zerokara is imported, no thread is running. It is run by
`tests.programs.start`, which sends a request as a line of JSON and reads the answer as such a line.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import NoReturn

LIBRARIES = (
    *("torch", "torch.distributed", "torch._dynamo", "torch.utils.tensorboard", "torch.utils.serialization.config"),
    *("numpy", "scipy.stats", "PIL.Image"),
    *("cv2", "matplotlib.pyplot", "gymnasium", "ale_py", "rich.console", "rich.table", "safetensors.torch", "psutil"),
    *("optuna", "sqlalchemy.orm", "av"),
)


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
                leave(run(**request))
        print(json.dumps(answer), flush=True)


def run(folder: str, arguments: Sequence[str], environment: Mapping[str, str], out: str, err: str) -> int:
    """Run Python's arguments "-c", code, ... or "-m", module, ... in this process, with its output in two files.

    Returns:
        The exit status.
    """
    for descriptor, path in ((0, os.devnull), (1, out), (2, err)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
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


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    # The first process compiles the modules of zerokara, the others read what it has written to this folder.
    sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False
    gc.freeze()  # the garbage collection of a process does not touch, and so copy, the memory that it shares
    serve()
