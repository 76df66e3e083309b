"""Metrics and warnings of all processes of a training run, for a log entry of the main process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zerokara.core.distributed import World


@dataclass(frozen=True)
class Totals:
    """Values of a log entry, of one process or of all of them.

    Args:
        sums: numbers that are added over the processes, such as episodes.
        returns: raw returns of the last episodes.
        lengths: their lengths in agent steps.
        learner: metrics of the updates, numbers or tensors of one element, of which the mean over the processes counts.
    """

    sums: dict[str, int]
    returns: list[float]
    lengths: list[int]
    learner: Mapping[str, Any]


def gather_totals(world: World, own: Totals) -> Totals:
    """Combine the values of all processes; every process must call this. With a single one, they are its own.

    Args:
        world: processes that train together.
        own: values of this process.
    """
    if world.size == 1:
        return own
    learner = {name: float(value) for name, value in own.learner.items()}
    processes = world.gather(replace(own, learner=learner))
    return Totals(
        {name: sum(process.sums[name] for process in processes) for name in own.sums},
        [value for process in processes for value in process.returns],
        [value for process in processes for value in process.lengths],
        {name: float(np.mean([process.learner[name] for process in processes])) for name in learner},
    )


def gather_returns(world: World, own: Iterable[float]) -> list[float]:
    """Return the values of all processes, in every process; every process must call this.

    Args:
        world: processes that train together.
        own: raw returns of the last episodes of this process.
    """
    return [value for values in world.gather(list(own)) for value in values]


def print_warnings(world: World, own: list[str], warn: Callable[[str], object]) -> None:
    """Print the messages of the environments of all processes, and empty the list; every process must call this.

    Args:
        world: processes that train together.
        own: messages of this process that have not been printed.
        warn: prints a message in the main process.
    """
    for rank, texts in enumerate(world.gather(list(own))):
        for text in texts:
            warn(f"process {rank}: {text}" if rank else text)
    own.clear()
