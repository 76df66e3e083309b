"""Interpreter that runs programs, each in a process of its own, and reports what they have imported.

It reads requests as lines of JSON and answers each with a line. The libraries named as arguments are imported once, in
the beginning, so that a program that needs PyTorch starts within a fraction of a second.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import runpy
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn


class Output(io.StringIO):
    """Output of a program; after `lines` lines the process reports and ends, unless `lines` is 0."""

    def __init__(self, lines: int, answer: IO[str]) -> None:
        super().__init__()
        self.lines, self.answer = lines, answer

    def write(self, text: str) -> int:
        """Write a text."""
        super().write(text)
        if self.lines and self.getvalue().count("\n") >= self.lines:
            report(0, self, self.answer)
        return len(text)


def run(folder: str, words: Sequence[str], lines: int, answer: IO[str]) -> NoReturn:
    """Run a program in this process, and report.

    Args:
        folder: working folder.
        words: name of the program and its command line.
        lines: report and end the process when the program has written this number of lines; 0: when it has ended.
        answer: file of the report.
    """
    output = sys.stdout = sys.stderr = Output(lines, answer)
    os.chdir(folder)
    sys.argv = list(words)
    status: Any = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        status = leaving.code or 0
    report(status, output, answer)


REPORTS = threading.Lock()


def report(status: Any, output: Output, answer: IO[str]) -> NoReturn:
    """Write exit status, output and the names of all imported modules as JSON, and end the process."""
    REPORTS.acquire()  # of several threads that write, the first one reports
    json.dump({"status": status, "output": output.getvalue(), "modules": sorted(sys.modules)}, answer)
    answer.flush()
    os._exit(0)


def serve() -> None:
    """Answer requests until stdin is closed: a request is a dict with the arguments of `run`."""
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            run(**json.loads(line), answer=os.fdopen(writing, "w"))
        os.close(writing)
        with os.fdopen(reading) as answer:
            print(answer.read(), flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    for library in sys.argv[1:]:
        importlib.import_module(library)
    serve()
