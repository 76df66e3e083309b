"""Parent of a process on a node of a cluster: it outlives the worker that started it (`main`, run by `node.GUARD`).

The worker writes a byte to the guard's standard input to send a signal to the process: "t" for SIGTERM, "k" for SIGKILL
to its whole session. If the worker ends, however that happens, its end of the pipe is closed, and the guard sends
SIGTERM, so that the process saves. Ray ends a worker when the driver or the node's Ray process dies, and kills the
children of the worker then; the guard is no child of it any more. When the process has ended, the guard prints its exit
code.

It uses the standard library only, and nothing of zerokara, so that it starts in no time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path


def main(log: Path, command: list[str]) -> None:
    """Run a command until it ends, and print its exit code."""
    if os.fork():
        os._exit(0)  # the other process is a child of init then
    os.setsid()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    threading.Thread(target=follow, args=(process,), daemon=True).start()
    code = process.wait()
    with contextlib.suppress(BrokenPipeError):  # the worker has ended
        print(code, flush=True)
    os._exit(0)


def follow(process: subprocess.Popen[bytes]) -> None:
    """Send the signals for which the worker asks; SIGTERM when it ends, unless it has asked for that before."""
    asked = False
    while request := os.read(0, 1):
        if request == b"k":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        elif not asked:
            asked = True
            process.terminate()
    if not asked:  # a second SIGTERM would end a run that is saving
        process.terminate()
