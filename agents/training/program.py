"""Start of a training program: the run folder, the processes, the hardware settings, and the messages at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from zerokara.agents.configs.common import Settings
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, flag
from zerokara.core.distributed import World
from zerokara.core.run import Run

ConfigT = TypeVar("ConfigT", bound=Settings)

PROBE_ACTIONS = 6  # actions of the network that is timed before the environments exist, as in Pong


def run_program(
    config: ConfigT,
    *,
    kind: str,
    divided: Iterable[str],
    choose_compute: Callable[[ConfigT, World], Compute],
    train: Callable[[ConfigT, Run, Compute, World], str],
) -> None:
    """Open the run folder, choose the hardware settings, train, and print the closing message.

    Args:
        config: config of the run.
        kind: name of the program that trains ("dqn").
        divided: names of config fields that are divided among the processes of torchrun.
        choose_compute: measures and returns the fastest `Compute`.
        train: trains from the current step to the end of the run, and returns the closing message.

    Raises:
        UserError: a field cannot be divided evenly among the processes; as `Run` and `train`.
    """
    world = World.from_env(config.device)
    for field in divided:
        if getattr(config, field) % world.size:
            raise UserError(
                f"{flag(field)} {getattr(config, field)} cannot be divided evenly among {world.size} processes: choose "
                f"a multiple of {world.size}."
            )
    with (
        Run(config, kind=kind, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run,
        run.signals(),
    ):
        compute = run.compute(lambda: choose_compute(config, world), config.total_steps)
        run.close(train(config, run, compute, world))
    world.close()
