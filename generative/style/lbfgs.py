"""L-BFGS without a line search: one evaluation of the loss per step. Its state consists of tensors.

Nocedal and Wright 2006, "Numerical Optimization", algorithm 7.4, with the scaling of equation 7.20. The length of steps
is limited instead of searched: evaluations of the style loss are expensive, and 16-bit precision makes the loss too
noisy for a line search.

Shapes: M stored steps, N optimized numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIN_COSINE = 1e-4  # between step and change of gradient; pairs below it are not stored


class Lbfgs:
    """L-BFGS optimizer of one tensor.

    Args:
        history: maximum M.
        first_step: root mean square of the first step, which follows the negative gradient.
        max_step: maximum root mean square of the other steps.
        first: root mean square of the first step, which goes against the gradient.
        longest: that of any other, at most.
    """

    def __init__(self, history: int, first_step: float, max_step: float) -> None:
        self.history, self.first_step, self.max_step = history, first_step, max_step
        self.steps: list[Tensor] = []
        self.changes: list[Tensor] = []  # of the gradient, along `steps`
        self.last: tuple[Tensor, Tensor] | None = None  # previous x and gradient

    def step(self, x_N: Tensor, gradient_N: Tensor) -> Tensor:
        """Return the next x (N,), given x and its gradient."""
        if self.last is not None:
            step, change = x_N - self.last[0], gradient_N - self.last[1]
            if torch.dot(step, change) > MIN_COSINE * step.norm() * change.norm():
                self.steps.append(step)
                self.changes.append(change)
                del self.steps[: -self.history], self.changes[: -self.history]
        self.last = x_N.clone(), gradient_N.clone()
        direction = -self._times_inverse_hessian(gradient_N)
        rms = direction.square().mean().sqrt().clamp(min=1e-30)
        length = torch.minimum(rms, torch.full_like(rms, self.max_step)) if self.steps else self.first_step
        return x_N + direction * (length / rms)

    def _times_inverse_hessian(self, gradient_N: Tensor) -> Tensor:
        """Multiply by the approximate inverse Hessian: the two-loop recursion over the stored steps."""
        pairs = [(s, y, 1 / torch.dot(s, y)) for s, y in zip(self.steps, self.changes, strict=True)]
        q = gradient_N.clone()
        alphas = []
        for s, y, rho in reversed(pairs):
            alphas.append(rho * torch.dot(s, q))
            q -= alphas[-1] * y
        if pairs:
            _, y, rho = pairs[-1]
            q /= rho * torch.dot(y, y)
        for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            q += (alpha - rho * torch.dot(y, q)) * s
        return q

    def reset(self) -> None:
        """Discard the stored steps."""
        self.steps, self.changes, self.last = [], [], None

    def state_dict(self) -> dict[str, Any]:
        """Return the stored steps as tensors."""
        return {"steps": list(self.steps), "changes": list(self.changes), "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`. Call `to` to move the tensors to a device."""
        self.steps, self.changes, self.last = list(state["steps"]), list(state["changes"]), state["last"]

    def to(self, device: torch.device) -> None:
        """Move the stored steps to a device."""
        self.steps = [x.to(device) for x in self.steps]
        self.changes = [x.to(device) for x in self.changes]
        self.last = None if self.last is None else (self.last[0].to(device), self.last[1].to(device))

    @staticmethod
    def bytes_needed(history: int, numbers: int) -> int:
        """Return the memory for N numbers in bytes, with the temporary tensors of a step."""
        return (2 * history + 6) * 4 * numbers
