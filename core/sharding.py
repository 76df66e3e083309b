"""Evaluations that are divided among the processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from zerokara.core.config import Stopped
from zerokara.core.distributed import World
from zerokara.core.run import Run

ResultT = TypeVar("ResultT")


def evaluate_shards(world: World, run: Run, number: int, evaluate: Callable[[slice], ResultT]) -> list[ResultT]:
    """Divide the evaluation of `number` items among the processes. Returns the results of all shards, in their order.

    Every process gets all results. If there are fewer items than processes, some processes have no shard.

    Args:
        world: processes, all of which make this call.
        run: its signals interrupt the evaluation.
        number: items of all processes.
        evaluate: evaluates the items of a shard. It must not communicate. Its result has plain values, and tensors on
            the CPU.

    Raises:
        Stopped: a signal interrupted the evaluation in one of the processes.
    """
    shard = world.shard(number)
    own: list[ResultT] | None = None
    with contextlib.suppress(Stopped), run.interruptible():
        own = [evaluate(shard)] if shard.start < shard.stop else []
    with run.interruptible(on=False):
        results = [result for result in world.gather(own) if result is not None]
    if len(results) < world.size:
        raise Stopped
    return [result for of_process in results for result in of_process]
