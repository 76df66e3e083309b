"""Optimisers: PyTorch's own, made in one place, and those that it does not have, or has differently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from zerokara.core.compute import Compute

OptimizerName = Literal["sgd", "adam", "adamw", "muon"]
ADAMW_LR_FACTOR = 0.1  # beside Muon: its step of 0.02 goes with 2e-3 for what AdamW moves


def make_optimizer(
    name: OptimizerName,
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
    outputs: Sequence[Tensor] = (),
) -> torch.optim.Optimizer:
    """An optimiser of all of a module's parameters, its steps as one kernel where PyTorch has that.

    Weights of two and more dimensions decay; biases and the gains of normalisation do not.

    Args:
        name: "sgd" is Nesterov's (plain at momentum 0), "adam" has L2 in the gradient, in "adamw" and "muon" weights
            decay by learning_rate * weight_decay in a step. "muon" is for hidden layers: AdamW moves vectors and the
            matrices that give the outputs, at `lr_factor` of the learning rate.
        module: what learns.
        learning_rate: of every group; a schedule that sets group["lr"] multiplies by group.get("lr_factor", 1.0).
        weight_decay: of matrices and filters.
        momentum: of SGD and Muon.
        outputs: the matrices that give the outputs; without, the last one.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    if name == "muon":
        last = {id(p) for p in outputs or matrices[-1:]}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in matrices if id(p) not in last], "muon": True, "weight_decay": weight_decay},
            {
                "params": [p for p in matrices if id(p) in last],
                "lr_factor": ADAMW_LR_FACTOR,
                "weight_decay": weight_decay,
            },
            {"params": vectors, "lr_factor": ADAMW_LR_FACTOR},
        ]
        for group in groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)
        return Muon([group for group in groups if group["params"]], lr=learning_rate, momentum=momentum)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
    return (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(groups, lr=learning_rate, fused=True)


def orthogonalize(matrix_NRC: Tensor, steps: int = 5) -> Tensor:
    """Matrices (N, R, C) with all singular values brought near 1 (0.7 to 1.2) and singular vectors as they were.

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


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for groups with "muon": True; AdamW for the others.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Filters (O, C, h, w) are matrices
    (O, C h w). Matrices of one shape are orthogonalised together. A step is lr * sqrt(max(1, rows / columns)) times a
    matrix whose singular values are near 1.
    """

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
        super().__init__(params, {**defaults, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["muon"] else self._adamw)(params, group)

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        grads = [p.grad for p in params if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's look ahead
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, int], list[int]] = {}
        for place, p in enumerate(params):
            by_shape.setdefault((p.shape[0], p[0].numel()), []).append(place)
        for (rows, columns), places in by_shape.items():
            stacked = torch.stack([ahead[place].reshape(rows, columns) for place in places])
            moves = orthogonalize(stacked) * -(group["lr"] * max(1.0, rows / columns) ** 0.5)
            chosen = [params[place] for place in places]
            torch._foreach_add_(chosen, [move.view(p.shape) for move, p in zip(moves, chosen, strict=True)])

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
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


class CenteredRMSprop(torch.optim.Optimizer):
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


Step = Callable[..., Tensor]


class CompiledAdam(torch.optim.Adam):
    """Adam or RAdam that clips gradients and moves weights in one compiled pass over memory.

    The numbers are those of torch.optim.Adam or torch.optim.RAdam after torch.nn.utils.clip_grad_norm_, and so is the
    state of every weight. A network may work with copies of its weights in 16 bits (Micikevicius et al. 2018, "Mixed
    Precision Training", section 3.1): then the gradients are those of the copies, and the copies follow every step.

    Args:
        kept: the weights, float32.
        used: what has the gradients, in the same order: the weights themselves, or their copies.
        max_grad_norm: norm to which all gradients together are clipped; None: not clipped.
        function: compiles.
        rectified: RAdam (Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", algorithm 2).
    """

    def __init__(
        self,
        kept: Sequence[nn.Parameter],
        used: Sequence[nn.Parameter],
        *,
        lr: float,
        eps: float,
        max_grad_norm: float | None,
        function: Callable[[Step], Step],
        rectified: bool = False,
    ) -> None:
        super().__init__(kept, lr=lr, eps=eps)
        self._pairs = list(zip(kept, used, strict=True))
        self._rectified = rectified
        self._max_grad_norm = max_grad_norm
        self._move = function(_clipped_adam)

    @torch.no_grad()
    def clip_and_step(self) -> Tensor:
        """One update of every weight that has a gradient. Returns the norm of all gradients before clipping."""
        pairs = [(kept, used) for kept, used in self._pairs if used.grad is not None]
        for kept, _ in pairs:
            if not self.state[kept]:
                zeros = (torch.zeros_like(kept), torch.zeros_like(kept))
                self.state[kept].update(step=torch.zeros(()), exp_avg=zeros[0], exp_avg_sq=zeros[1])
        states = [self.state[kept] for kept, _ in pairs]
        group = self.param_groups[0]
        torch._foreach_add_([state["step"] for state in states], 1)
        # Worked out here, because compiled code would take these powers anew for every weight.
        factors = [self._factors(float(state["step"])) for state in states]
        return self._move(
            [kept for kept, _ in pairs],
            [None if used is kept else used for kept, used in pairs],
            [used.grad for _, used in pairs],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            torch.tensor(factors),
            group["betas"],
            self._max_grad_norm,
        )

    def _factors(self, step: float) -> tuple[float, float, float]:
        """Of the mean; of the deviation that it is divided by; and what is added to that."""
        group = self.param_groups[0]
        first, second = (1 - beta**step for beta in group["betas"])
        rate = float(group["lr"]) / first
        if not self._rectified:
            return rate, second**-0.5, group["eps"]
        decay = group["betas"][1]
        longest = 2 / (1 - decay) - 1
        length = longest - 2 * step * (1 - second) / second
        if length <= 5:  # too few gradients to tell a deviation
            return rate, 0.0, 1.0
        share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return rate * (share * second) ** 0.5, 1.0, group["eps"]

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the copies anew from the weights, which somebody else has changed."""
        for kept, used in self._pairs:
            used.copy_(kept)


def _clipped_adam(
    kept: list[Tensor],
    copies: list[Tensor | None],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    factor_P3: Tensor,
    betas: tuple[float, float],
    max_norm: float | None,
) -> Tensor:
    """Kingma and Ba 2015, "Adam", algorithm 1, in place, of clipped gradients, whose norm is returned.

    Args:
        factor_P3: for each of P weights, `CompiledAdam._factors`.
    """
    norm = torch.stack([grad.float().square().sum() for grad in grads]).sum().sqrt()
    scale = 1.0 if max_norm is None else (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for weight, copy, grad, mean, square, factor_3 in zip(
        kept, copies, grads, means, squares, factor_P3.unbind(), strict=True
    ):
        clipped = grad.float() * scale
        mean.lerp_(clipped, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(clipped, clipped, value=1 - betas[1])
        weight.sub_(factor_3[0] * mean / (square.sqrt() * factor_3[1] + factor_3[2]))
        if copy is not None:
            copy.copy_(weight)
    return norm


def clip_and_step(optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> Tensor:
    """A step of any optimiser. Returns the norm of all gradients, before they are clipped to `max_grad_norm`."""
    if isinstance(optimizer, CompiledAdam):
        return optimizer.clip_and_step()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, float("inf") if max_grad_norm is None else max_grad_norm)
    optimizer.step()
    return norm.detach()


def make_adam(
    kept: nn.Module,
    used: nn.Module,
    compute: Compute,
    *,
    lr: float,
    eps: float,
    max_grad_norm: float | None,
    rectified: bool = False,
) -> torch.optim.Optimizer:
    """Adam, or RAdam, for `clip_and_step`: `CompiledAdam` where code is compiled on a CPU, elsewhere PyTorch's.

    On CUDA a captured graph may hold it, and Adam's learning rate is a tensor that can be changed under it.

    Args:
        kept: has the weights.
        used: what passes run through (`Compute.working`).
        lr, eps, max_grad_norm, rectified: as for `CompiledAdam`.
    """
    kind = compute.torch_device.type
    if kind == "cpu" and compute.compile:
        return CompiledAdam(
            list(kept.parameters()),
            list(used.parameters()),
            lr=lr,
            eps=eps,
            max_grad_norm=max_grad_norm,
            function=compute.function,
            rectified=rectified,
        )
    cuda = kind == "cuda"
    if rectified:
        return torch.optim.RAdam(kept.parameters(), lr=lr, eps=eps, capturable=cuda)
    return torch.optim.Adam(
        kept.parameters(),
        lr=torch.tensor(lr, device=compute.torch_device) if cuda else lr,
        eps=eps,
        fused=kind in ("cpu", "cuda"),
        capturable=cuda,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The step size of the updates to come."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)  # where it stands, for a captured update reads it there
        else:
            group["lr"] = value


def refresh_copies(optimizer: torch.optim.Optimizer) -> None:
    """Tell an optimiser that keeps copies of the weights that somebody else has changed these."""
    if isinstance(optimizer, CompiledAdam):
        optimizer.refresh()
