"""Resources of agents in tests: one process without compilation."""

from __future__ import annotations

from typing import cast

from zerokara import envs
from zerokara.agents.configs.common import Settings
from zerokara.agents.training.start import Resources, make_env
from zerokara.core.compute import Compute
from zerokara.core.distributed import World


def resources(config: Settings, world: World = World()) -> Resources:  # noqa: B008  (frozen)
    """Create the environments of a config."""
    return Resources(make_env(config, world), Compute(), world)


class Shapes:
    """Environments that cannot be stepped, for a learner without a loop."""

    def __init__(self, obs_shape: tuple[int, int, int], num_actions: int) -> None:
        self.obs_shape, self.num_actions = obs_shape, num_actions


def resources_of_shape(obs_shape: tuple[int, int, int], num_actions: int, compute: Compute | None = None) -> Resources:
    """Return resources with which a learner can be created."""
    return Resources(cast("envs.VectorEnv", Shapes(obs_shape, num_actions)), compute or Compute(), World())
