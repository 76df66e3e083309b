"""An average of the weights over the steps of training, which often does better than the last weights.

ema = Ema(module, half_life_steps=500)
...
ema.update(module)  # after each step of the optimiser
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
RAMP = 0.05  # of the steps so far: the half-life until the asked one is reached


class Ema(Generic[ModuleT]):
    """An exponential moving average of a module's weights and of its buffers.

    The half-life grows with the steps, to at most a twentieth of them (Karras et al. 2020, the ramp of StyleGAN2's
    code), so that a young average is not full of the random weights that training began with.

    BatchNorm's running mean and variance are averaged too. They then nearly fit the averaged weights, which the last
    ones do not; `recalibrate` makes them fit exactly. What counts (integers) is copied.
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
        """Move the average towards the weights that a step has led to."""
        self.steps += 1
        half_life_steps = min(self.half_life_steps, RAMP * self.steps)
        floats, counts = _tensors(module)
        torch._foreach_lerp_(self._tensors[0], floats, 1 - 0.5 ** (1 / half_life_steps))
        if counts:
            torch._foreach_copy_(self._tensors[1], counts)

    @torch.no_grad()
    def restart(self, module: ModuleT) -> None:
        """Forget everything and begin with these weights."""
        self.steps = 0
        for mine, its in zip(self._tensors, _tensors(module), strict=True):
            if mine:
                torch._foreach_copy_(mine, its)

    @torch.no_grad()
    def recalibrate(self, batches: Iterable[Tensor]) -> None:
        """Measure BatchNorm's statistics again with the averaged weights.

        Mean and variance are those of all values in all batches, not the mean over the batches' own; a layer sees what
        the layers before it make of a batch by the batch's own statistics, as in training. Nothing else, dropout for
        instance, leaves evaluation mode.

        Args:
            batches: inputs of the module; more than one value for each channel, as for BatchNorm itself.
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
                stack.callback(layer.register_forward_hook(_Moments().gather).remove)
            for batch in batches:
                self.module(batch)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"module": self.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.steps = state["steps"]


class _Moments:
    """Mean and variance of everything that reaches one layer, combined batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.number = 0

    def gather(self, layer: _BatchNorm, inputs: tuple[Tensor], output: Tensor) -> None:
        """Put the moments so far into the layer, in place of its own moving averages."""
        x_BC = inputs[0].float()
        over = [axis for axis in range(x_BC.ndim) if axis != 1]
        number = x_BC.numel() // x_BC.shape[1]
        variance_C, mean_C = torch.var_mean(x_BC, over, correction=0)
        if self.number == 0:
            self.mean_C, self.squares_C = torch.zeros_like(mean_C), torch.zeros_like(mean_C)
        total = self.number + number
        gap_C = mean_C - self.mean_C
        self.mean_C = self.mean_C + gap_C * (number / total)
        self.squares_C = self.squares_C + variance_C * number + gap_C.square() * (self.number * number / total)
        self.number = total
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(self.mean_C)
        layer.running_var.copy_(self.squares_C / (total - 1))


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What is averaged, and what is copied."""
    tensors = [*module.parameters(), *module.buffers()]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
