"""Process of a measurement. It reads orders from standard input and answers each, in lines of JSON.

`benchmarks.scaling.group` starts it, in a network namespace or not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.scaling.group import torchrun_variables
from benchmarks.scaling.jobs import JOBS, Work, make_compute
from benchmarks.scaling.recording import FLOAT_BYTES, Recording, Replay, record
from zerokara.core.distributed import World


class Worker:
    """State of a process between orders.

    Attributes:
        sent: file with the bytes that the network interface has sent; None: they are not counted.
    """

    def __init__(self) -> None:
        # More threads than cores wait for each other: an all-reduce of 262 kB took 40 ms in place of .6 ms. `prepare`
        # sets the number of a measurement without hosts.
        torch.set_num_threads(1)
        self._works: dict[str, Work] = {}
        self._world = World()
        interface = os.environ.get("GLOO_SOCKET_IFNAME", "")
        self.sent = Path(f"/sys/class/net/{interface}/statistics/tx_bytes") if interface else None

    def join(self, rank: int, size: int, address: str, port: int, has_store: bool) -> dict[str, Any]:
        """Join a group of processes, after leaving the one before."""
        self.leave()
        if size > 1:
            variables = torchrun_variables(rank, size, address, port, has_store=has_store)
            os.environ |= variables
            try:
                self._world = World.from_env("cpu")
            finally:
                for name in variables:
                    del os.environ[name]
        return {}

    def leave(self) -> dict[str, Any]:
        """Leave the group."""
        self._world.close()
        self._world = World()
        return {}

    def prepare(self, key: str, job: str, arguments: dict[str, Any], threads: int, copies: int, together: bool) -> Any:
        """Create the training of a job: with the group, or alone."""
        options = argparse.Namespace(**arguments)
        compute = make_compute(options, threads)
        world = self._world if together else World()
        self._works[key] = JOBS[job].make(options, compute, world, copies)
        return {"items": self._works[key].items}

    def train(self, key: str, updates: int) -> dict[str, float]:
        """Do iterations of a job."""
        return self._timed(self._works[key].update, updates)

    def drop(self) -> dict[str, Any]:
        """End the training of all jobs."""
        while self._works:
            self._works.popitem()[1].close()
        return {}

    def record(self, job: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Record an iteration of a job."""
        options = argparse.Namespace(**arguments)
        return record(JOBS[job], options, make_compute(options, 1), options.repeats, options.learn_first).to_dict()

    def replay(self, recording: dict[str, Any], updates: int) -> dict[str, float]:
        """Repeat a recorded iteration in the group."""
        update = Replay(Recording.from_dict(recording), self._world).update
        if any(event["kind"] == "backward" for event in recording["events"]):
            update()  # divides the gradients into buckets
        return self._timed(update, updates)

    def all_reduce(self, size: int, times: int) -> dict[str, float]:
        """Average gradients of `size` bytes in the group; below one number, vote."""
        parameter = nn.Parameter(torch.zeros(size // FLOAT_BYTES))
        parameter.grad = torch.zeros_like(parameter)

        def average() -> None:
            if size > FLOAT_BYTES * 2:
                self._world.mean_gradients([parameter])
            else:
                self._world.any(False)

        average()
        return self._timed(average, times)

    def _timed(self, function: Callable[[], object], times: int) -> dict[str, float]:
        """Call a function at the same time as the other processes. Returns seconds and sent bytes of a call."""
        self._world.barrier()
        sent, start = self._sent(), time.perf_counter()
        for _ in range(times):
            function()
        return {"seconds": (time.perf_counter() - start) / times, "sent": (self._sent() - sent) / times}

    def _sent(self) -> int:
        return int(self.sent.read_text()) if self.sent else 0


def main() -> None:
    """Answer orders until standard input ends."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print
    worker = Worker()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except Exception:  # noqa: BLE001  (the process that gave the order reports it)
            answer = {"error": traceback.format_exc()}
        try:
            print(json.dumps(answer), file=answers)
        except BrokenPipeError:  # the process that gave the order has ended
            return


if __name__ == "__main__":
    main()
