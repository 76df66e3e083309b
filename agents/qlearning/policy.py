"""Policy: Q-values, and epsilon-greedy or temporally extended epsilon-greedy actions, from observations.

Shapes: N environments, A actions, C, H, W an observation, U units of an LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerokara.agents.qlearning.network import QNetwork, RecurrentNetwork
from zerokara.agents.qlearning.replay import ALL, Rows
from zerokara.core.checkpoint import later_seed
from zerokara.core.compute import Compute
from zerokara.core.layers import resample_noise
from zerokara.envs.base import Step, VectorEnv

MAX_DURATION = 10_000  # steps of one random action, as in the paper


def obs_dtype(env: VectorEnv) -> torch.dtype:
    """Return the type of observations: uint8 of images, float32 of vectors."""
    return torch.uint8 if env.obs_dtype is np.uint8 else torch.float32


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


class Policy:
    """Policy of a Q-network, for acting in environments.

    Args:
        network: Q-network on the device of `compute`.
        compute: device and precision.
        seed: seed of the noise in noisy layers.
    """

    def __init__(self, network: QNetwork, compute: Compute, seed: int = 0) -> None:
        self.network, self.compute = network, compute
        self.noise = torch.Generator(compute.torch_device).manual_seed(seed)
        self._values = compute.function(self._forward)
        self._converted = compute.converter()

    def _forward(self, obs_NCHW: Tensor) -> Tensor:
        with torch.no_grad(), self.compute.autocast():
            q_NA: Tensor = self.network(self.compute.images(obs_NCHW))
        return q_NA

    def values(self, obs_NCHW: np.ndarray, *, noisy: bool = False) -> Tensor:
        """Q-values (N, A) float32, on the device, of observations (N, C, H, W): uint8, or float32 of vectors.

        Args:
            noisy: resample and use the noise of noisy layers, as in training; False disables it, as in evaluation.
        """
        if self.network.has_train_mode:
            self.network.train(noisy)
            if self.network.has_custom_backbone:  # whose BatchNorm or dropout is for updates only
                self.network.backbone.eval()
            if noisy:
                resample_noise(self.network, self.noise)
        obs = torch.from_numpy(obs_NCHW).to(self.compute.torch_device, non_blocking=True)
        return self._values(self._converted(obs))

    def values_and_state(self, obs_NCHW: np.ndarray, state_2NU: Tensor) -> tuple[Tensor, Tensor]:
        """Q-values (N, A) of observations, and the state of the LSTM after them; without an LSTM the state is empty."""
        return self.values(obs_NCHW), state_2NU

    def forget(self, rows: Rows = ALL) -> None:
        """Start new episodes in some of the environments: an LSTM forgets the observations that `values` got before."""

    def act(
        self, obs_NCHW: np.ndarray | Step, epsilon: float | Tensor, exploration: Exploration, *, noisy: bool = False
    ) -> np.ndarray:
        """Select epsilon-greedy actions (N,) int64; epsilon may be one number for each environment, (N,).

        Observations may be given as the step that led to them: their frames are stacked if the network acts.
        """
        if not isinstance(epsilon, Tensor) and epsilon >= 1:
            return exploration.sample(epsilon)[1].numpy()
        obs_NCHW = obs_NCHW.obs if isinstance(obs_NCHW, Step) else obs_NCHW
        return self.epsilon_greedy(self.values(obs_NCHW, noisy=noisy), epsilon, exploration)

    def epsilon_greedy(self, q_NA: Tensor, epsilon: float | Tensor, exploration: Exploration) -> np.ndarray:
        """Select epsilon-greedy actions (N,) int64 from Q-values."""
        explore_N, random_N = exploration.sample(epsilon)
        return torch.where(explore_N, random_N, self.compute.to_host(q_NA.argmax(dim=1))).numpy()


class RecurrentPolicy(Policy):
    """Policy of a network with an LSTM. `values` remembers the observations of each row since its last `forget`.

    If the number of rows changes, all of them start new episodes.
    """

    network: RecurrentNetwork

    def __init__(self, network: RecurrentNetwork, compute: Compute) -> None:
        super().__init__(network, compute)
        self.memory = Memory(0, network.lstm.hidden_size, compute)
        self._values_and_state = compute.function(self._values_and_state_eager)

    def _values_and_state_eager(self, obs_NCHW: Tensor, state_2NU: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), self.compute.autocast():
            return self.network.values_and_state(self.compute.images(obs_NCHW), state_2NU)

    def values_and_state(self, obs_NCHW: np.ndarray, state_2NU: Tensor) -> tuple[Tensor, Tensor]:
        """Q-values (N, A) of observations, and the state after them; that of `values` is not used."""
        obs = torch.from_numpy(obs_NCHW).to(self.compute.torch_device, non_blocking=True)
        return self._values_and_state(obs, state_2NU)

    def values(self, obs_NCHW: np.ndarray, *, noisy: bool = False) -> Tensor:
        """Q-values (N, A) of the next observations of N episodes."""
        if self.memory.state_2NU.shape[1] != len(obs_NCHW):
            self.memory = Memory(len(obs_NCHW), self.network.lstm.hidden_size, self.compute)
        q_NA, self.memory.state_2NU = self.values_and_state(obs_NCHW, self.memory.state_2NU)
        return q_NA

    def forget(self, rows: Rows = ALL) -> None:
        """Start new episodes in some of the rows."""
        self.memory.forget(rows)


class Memory:
    """State (2, N, U) of an LSTM in N environments, a part of checkpoints; U is 0 without an LSTM."""

    def __init__(self, num_envs: int, units: int, compute: Compute) -> None:
        self.state_2NU = torch.zeros((2, num_envs, units), device=compute.torch_device)

    def forget(self, rows: Rows = ALL) -> None:
        """Set the state of some of the environments to zero, where episodes start."""
        self.state_2NU = self.state_2NU.clone()
        self.state_2NU[:, torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows] = 0

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"lstm": self.state_2NU}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.state_2NU = state["lstm"].to(self.state_2NU.device)

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> None:
        """Forget everything: the environments of another number of processes start new episodes."""
        self.forget()


def make_policy(network: QNetwork, compute: Compute) -> Policy:
    """Create the policy of a network without noise: one that remembers, if the network has an LSTM."""
    return RecurrentPolicy(network, compute) if isinstance(network, RecurrentNetwork) else Policy(network, compute)
