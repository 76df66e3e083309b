"""Learner of DQN together with a function that samples its batches, for tests of single updates; random batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.agents.resources import resources_of_shape
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning.replay import Batch
from zerokara.core.compute import Compute


class SampledLearner:
    """Learner whose `update` does one gradient step on the next batch; other attributes are those of the learner."""

    def __init__(
        self,
        config: Config,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        compute: Compute,
        sample: Callable[[], Batch],
    ) -> None:
        self.config, self.sample = config, sample
        self.learner = dqn.make_learner(config, resources_of_shape(obs_shape, num_actions, compute))
        self.update = self.learner.graphed(self.eager_update)

    def eager_update(self) -> Tensor:
        return dqn.gradient_step(self.learner, self.sample())

    def loss(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.learner._forward_eager(*tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)


OBS = (2, 20, 20)
ACTIONS = 3
BATCH = 6


def config(**changes: Any) -> Config:
    options: dict[str, Any] = {
        "double": True,
        "backbone": "nips",
        "width_multiplier": 0.25,
        "hidden_units": 8,
        "batch_size": BATCH,
        "learning_rate": 1e-2,
        "optimizer_epsilon": 1e-4,
    }
    return Config(**(options | changes))


def batches(seed: int = 0) -> Callable[[], Batch]:
    """Return a function that generates random batches from a seed."""
    generator = torch.Generator().manual_seed(seed)

    def pixels() -> Tensor:
        return torch.randint(256, (BATCH, *OBS), generator=generator, dtype=torch.uint8)

    def sample() -> Batch:
        obs, next_obs = pixels(), pixels()
        action_B = torch.randint(ACTIONS, (BATCH,), generator=generator)
        reward_B = torch.randn(BATCH, generator=generator)
        discount_B = 0.9 * (torch.rand(BATCH, generator=generator) > 0.3).float()
        return Batch(obs, action_B, reward_B, discount_B, next_obs, torch.tensor([1.0, 1, 1, 1, 1, 0]))

    return sample


def make(
    sample: Callable[[], Batch], *, seed: int = 0, compute: Compute | None = None, **changes: Any
) -> SampledLearner:
    torch.manual_seed(seed)
    return SampledLearner(config(**changes), OBS, ACTIONS, compute or Compute(), sample)
