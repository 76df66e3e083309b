"""Optimisers that PyTorch does not have, or has differently."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class CentredRMSprop(torch.optim.Optimizer):
    """RMSprop divided by the gradient's standard deviation, epsilon inside the root.

    Graves 2013, "Generating Sequences with Recurrent Neural Networks", equations 38 to 41, without momentum, as the
    2015 DQN uses it: w -= lr * g / sqrt(E[g^2] - E[g]^2 + eps). PyTorch's own adds epsilon outside the root, which for
    an eps of 0.01 and small gradients is another optimiser.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, decay: float = 0.95, eps: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p].update(mean=torch.zeros_like(p), square=torch.zeros_like(p))
            grads = [p.grad for p in params]
            means = [self.state[p]["mean"] for p in params]
            squares = [self.state[p]["square"] for p in params]
            torch._foreach_lerp_(means, grads, 1 - group["decay"])
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, grads, grads, 1 - group["decay"])
            scales = torch._foreach_mul(means, means)
            torch._foreach_neg_(scales)
            torch._foreach_add_(scales, squares)
            torch._foreach_clamp_min_(scales, 0.0)  # rounding can leave a variance of -1e-10
            torch._foreach_add_(scales, group["eps"])
            torch._foreach_sqrt_(scales)
            torch._foreach_addcdiv_(params, grads, scales, -group["lr"])
