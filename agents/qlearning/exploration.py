"""Epsilon-greedy and temporally extended epsilon-greedy exploration.

Shapes: N environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zerokara.core.checkpoint import later_seed

MAX_DURATION = 10_000  # steps of one random action, as in the paper


class Exploration:
    """Sampler of exploratory actions. Each call draws the same number of random numbers, on the CPU.

    With `zeta`, this is temporally extended (ez-)greedy exploration (Dabney et al. 2021, "Temporally-Extended
    epsilon-Greedy Exploration", algorithm 1): a random action is repeated for n steps with probability proportional to
    n^-zeta. Single random actions tend to cancel each other out; repeated actions reach states that are many steps
    away, as needed in games in which the first reward is a hundred steps away.

    Args:
        num_envs: N.
        num_actions: number of actions.
        seed: seed of the random numbers.
        zeta: exponent above 1; None: random actions last one step.
    """

    def __init__(self, num_envs: int, num_actions: int, seed: int, zeta: float | None = None) -> None:
        self.num_actions = num_actions
        self.generator = torch.Generator().manual_seed(seed)
        self.action_N = torch.zeros(num_envs, dtype=torch.int64)
        self.remaining_N = torch.zeros(num_envs, dtype=torch.int64)  # remaining steps of the random action
        self._cumulative: Tensor | None = None
        if zeta is not None:
            weights = torch.arange(1, MAX_DURATION + 1, dtype=torch.float64) ** -zeta
            self._cumulative = weights.cumsum(0) / weights.sum()

    def sample(self, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
        """Sample a mask (N,) bool of environments that act at random in this step, and random actions (N,) int64.

        Args:
            epsilon: probability that a random action starts in an environment in which none is being repeated; one
                number, or one for each environment, (N,).
        """
        number = len(self.action_N)
        random_N = torch.randint(self.num_actions, (number,), generator=self.generator)
        begins_N = torch.rand(number, generator=self.generator) < epsilon
        if self._cumulative is None:
            return begins_N, random_N
        chance_N = torch.rand(number, generator=self.generator, dtype=torch.float64)
        length_N = 1 + torch.searchsorted(self._cumulative, chance_N).clamp(max=MAX_DURATION - 1)
        begins_N &= self.remaining_N == 0
        self.action_N = torch.where(begins_N, random_N, self.action_N)
        self.remaining_N = torch.where(begins_N, length_N, self.remaining_N)
        held_N = self.remaining_N > 0
        self.remaining_N = (self.remaining_N - 1).clamp(min=0)
        return held_N, self.action_N

    def state_dict(self) -> dict[str, Any]:
        """State of the generator and of the repeated actions."""
        return {"generator": self.generator.get_state(), "action": self.action_N, "left": self.remaining_N}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.generator.set_state(state["generator"])
        self.action_N, self.remaining_N = state["action"], state["left"]

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> None:
        """Draw new random numbers; no action is repeated, because the environments start new episodes."""
        self.generator.manual_seed(later_seed(self.generator.initial_seed(), step))
