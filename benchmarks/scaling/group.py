"""Processes that measure at the same time: each gets orders, and answers them (`benchmarks.scaling.worker`)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

TIMEOUT = "600"  # seconds that a process waits for the others, if one has failed


class Group:
    """Worker processes.

    Args:
        prefixes: of the command of each process, such as `ip netns exec NAME`.
        variables: environment variables, in addition to those of this process.
    """

    def __init__(self, prefixes: Sequence[Sequence[str]], variables: Mapping[str, str] | None = None) -> None:
        environment = {**os.environ, "ZEROKARA_COLLECTIVE_TIMEOUT": TIMEOUT, **(variables or {})}
        self._processes = [
            subprocess.Popen(
                [*prefix, sys.executable, "-m", "benchmarks.scaling.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends them
            )
            for prefix in prefixes
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if kind is not None:
                process.kill()
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def ask(self, orders: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Give an order to some of the processes, and return their answers in the same order.

        Args:
            orders: by the number of the process: the key "do" is the name of a method of the worker, and the others are
                its arguments.

        Raises:
            RuntimeError: a process failed.
        """
        for number, order in orders.items():
            print(json.dumps(order), file=self._pipe(number, "stdin"), flush=True)
        answers = []
        for number in orders:
            line = self._pipe(number, "stdout").readline()
            answer = json.loads(line) if line else {"error": "it has ended"}
            if "error" in answer:
                raise RuntimeError(f"Process {number} of the measurement failed: {answer['error']}")
            answers.append(answer)
        return answers

    def ask_all(self, number: int, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Give the first `number` processes the same order, and return their answers."""
        return self.ask({index: {"do": do, **arguments} for index in range(number)})

    def join(self, number: int, address: str, port: int) -> None:
        """Let the first `number` processes form a group, and the others none."""
        self.ask(
            {
                rank: {"do": "join", "rank": rank, "size": number, "address": address, "port": port}
                for rank in range(number)
            }
        )

    def _pipe(self, number: int, name: str) -> Any:
        return getattr(self._processes[number], name)


def free_port() -> int:
    """Return a port that no program uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
