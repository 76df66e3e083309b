"""Learner: everything around the loss of an agent, which is in agents/dqn.py or agents/pqn.py.

It holds the network, a target network if the algorithm has one, and the optimizer, and does one gradient step:
precision, compilation, averaging over processes, gradient clipping, sums of metrics, CUDA graphs.

Shapes: B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zerokara.agents.qlearning.heads import ImplicitQuantileHead
from zerokara.agents.qlearning.network import QNetwork
from zerokara.core import checkpoint, optim
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.divergence import pop_means
from zerokara.core.layers import resample_noise

METRICS = ("train/loss", "train/q", "train/grad_norm")
PERTURBED = ("backbone.", "spr.conv")  # parameters that a reset interpolates: backbone and transition model

LossOutput = tuple[Tensor, Tensor, Tensor]  # loss, mean Q-value (scalars), absolute TD errors (B,)


class Learner:
    """Q-network with its optimizer, and optionally a target network.

    Args:
        make_network: creates the network, with the weights of the current random state.
        loss: called with the online network, the target network if there is one, and the tensors given to `step`; it
            runs compiled and under autocast.
        compute: device, precision and compilation.
        world: processes over which gradients are averaged.
        optimizer: adam, radam, or the centered rmsprop of Mnih et al. 2015.
        learning_rate: initial learning rate.
        epsilon: epsilon of the optimizer.
        max_grad_norm: maximum norm for gradient clipping; None: no clipping.
        weight_decay: decoupled weight decay of Adam and RAdam; 0: none.
        target_tau: step of the target network towards the online network in an update of it; 1: the target network is a
            copy. None: no target network.
        average_gradients: average the gradients of every step over the processes. False: each process does its own
            steps, and `average_weights` is called from time to time.
        seed: seed of `generator`, from which the noise of noisy layers and the quantile fractions of IQN are drawn;
            None: no generator.
    """

    target: QNetwork

    def __init__(
        self,
        make_network: Callable[[], QNetwork],
        loss: Callable[..., LossOutput],
        compute: Compute,
        world: World,
        *,
        optimizer: Literal["adam", "radam", "rmsprop"],
        learning_rate: float,
        epsilon: float,
        max_grad_norm: float | None,
        weight_decay: float = 0.0,
        target_tau: float | None = None,
        average_gradients: bool = True,
        seed: int | None = None,
    ) -> None:
        self.compute, self.world, self.max_grad_norm = compute, world, max_grad_norm
        self.has_target, self._target_tau = target_tau is not None, target_tau
        self._average_gradients = average_gradients
        self._make_network, self._loss = make_network, loss
        self.network = compute.module(make_network())
        world.broadcast(self.network)
        if self.has_target:
            self.target = compute.frozen(copy.deepcopy(self.network))
            if self.target.has_custom_backbone:  # which may have BatchNorm or dropout
                self.target.backbone.eval()
        # Moving average of the parameters in float32: the target network may have 16 bits, too few for small steps.
        averaged = self.network.parameters() if target_tau is not None and target_tau < 1 else ()
        self._average = [parameter.detach().clone() for parameter in averaged]
        # Copy in lower precision for forward and backward passes, where `compute` uses one; otherwise the same network.
        self.online = self.network if optimizer == "rmsprop" else compute.working_copy(self.network)
        self.optimizer: torch.optim.Optimizer
        if optimizer == "rmsprop":
            self.optimizer = optim.CenteredRMSprop(self.network.parameters(), lr=learning_rate, eps=epsilon)
        else:
            self.optimizer = optim.make_adam(
                self.network,
                self.online,
                compute,
                lr=learning_rate,
                eps=epsilon,
                max_grad_norm=max_grad_norm,
                rectified=optimizer == "radam",
                weight_decay=weight_decay,
            )
        self.generator = None if seed is None else torch.Generator(compute.torch_device).manual_seed(seed)
        self._forward = compute.function(self._forward_eager)
        self._converted = compute.converter()
        # Sums since the last `read_metrics`: loss, mean Q, gradient norm, number of updates. They stay on the device.
        self._sums = torch.zeros(4, device=compute.torch_device)

    @property
    def _averages_gradients(self) -> bool:
        """True if a step needs the gradients of other processes."""
        return self._average_gradients and self.world.size > 1

    @property
    def _networks(self) -> tuple[QNetwork, ...]:
        return (self.online, self.target) if self.has_target else (self.online,)

    @property
    def _is_random(self) -> bool:
        """True if the update draws from `generator`: noisy layers, or quantile fractions of IQN."""
        return self.network.has_train_mode or isinstance(self.network.head, ImplicitQuantileHead)

    def _forward_eager(self, *tensors: Tensor | None) -> LossOutput:
        with self.compute.autocast():
            return self._loss(*self._networks, *tensors)

    def step(self, *tensors: Tensor | None) -> Tensor:
        """Do one gradient step on the loss of `tensors`. Returns the TD errors (B,), as the loss returned them."""
        if self.network.has_train_mode:
            self.online.train()
        loss, mean_q, td_error_B = self._forward(*(None if x is None else self._converted(x) for x in tensors))
        self.online.zero_grad(set_to_none=True)
        loss.backward()
        if self._averages_gradients:
            self.world.mean_gradients(self.online.parameters(), self.network.parameters())
        norm = optim.clip_and_step(self.optimizer, self.max_grad_norm)
        self._sums += torch.stack([loss.detach(), mean_q, norm, torch.ones_like(mean_q)])
        return td_error_B

    def resample_noise(self) -> None:
        """Draw new noise for the noisy layers of both networks."""
        if self.network.has_train_mode and self.generator is not None:
            for network in (self.online, self.target):
                resample_noise(network, self.generator)

    def sample_taus(self, batch_size: int) -> tuple[Tensor | None, Tensor | None]:
        """Quantile fractions of one update for the online and the target network; None for heads without quantiles."""
        assert self.generator is not None
        return self.network.head.sample_taus(batch_size, self.generator)

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the optimizer."""
        optim.set_learning_rate(self.optimizer, rate)

    def update_target_network(self) -> None:
        """Move the target network towards the online network (Polyak averaging).

        target = (1 - tau) target + tau online; with tau = 1 it becomes a copy. Buffers, such as the statistics of
        BatchNorm, are always copied.
        """
        if self._target_tau is None or self._target_tau == 1:
            self.copy_to_target_network()
            return
        with torch.no_grad():
            torch._foreach_lerp_(self._average, list(self.network.parameters()), self._target_tau)
            torch._foreach_copy_(_tensors(self.target), [*self._average, *self.network.buffers()])

    def copy_to_target_network(self) -> None:
        """Copy the online network into the target network."""
        with torch.no_grad():
            torch._foreach_copy_(_tensors(self.target), _tensors(self.network))
            if self._average:
                torch._foreach_copy_(self._average, list(self.network.parameters()))

    def average_weights(self) -> None:
        """Replace the weights by their means over the processes, which keep their own states of the optimizer."""
        self.world.mean_weights(self.network)
        self.refresh()

    def reset(self, seed: int, perturb_factor: float) -> None:
        """Reinitialize the head and perturb the backbone (shrink and perturb).

        The backbone is interpolated towards newly initialized weights, and with SPR the transition model, too, while
        its predictor is reinitialized (`shrink_perturb_keys` in the code of BBF). The optimizer state is set to zero,
        and the target network becomes a copy of the online network. D'Oro et al. 2023, "Sample-Efficient
        Reinforcement Learning by Breaking the Replay Ratio Barrier", after Nikishin et al. 2022; the interpolation
        factor of the backbone follows Schwarzer et al. 2023, "Bigger, Better, Faster", section 3.

        Args:
            seed: seed of the new weights, the same in every process.
            perturb_factor: weight of the new weights in them: 0 keeps them, 1 replaces them.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = dict(self.compute.module(self._make_network()).named_parameters())
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                weight.lerp_(fresh[name], perturb_factor if name.startswith(PERTURBED) else 1.0)
            for tensors in self.optimizer.state_dict()["state"].values():
                torch._foreach_zero_(list(tensors.values()))
        self.update_copies()

    def refresh(self) -> None:
        """Update the working copy after a change of the weights that was not made by the optimizer."""
        optim.refresh_copies(self.optimizer)

    def update_copies(self) -> None:
        """Update working copy and target network after a change of the weights that was not made by the optimizer."""
        self.refresh()
        if self.has_target:
            self.copy_to_target_network()

    # ---- CUDA graph

    def graphed(
        self, update: Callable[[], object], generators: Iterable[torch.Generator] = (), tensors: Sequence[Tensor] = ()
    ) -> Callable[[], object]:
        """Return `update` as a function that runs from a CUDA graph. On other devices it is `update` itself.

        The first call runs eagerly, because Adam allocates its state in the first step, which must not be part of the
        graph; then the graph is captured.

        Args:
            update: calls `step` once, without synchronizing with the device.
            generators: random generators that it uses, besides that of the learner.
            tensors: tensors that it modifies, besides those of the learner.
        """
        if self.compute.torch_device.type != "cuda" or self._averages_gradients:
            return update
        replay: Callable[[], object] | None = None

        def first_eager_then_graph() -> None:
            nonlocal replay
            if replay is None:
                update()
                own = (self.generator,) if self.generator is not None and self._is_random else ()
                replay = self._capture(update, (*generators, *own), tensors)
            else:
                replay()

        return first_eager_then_graph

    def _capture(
        self, update: Callable[[], object], generators: tuple[torch.Generator, ...], tensors: Sequence[Tensor]
    ) -> Callable[[], object]:
        """Capture a CUDA graph of `update`. State changed by the warm-up runs before the capture is restored."""
        modules = (self.network, self.target) if self.has_target else (self.network,)
        others = [self._sums, *tensors]
        before = copy.deepcopy(([m.state_dict() for m in modules], self.optimizer.state_dict(), others))
        generator_states = [generator.get_state() for generator in generators]
        graph = self.compute.graph(update, generators)
        for generator, state in zip(generators, generator_states, strict=True):
            generator.set_state(state)
        for module, weights in zip(modules, before[0], strict=True):
            module.load_state_dict(weights)
        _copy_into(self.optimizer.state_dict()["state"], before[1]["state"])
        torch._foreach_copy_(others, before[2])
        return graph

    # ---- metrics and state

    def read_metrics(self) -> dict[str, Tensor]:
        """Means of the training metrics since the last call, as tensors on the device."""
        return pop_means(self._sums, METRICS)

    def state_dict(self) -> dict[str, Any]:
        """State of networks, optimizer, metrics and generator."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self._sums,
        }
        if self.has_target:
            state["target"] = self.target.state_dict()
        if self._average:
            state["target_average"] = self._average
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.refresh()
        if self.has_target:
            self.target.load_state_dict(state["target"])
        if self._average:
            torch._foreach_copy_(self._average, state["target_average"])
        optim.load_optimizer_state(self.optimizer, state["optimizer"])
        self._sums.copy_(state["sums"])
        if self.generator is not None:
            checkpoint.restore_generator(self.generator, state["generator"])

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> None:
        """Restore the networks, which are the same in all processes; see `agents.training.parts.Stateful`."""
        seed = None if self.generator is None else self.generator.initial_seed()
        self.load_state_dict(states.get(rank, states[0]))
        if self.generator is not None and seed is not None:
            self.generator.manual_seed(checkpoint.later_seed(seed, step))


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def _copy_into(state: dict[Any, dict[str, Tensor]], values: dict[Any, dict[str, Tensor]]) -> None:
    """Copy values into the tensors of an optimizer state in place, because a CUDA graph refers to their addresses."""
    for key, tensors in state.items():
        for name, tensor in tensors.items():
            tensor.copy_(values[key][name])
