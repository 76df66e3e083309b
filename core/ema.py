"""Exponential moving average (EMA) of the weights during training, which often performs better than the last weights.

ema = Ema(module, half_life_steps=500)
...
ema.update(module)  # after each step of the optimizer
ema.module(x)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ModuleT = TypeVar("ModuleT", bound=nn.Module)
RAMP = 0.05  # the half-life is at most this fraction of the steps so far


class Ema(Generic[ModuleT]):
    """Exponential moving average of the parameters and buffers of a module.

    The half-life is limited to a twentieth of the steps so far (Karras et al. 2020, the EMA ramp of StyleGAN2's code),
    so that the initial random weights have little influence on the average early in training.

    The running mean and variance of BatchNorm layers are averaged too: they then approximately match the averaged
    weights, and `recalibrate` computes them exactly. Integer buffers, such as counters, are copied.
    """

    def __init__(self, module: ModuleT, half_life_steps: float) -> None:
        if half_life_steps <= 0:
            raise ValueError(f"the half-life must be more than 0 steps, got {half_life_steps}")
        self.half_life_steps = half_life_steps
        self.module: ModuleT = copy.deepcopy(module).eval().requires_grad_(False)
        self.steps = 0
        self._tensors = _tensors(self.module)

    @torch.no_grad()
    def update(self, module: ModuleT) -> None:
        """Update the average with the weights after a training step."""
        self.steps += 1
        half_life_steps = min(self.half_life_steps, RAMP * self.steps)
        floats, integers = _tensors(module)
        torch._foreach_lerp_(self._tensors[0], floats, 1 - 0.5 ** (1 / half_life_steps))
        if integers:
            torch._foreach_copy_(self._tensors[1], integers)

    @torch.no_grad()
    def restart(self, module: ModuleT) -> None:
        """Restart the average from the weights of a module."""
        self.steps = 0
        for averaged, current in zip(self._tensors, _tensors(module), strict=True):
            if averaged:
                torch._foreach_copy_(averaged, current)

    @torch.no_grad()
    def recalibrate(self, batches: Iterable[Tensor]) -> None:
        """Recompute the running statistics of BatchNorm layers with the averaged weights.

        Mean and variance are taken over all values of all batches, not averaged over batches. Meanwhile each BatchNorm
        layer normalizes by the statistics of the current batch, as in training; all other layers, such as dropout, stay
        in evaluation mode.

        Args:
            batches: inputs of the module; each must have more than one value per channel, as BatchNorm requires.
        """
        layers = [
            layer for layer in self.module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats
        ]
        if not layers:
            return
        with ExitStack() as stack:
            for layer in layers:
                layer.reset_running_stats()
                layer.train()
                stack.callback(layer.eval)
                stack.callback(layer.register_forward_hook(_Moments().update).remove)
            for batch in batches:
                self.module(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors and plain values."""
        return {"module": self.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.steps = state["steps"]


class _Moments:
    """Mean and variance of all inputs of one layer, combined batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, layer: _BatchNorm, inputs: tuple[Tensor], output: Tensor) -> None:
        """Add a batch, and set the layer's running statistics. To be registered as a forward hook."""
        x_BC = inputs[0].float()
        axes = [axis for axis in range(x_BC.ndim) if axis != 1]
        count = x_BC.numel() // x_BC.shape[1]
        variance_C, mean_C = torch.var_mean(x_BC, axes, correction=0)
        if self.count == 0:
            self.mean_C, self.squares_C = torch.zeros_like(mean_C), torch.zeros_like(mean_C)
        total = self.count + count
        delta_C = mean_C - self.mean_C
        self.mean_C = self.mean_C + delta_C * (count / total)
        self.squares_C = self.squares_C + variance_C * count + delta_C.square() * (self.count * count / total)
        self.count = total
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(self.mean_C)
        layer.running_var.copy_(self.squares_C / (total - 1))


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters and buffers of a module: floating-point tensors, and integer tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
