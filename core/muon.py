"""Muon: momentum whose matrices are orthogonalized (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
networks", https://kellerjordan.github.io/posts/muon), and the version of it in airbench.

Every parameter group has "muon": True for matrices and filters, False for the parameters that another method updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from zerokara.core.eager_optim import EagerOptimizer


def orthogonalize(matrix_NRC: Tensor, steps: int = 5) -> Tensor:
    """Move all singular values of matrices (N, R, C) close to 1 (0.7 to 1.2) without changing the singular vectors.

    Newton-Schulz iteration with Jordan's coefficients (https://kellerjordan.github.io/posts/muon), in bfloat16 on a
    GPU, in float32 elsewhere.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix_NRC.bfloat16() if matrix_NRC.is_cuda else matrix_NRC.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix_NRC.dtype)


class Muon(EagerOptimizer):
    """Muon, orthogonalized momentum, for parameter groups with "muon": True; AdamW for the other groups.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Convolution filters (O, C, h, w) are
    reshaped to matrices (O, C h w). Matrices of the same shape are orthogonalized together. An update is
    lr * sqrt(max(1, rows / columns)) times a matrix whose singular values are close to 1.
    """

    newton_schulz_steps: ClassVar[int] = 5

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"muon": False, "lr_factor": 1.0, "lr": lr, "momentum": momentum, "betas": betas, "eps": eps}
        # "fused" tells PyTorch that the step count, which AdamW needs, belongs on the device when a state is restored.
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["muon"] else self._update_others)(params, group)

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        grads = [p.grad for p in params if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
        self._shrink(params, group)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, p in enumerate(params):
            by_shape.setdefault((p.shape[0], p[0].numel()), []).append(index)
        for (rows, columns), indices in by_shape.items():
            stacked = torch.stack([nesterov[index].reshape(rows, columns) for index in indices])
            updates = orthogonalize(stacked, self.newton_schulz_steps) * -(
                group["lr"] * max(1.0, rows / columns) ** 0.5
            )
            selected = [params[index] for index in indices]
            torch._foreach_add_(selected, [update.view(p.shape) for update, p in zip(updates, selected, strict=True)])

    def _shrink(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Apply decoupled weight decay before a step of Muon."""
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])

    def _update_others(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that Muon is not for."""
        for p in params:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p].update(step=step, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class NormalizedMuon(Muon):
    """Muon without weight decay that normalizes its parameters before each step; SGD for the other groups.

    Jordan's airbench94_muon.py (github.com/KellerJordan/cifar10-airbench): three Newton-Schulz steps; before a step,
    filters (O, C, h, w) get the norm sqrt(O), so that the learning rate alone decides how fast their directions change.
    SGD has Nesterov momentum, and its weight decay is added to the gradient.
    """

    newton_schulz_steps = 3

    def _shrink(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Set the norm of each parameter to the square root of its number of outputs."""
        norms = torch._foreach_norm(params)
        torch._foreach_div_(params, [norm / len(p) ** 0.5 for norm, p in zip(norms, params, strict=True)])

    def _update_others(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        decayed = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, decayed)
        torch._foreach_add_(decayed, momenta, alpha=group["momentum"])
        torch._foreach_add_(params, decayed, alpha=-group["lr"])
