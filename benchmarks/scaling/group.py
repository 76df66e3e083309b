"""Processes that measure at the same time: each gets orders, and answers them (`benchmarks.scaling.worker`)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

ADDRESS = "127.0.0.1"  # of a store of this machine
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
        if kind is not None:
            for process in self._processes:
                process.kill()
        for process in self._processes:
            with contextlib.suppress(OSError):  # an order that a process which has ended did not read
                self._pipe(process, "stdin").close()
        for process in self._processes:
            process.wait()
            self._pipe(process, "stdout").close()

    def ask(self, orders: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Give an order to some of the processes, and return their answers in the same order.

        Args:
            orders: by the number of the process: the key "do" is the name of a method of the worker, and the others are
                its arguments.

        Raises:
            RuntimeError: a process failed.
        """
        for number, order in orders.items():
            print(json.dumps(order), file=self._pipe(self._processes[number], "stdin"), flush=True)
        answers = []
        for number in orders:
            line = self._pipe(self._processes[number], "stdout").readline()
            answer = json.loads(line) if line else {"error": "it has ended"}
            if "error" in answer:
                raise RuntimeError(f"Process {number} of the measurement failed: {answer['error']}")
            answers.append(answer)
        return answers

    def ask_all(self, number: int, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Give the first `number` processes the same order, and return their answers."""
        return self.ask({index: {"do": do, **arguments} for index in range(number)})

    def join(self, members: Sequence[int], address: str, port: int, *, has_store: bool = False) -> None:
        """Let some of the processes form a group.

        Args:
            members: numbers of the processes; the first one gets rank 0.
            address: of their store.
            port: of their store.
            has_store: the store exists (`make_store`); otherwise the first process makes it.
        """
        where = {"address": address, "port": port, "has_store": has_store}
        self.ask({m: {"do": "join", "rank": rank, "size": len(members), **where} for rank, m in enumerate(members)})

    @staticmethod
    def _pipe(process: subprocess.Popen[str], name: str) -> Any:
        return getattr(process, name)


def make_store() -> Any:
    """Return a TCPStore by which processes of this machine find each other, at a port that the kernel chooses."""
    return dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]


def torchrun_variables(rank: int, size: int, address: str, port: int, *, has_store: bool) -> dict[str, str]:
    """Return the environment variables that torchrun would set for a process; see `Group.join`."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
    return dict(zip(names, map(str, (rank, rank, size, address, port, has_store)), strict=True))
