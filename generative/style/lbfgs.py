"""L-BFGS without a line search: one look at the loss for a step, and all that it remembers is in tensors.

Nocedal and Wright 2006, "Numerical Optimization", algorithm 7.4, with the scaling of equation 7.20. In the place of a
line search steps are kept short: the loss of style transfer is dear, and 16 bits make it too rough to be searched along
a line.

Shapes: M remembered steps, N numbers that are optimised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLAT = 1e-4  # cosine between step and change of gradient below which a pair says nothing of the curvature


class Lbfgs:
    """Minimises over the numbers of one tensor.

    Args:
        history: M at most.
        first: root mean square of the first step, which goes against the gradient.
        longest: that of any other, at most.
    """

    def __init__(self, history: int, first: float, longest: float) -> None:
        self.history, self.first, self.longest = history, first, longest
        self.steps: list[Tensor] = []
        self.changes: list[Tensor] = []  # of the gradient
        self.last: tuple[Tensor, Tensor] | None = None  # where the last step began, and the gradient there

    def step(self, x_N: Tensor, gradient_N: Tensor) -> Tensor:
        """The next x (N,), from x and the gradient there."""
        if self.last is not None:
            step, change = x_N - self.last[0], gradient_N - self.last[1]
            if torch.dot(step, change) > FLAT * step.norm() * change.norm():
                self.steps.append(step)
                self.changes.append(change)
                del self.steps[: -self.history], self.changes[: -self.history]
        self.last = x_N.clone(), gradient_N.clone()
        direction = -self._times_inverse_hessian(gradient_N)
        rms = direction.square().mean().sqrt().clamp(min=1e-30)
        length = torch.minimum(rms, torch.full_like(rms, self.longest)) if self.steps else self.first
        return x_N + direction * (length / rms)

    def _times_inverse_hessian(self, gradient_N: Tensor) -> Tensor:
        """The two loops over what is remembered, from the newest to the oldest and back."""
        pairs = [(s, y, 1 / torch.dot(s, y)) for s, y in zip(self.steps, self.changes, strict=True)]
        q = gradient_N.clone()
        shares = []
        for s, y, curvature in reversed(pairs):
            shares.append(curvature * torch.dot(s, q))
            q -= shares[-1] * y
        if pairs:
            _, y, curvature = pairs[-1]
            q /= curvature * torch.dot(y, y)
        for (s, y, curvature), share in zip(pairs, reversed(shares), strict=True):
            q += (share - curvature * torch.dot(y, q)) * s
        return q

    def forget(self) -> None:
        """Begin anew, as after a leap."""
        self.steps, self.changes, self.last = [], [], None

    def state_dict(self) -> dict[str, Any]:
        """Tensors."""
        return {"steps": list(self.steps), "changes": list(self.changes), "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; tensors go where they are needed by `to`."""
        self.steps, self.changes, self.last = list(state["steps"]), list(state["changes"]), state["last"]

    def to(self, device: torch.device) -> None:
        """Move what is remembered to a device."""
        self.steps = [x.to(device) for x in self.steps]
        self.changes = [x.to(device) for x in self.changes]
        self.last = None if self.last is None else (self.last[0].to(device), self.last[1].to(device))

    @staticmethod
    def bytes_needed(history: int, numbers: int) -> int:
        """Memory in bytes for N numbers, with what a step takes for a moment."""
        return (2 * history + 6) * 4 * numbers
