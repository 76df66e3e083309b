"""Learner of DQN: online network, target network, optimizer, and the update.

Shapes: B batch, A actions, X outputs per action, F features, T and S quantile fractions of the online and of the target
network.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning.losses import greedy, munchausen_bonus, soft
from zerokara.agents.qlearning.network import make_network
from zerokara.agents.qlearning.replay import Batch
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.divergence import is_finite, read_means
from zerokara.core.layers import resample_noise
from zerokara.core.optim import CenteredRMSprop, clip_and_step, make_adam, refresh_copies

METRICS = ("train/loss", "train/q", "train/grad_norm")


class Learner:
    """Online and target network with the update of DQN.

    Args:
        config: hyperparameters.
        obs_shape: (C, H, W).
        num_actions: A.
        compute: device, precision and compilation.
        world: processes over which gradients are averaged.
        sample: function that samples a batch on the device, without synchronizing with it.
        generators: random generators that `sample` uses.
        update_priorities: function that receives the errors (B,) of the last batch; None: no prioritized replay.
        priority_tensors: tensors that `update_priorities` modifies.
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
        update_priorities: Callable[[Tensor], None] | None = None,
        priority_tensors: Sequence[Tensor] = (),
    ) -> None:
        self.config, self.compute, self.world, self._sample = config, compute, world, sample
        self._make = functools.partial(make_network, config, obs_shape, num_actions)
        self.network = compute.module(self._make())
        world.broadcast(self.network)
        self.target = compute.frozen(copy.deepcopy(self.network))
        # Copy in lower precision for forward and backward passes, where `compute` uses one; otherwise the same network.
        self.working = (
            compute.working_copy(self.network) if config.optimizer == "adam" and world.size == 1 else self.network
        )
        self.optimizer = _make_optimizer(config, self.network, self.working, compute)
        self._loss = compute.function(self._forward)
        # Generator of the noise in noisy layers and of the quantile fractions of IQN.
        seed = (config.seed * 1_000_003 + world.rank * 10_007) ^ 0x5EED
        self.generator = torch.Generator(compute.torch_device).manual_seed(seed)
        uses_generator = self.network.has_train_mode or config.head == "iqn"
        self._generators = (*generators, self.generator) if uses_generator else generators
        self._update_priorities, self._priority_tensors = update_priorities, priority_tensors
        self._replay_update: Callable[[], None] | None = None
        # Sums since the last `read_metrics`: loss, mean Q, gradient norm, number of updates. They stay on the device.
        self._sums = torch.zeros(4, device=compute.torch_device)

    def update(self) -> None:
        """Do one gradient step. On CUDA the first call runs eagerly and captures a CUDA graph for the later calls."""
        if self._replay_update is None:
            self._update()
            # Adam allocates its state in the first step, which must not be part of the captured graph.
            self._replay_update = self._capture()
        else:
            self._replay_update()

    def _capture(self) -> Callable[[], None]:
        """Capture the update as a CUDA graph. State changed by the warm-up runs before the capture is restored."""
        if self.compute.torch_device.type != "cuda" or self.world.size > 1:
            return self._update
        modules, others = (self.network, self.target), [self._sums, *self._priority_tensors]
        before = copy.deepcopy(([m.state_dict() for m in modules], self.optimizer.state_dict(), others))
        generator_states = [generator.get_state() for generator in self._generators]
        graph = self.compute.graph(self._update, self._generators)
        for generator, state in zip(self._generators, generator_states, strict=True):
            generator.set_state(state)
        for module, weights in zip(modules, before[0], strict=True):
            module.load_state_dict(weights)
        _copy_into(self.optimizer.state_dict()["state"], before[1]["state"])
        torch._foreach_copy_(others, before[2])
        return graph

    def _update(self) -> None:
        if self.network.has_train_mode:
            for network in (self.working.train(), self.target):
                resample_noise(network, self.generator)
        batch = self._sample()
        taus = self.network.head.sample_taus(len(batch.action), self.generator)
        loss, mean_q, td_error_B = self._loss(*batch, *taus)
        self.working.zero_grad(set_to_none=True)
        loss.backward()
        self.world.mean_gradients(self.working.parameters())
        norm = clip_and_step(self.optimizer, self.config.max_grad_norm)
        if self._update_priorities is not None:
            self._update_priorities(td_error_B)
        self._sums += torch.stack([loss.detach(), mean_q, norm, torch.ones_like(mean_q)])

    def _forward(
        self,
        obs: Tensor,
        action_B: Tensor,
        reward_B: Tensor,
        discount_B: Tensor,
        next_obs: Tensor,
        weight_B: Tensor,
        tau_BT: Tensor | None = None,
        next_tau_BS: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute loss and mean Q (scalars), and the error of each transition (B,). This function is compiled."""
        config, online, head = self.config, self.working, self.working.head
        with self.compute.autocast():
            images = self.compute.images(obs)
            with torch.no_grad():
                next_images = self.compute.images(next_obs)
                features_BF = self.target.features(next_images)
                z_BXA = self.target.outputs(features_BF, next_tau_BS)
                q_BA = head.values(z_BXA) if next_tau_BS is None else self.target.values(features_BF)
                if config.munchausen:
                    tau = config.munchausen_tau
                    reward_B = reward_B + munchausen_bonus(
                        self.target(images),
                        action_B,
                        alpha=config.munchausen_alpha,
                        tau=tau,
                        clip_min=config.munchausen_clip,
                    )
                    next_values = soft(z_BXA, q_BA, tau)
                else:
                    next_values = greedy(z_BXA, online(next_images) if config.double else q_BA)
                target_BX = head.target(reward_B, discount_B, next_values)
            z_BXA = online.outputs(online.features(images), tau_BT)
        loss, td_error_B = head.loss(z_BXA, action_B, target_BX, weight_B, tau_BT)
        return loss, head.values(z_BXA).detach().mean(), td_error_B

    def update_target_network(self) -> None:
        """Copy the online network into the target network."""
        with torch.no_grad():
            torch._foreach_copy_(_tensors(self.target), _tensors(self.network))

    def reset(self, seed: int) -> None:
        """Reinitialize the head and perturb the backbone (shrink and perturb).

        The backbone is interpolated towards newly initialized weights. The optimizer state is set to zero, and the
        target network is updated. D'Oro et al. 2023, "Sample-Efficient Reinforcement Learning by Breaking the Replay
        Ratio Barrier", after Nikishin et al. 2022; the interpolation factor of the backbone follows Schwarzer et al.
        2023, "Bigger, Better, Faster", section 3.

        Args:
            seed: seed of the new weights, the same in every process.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = dict(self.compute.module(self._make()).named_parameters())
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                weight.lerp_(fresh[name], self.config.reset_perturb_factor if name.startswith("backbone.") else 1.0)
            for tensors in self.optimizer.state_dict()["state"].values():
                torch._foreach_zero_(list(tensors.values()))
        self.refresh()
        self.update_target_network()

    def refresh(self) -> None:
        """Update the copies of the weights after a change that was not made by the optimizer."""
        refresh_copies(self.optimizer)

    def read_metrics(self) -> dict[str, Tensor]:
        """Means of the training metrics since the last call, as tensors on the device."""
        return read_means(self._sums, METRICS)

    def is_finite(self) -> bool:
        """Return True if all weights are finite. Synchronizes with the device."""
        return is_finite(self.network)

    def state_dict(self) -> dict[str, Any]:
        """State of networks, optimizer, metrics and generator."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self._sums,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.refresh()
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._sums.copy_(state["sums"])
        self.generator.set_state(state["generator"])


def _make_optimizer(config: Config, network: nn.Module, working: nn.Module, compute: Compute) -> torch.optim.Optimizer:
    if config.optimizer == "rmsprop":
        return CenteredRMSprop(network.parameters(), lr=config.learning_rate, eps=config.optimizer_epsilon)
    return make_adam(
        network,
        working,
        compute,
        lr=config.learning_rate,
        eps=config.optimizer_epsilon,
        max_grad_norm=config.max_grad_norm,
    )


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def _copy_into(state: dict[Any, dict[str, Tensor]], values: dict[Any, dict[str, Tensor]]) -> None:
    """Copy values into the tensors of an optimizer state in place, because a CUDA graph refers to their addresses."""
    for key, tensors in state.items():
        for name, tensor in tensors.items():
            tensor.copy_(values[key][name])
