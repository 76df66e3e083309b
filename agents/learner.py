"""The learner: online and target network, and one update as one piece of work.

Shapes: B batch, A actions, N environments, C, H, W an observation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.config import Config
from agents.losses import td_loss, td_target
from agents.network import QNetwork
from agents.replay import Batch
from core.compute import Compute
from core.distributed import World
from core.optim import CentredRMSprop


def make_network(config: Config, obs_shape: tuple[int, int, int], num_actions: int) -> QNetwork:
    """The Q-network that a config describes."""
    return QNetwork(
        obs_shape,
        num_actions,
        backbone=config.backbone,
        width=config.width,
        hidden_units=config.hidden_units,
        dueling=config.dueling,
        layer_norm=config.layer_norm,
    )


class Policy:
    """A network as players use it: pixels in, values out.

    Args:
        network: on the device of `compute`.
    """

    def __init__(self, network: QNetwork, compute: Compute) -> None:
        self.network, self.compute = network, compute
        self._values = compute.function(self._forward)

    def _forward(self, obs_NCHW: Tensor) -> Tensor:
        with torch.no_grad(), self.compute.autocast():
            q_NA: Tensor = self.network(self.compute.images(obs_NCHW))
        return q_NA

    def values(self, obs_NCHW: np.ndarray) -> Tensor:
        """Q-values (N, A) float32, on the device, of observations (N, C, H, W) uint8."""
        return self._values(torch.from_numpy(obs_NCHW).to(self.compute.torch_device, non_blocking=True))

    def act(self, obs_NCHW: np.ndarray, epsilon: float, generator: torch.Generator) -> np.ndarray:
        """Epsilon-greedy actions (N,) int64. Random numbers are drawn on the CPU, the same number at every call."""
        number, actions = len(obs_NCHW), self.network.num_actions
        random_N = torch.randint(actions, (number,), generator=generator)
        explore_N = torch.rand(number, generator=generator) < epsilon
        if epsilon >= 1:
            return random_N.numpy()
        greedy_N = self.compute.host(self.values(obs_NCHW).argmax(dim=1))
        return torch.where(explore_N, random_N, greedy_N).numpy()


class Learner:
    """Updates the online network from batches.

    Args:
        sample: draws a batch on the device of `compute`, without waiting for it.
    """

    def __init__(
        self,
        config: Config,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        compute: Compute,
        world: World,
        sample: Callable[[], Batch],
        generators: tuple[torch.Generator, ...] = (),
    ) -> None:
        self.config, self.compute, self.world, self._sample = config, compute, world, sample
        self.network = compute.module(make_network(config, obs_shape, num_actions))
        world.broadcast(self.network)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = _make_optimizer(config, self.network, compute)
        self._loss = compute.function(self._forward)
        self._generators = generators
        self._replay_update: Callable[[], None] | None = None
        # Sums over updates since `read_metrics`: loss, mean Q, gradient norm, updates. They stay on the device.
        self._sums = torch.zeros(4, device=compute.torch_device)

    def update(self) -> None:
        """One gradient step. On CUDA the first ones run as they are, then the captured graph takes over."""
        if self._replay_update is None:
            self._update()
            # Adam makes its state in the first step, which capture must not see.
            self._replay_update = self._capture()
        else:
            self._replay_update()

    def _capture(self) -> Callable[[], None]:
        """The update as a CUDA graph; what the runs before the capture changed is put back."""
        if self.compute.torch_device.type != "cuda" or self.world.size > 1:
            return self._update
        before = copy.deepcopy((self.network.state_dict(), self.optimizer.state_dict(), self._sums))
        drawn = [generator.get_state() for generator in self._generators]
        graph = self.compute.graph(self._update, self._generators)
        for generator, state in zip(self._generators, drawn, strict=True):
            generator.set_state(state)
        self.network.load_state_dict(before[0])
        _copy_into(self.optimizer.state_dict()["state"], before[1]["state"])
        self._sums.copy_(before[2])
        return graph

    def _update(self) -> None:
        batch = self._sample()
        loss, mean_q = self._loss(*batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.world.mean_gradients(self.network.parameters())
        limit = self.config.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), float("inf") if limit is None else limit)
        self.optimizer.step()
        self._sums += torch.stack([loss.detach(), mean_q, norm.detach(), torch.ones_like(mean_q)])

    def _forward(
        self, obs: Tensor, action_B: Tensor, reward_B: Tensor, discount_B: Tensor, next_obs: Tensor, weight_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and mean Q (scalars): the part of an update that is compiled."""
        with self.compute.autocast():
            with torch.no_grad():
                next_images = self.compute.images(next_obs)
                next_online_q_BA = self.network(next_images) if self.config.double else None
                target_B = td_target(reward_B, discount_B, self.target(next_images), next_online_q_BA)
            q_BA = self.network(self.compute.images(obs))
        loss, _ = td_loss(q_BA, action_B, target_B, weight_B)
        return loss, q_BA.detach().mean()

    def renew_target(self) -> None:
        """Copy the online network into the target network."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.target.parameters()), list(self.network.parameters()))

    def read_metrics(self) -> dict[str, Tensor]:
        """Means since the last call, as tensors on the device; empty where nothing was learnt."""
        sums, self._sums = self._sums.clone(), self._sums.zero_()
        means = sums[:3] / sums[3].clamp(min=1)
        return {"train/loss": means[0], "train/q": means[1], "train/grad_norm": means[2]}

    def is_finite(self) -> bool:
        """Whether every weight is a number. Waits for the device."""
        return bool(torch.stack([p.isfinite().all() for p in self.network.parameters()]).all())

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, and the sums that the next line of metrics is made of."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self._sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._sums.copy_(state["sums"])


def _make_optimizer(config: Config, network: nn.Module, compute: Compute) -> torch.optim.Optimizer:
    if config.optimizer == "rmsprop":
        return CentredRMSprop(network.parameters(), lr=config.learning_rate, eps=config.optimizer_epsilon)
    cuda = compute.torch_device.type == "cuda"
    return torch.optim.Adam(
        network.parameters(),
        lr=config.learning_rate,
        eps=config.optimizer_epsilon,
        fused=compute.torch_device.type in ("cpu", "cuda"),
        capturable=cuda,
    )


def _copy_into(state: dict[Any, dict[str, Tensor]], values: dict[Any, dict[str, Tensor]]) -> None:
    """Put values into the tensors of an optimiser's state, which a CUDA graph holds by address."""
    for key, tensors in state.items():
        for name, tensor in tensors.items():
            tensor.copy_(values[key][name])
