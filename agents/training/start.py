"""Start of a training program of agents: environments, run folder, hardware settings, training, closing message.

    def start(config: Config, callback: LogCallback | None = None) -> None:
        start_run(config, KIND, train, probe_step, batch_size=config.batch_size, updates=..., callback=callback)

Programs of other packages have the same steps, from `core.training_program`, but no environments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from zerokara import envs
from zerokara.agents.configs.common import Settings
from zerokara.agents.qlearning.agent_file import check_network
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.distributed import World
from zerokara.core.run import LogCallback, Run
from zerokara.core.training_program import check_divisible, choose_compute, open_run

ConfigT = TypeVar("ConfigT", bound=Settings)


@dataclass(frozen=True)
class Resources:
    """Environments, hardware settings and processes with which a run trains."""

    env: envs.VectorEnv
    """Environments of this process."""
    compute: Compute
    """Hardware settings."""
    world: World
    """Processes that train together."""


# Iterations from one vote of several processes, on stopping and saving, to the next at most. With 4 no data of the last
# checkpoint are overwritten between two votes: they fill at most 8 slots of the replay buffer, which has 4 more than it
# needs for the steps between two checkpoints.
ITERATIONS_PER_VOTE = 4


def spaced_process_seed(seed: int, world: World) -> int:
    """Return the seed of an agent's process, from the seed of the run.

    Those of two processes are 10,007 apart, those of `World.process_seed` 1: runs that are resumed need both.
    """
    return seed * 1_000_003 + world.rank * 10_007


def make_env(config: Settings, world: World) -> envs.VectorEnv:
    """Create the environments of one process. `start_run` does this first, so that a mistake creates no run folder.

    Raises:
        UserError: as `envs.make`, or the Q-network for these environments cannot be created.
    """
    env = envs.make(config.env, config.num_envs // world.size, **config.env_settings())
    with envs.closed_on_error(env):
        check_network(config, env.obs_shape, env.num_actions)
    return env


def start_run(
    config: ConfigT,
    kind: str,
    train: Callable[[ConfigT, Run, Resources], str],
    probe_step: Callable[[ConfigT, Resources, int], Callable[[], object]],
    *,
    batch_size: int,
    multiple_of: int = 1,
    updates: int,
    divided: Collection[str] = ("num_envs",),
    check: Callable[[ConfigT, int], object] = lambda config, processes: None,
    connected: Callable[[ConfigT], AbstractContextManager[ConfigT]] = contextlib.nullcontext,
    callback: LogCallback | None = None,
) -> None:
    """Start or resume the run of a config: open the run folder, choose the hardware settings, train.

    Args:
        config: config of the run.
        kind: name of the program ("dqn").
        train: trains to the end of the run, and returns the closing message.
        probe_step: returns, given the resources of one process that trains alone and a batch size, a function that
            does one gradient step on random data. It is timed to choose precision and compilation.
        batch_size: items in an update of all processes.
        multiple_of: as in `core.compute.TrainStep`.
        updates: updates in the run, which limit the time of this measurement.
        divided: names of the settings that are divided evenly among the processes.
        check: checks what else must fit the number of processes.
        connected: context in which the run is opened. It gives the config by which hardware settings are chosen.
        callback: is called with every log entry, see `core.run.Run.log`.

    Raises:
        UserError: a setting does not fit the number of processes; as `make_env`, `open_run`, `choose_compute` and
            `train`.
        Stopped: a signal stopped the run.
    """
    world = World.from_env(config.device)
    check_divisible(config, world, *divided)
    check(config, world.size)
    with (
        contextlib.closing(make_env(config, world)) as env,
        connected(config) as hardware,
        open_run(config, kind, world) as run,
    ):
        run.callback = callback

        def make_step(candidate: Compute, size: int) -> Callable[[], object]:
            return probe_step(config, Resources(env, candidate, World()), size)

        timed = TrainStep(make_step, batch_size // world.size, multiple_of)
        compute = run.compute(lambda: choose_compute(hardware, world, timed, updates), config.total_steps)
        run.close(train(config, run, Resources(env, compute, world)))
