"""Learner of DQN together with a function that samples its batches, for tests of single updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning.replay import Batch
from zerokara.core.compute import Compute
from zerokara.core.distributed import World


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
        self.learner = dqn.make_learner(config, obs_shape, num_actions, compute, World())
        self.update = self.learner.graphed(self.eager_update)

    def eager_update(self) -> Tensor:
        return dqn.gradient_step(self.learner, self.sample())

    def loss(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.learner._forward_eager(*tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)
