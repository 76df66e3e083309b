"""Optimizers: constructors for PyTorch's own, and optimizers that PyTorch lacks or defines differently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from zerokara.core.compute import Compute
from zerokara.core.eager_optim import SGD, Adam, AdamW, EagerOptimizer, RAdam
from zerokara.core.muon import Muon, NormalizedMuon

OptimizerName = Literal["sgd", "adam", "adamw", "muon", "muon_sgd"]
ADAMW_LR_FACTOR = 0.1  # beside Muon: a learning rate of 0.02 for Muon means 0.002 for AdamW's parameters
_KERNELS = ("fused", "capturable", "foreach", "differentiable")  # settings of an optimizer that select its kernels


class GroupSettings(TypedDict, total=False):
    """Arguments of `make_optimizer` for the parameters that "muon_sgd" updates with SGD."""

    output_learning_rate: float | None
    bias_learning_rate: float | None
    sgd_momentum: float


def make_optimizer(
    name: OptimizerName,
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
    outputs: Sequence[Tensor] = (),
    output_learning_rate: float | None = None,
    bias_learning_rate: float | None = None,
    sgd_momentum: float = 0.85,
) -> torch.optim.Optimizer:
    """Create an optimizer of all trainable parameters of a module, with fused kernels where PyTorch has them.

    Weight decay applies to parameters of two and more dimensions, not to biases and the gains of normalization layers;
    with "muon_sgd" it applies to biases, gains and the output layers, because filters are normalized.

    Args:
        name: "sgd" with Nesterov momentum (plain SGD if momentum is 0); "adam" with L2 regularization in the gradient;
            "adamw" and "muon" with decoupled weight decay, learning_rate * weight_decay per step. "muon" is for the
            matrices of hidden layers: AdamW updates vectors and the matrices of the output layers, with the learning
            rate times `lr_factor`. "muon_sgd" is airbench's: Muon with normalized weights, and SGD with Nesterov
            momentum for vectors and output layers, whose weight decay is that of an update whatever the learning rate.
        module: module to train.
        learning_rate: of every group. A schedule that sets group["lr"] must multiply by group.get("lr_factor", 1.0).
        weight_decay: of matrices and convolution filters.
        momentum: of SGD and Muon.
        outputs: matrices of the output layers; empty: the last matrix.
        output_learning_rate: of the output layers, with "muon_sgd"; None: `learning_rate`.
        bias_learning_rate: of vectors, with "muon_sgd"; None: `learning_rate`.
        sgd_momentum: of SGD, with "muon_sgd".
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if name == "muon_sgd":
        matrices, last = _split_outputs(parameters, outputs)
        groups: list[dict[str, Any]] = [{"params": matrices, "muon": True, "lr": learning_rate}]
        vectors = [p for p in parameters if p.ndim < 2]
        for params, rate in (
            (last, output_learning_rate or learning_rate),
            (vectors, bias_learning_rate or learning_rate),
        ):
            sgd = {"lr": rate, "lr_factor": rate / learning_rate, "momentum": sgd_momentum}
            groups.append({"params": params, **sgd, "weight_decay": weight_decay / rate})
        return NormalizedMuon([group for group in groups if group["params"]], lr=learning_rate, momentum=momentum)
    if name == "muon":
        matrices, last = _split_outputs(parameters, outputs)
        groups = [
            {"params": matrices, "muon": True, "weight_decay": weight_decay},
            {"params": last, "lr_factor": ADAMW_LR_FACTOR, "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "lr_factor": ADAMW_LR_FACTOR},
        ]
        for group in groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)
        return Muon([group for group in groups if group["params"]], lr=learning_rate, momentum=momentum)
    groups = _decay_groups(parameters, weight_decay)
    if name == "sgd":
        return SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
    return (Adam if name == "adam" else AdamW)(groups, lr=learning_rate, fused=True)


def _split_outputs(parameters: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the matrices and filters of hidden layers, and the matrices of output layers (none given: the last)."""
    matrices = [p for p in parameters if p.ndim >= 2]
    last = {id(p) for p in outputs or matrices[-1:]}
    return [p for p in matrices if id(p) not in last], [p for p in matrices if id(p) in last]


def _decay_groups(parameters: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups with weight decay for matrices and filters, and without for biases and gains."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class CenteredRMSprop(EagerOptimizer):
    """Centered RMSprop with epsilon inside the square root.

    Graves 2013, "Generating Sequences with Recurrent Neural Networks", equations 38 to 41, without momentum, as used by
    the DQN of 2015: w -= lr * g / sqrt(E[g^2] - E[g]^2 + eps). PyTorch's RMSprop adds epsilon outside the square root,
    which gives very different updates for eps = 0.01 and small gradients.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, decay: float = 0.95, eps: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
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
            torch._foreach_clamp_min_(scales, 0.0)  # rounding errors can make the variance negative
            torch._foreach_add_(scales, group["eps"])
            torch._foreach_sqrt_(scales)
            torch._foreach_addcdiv_(params, grads, scales, -group["lr"])


Step = Callable[..., Tensor]


class CompiledAdam(Adam):
    """Adam or RAdam that clips gradients and updates weights in one compiled pass over memory.

    The updates equal those of torch.nn.utils.clip_grad_norm_ followed by torch.optim.Adam or torch.optim.RAdam, and so
    does the state. A network may compute with 16-bit copies of its float32 master weights (Micikevicius et al. 2018,
    "Mixed Precision Training", section 3.1): then the gradients are those of the copies, and every step updates both.
    If the master weights have gradients, such as means over processes in float32 (`World.mean_gradients`), these count.

    Args:
        master: float32 weights.
        working: parameters that have the gradients, in the same order: the master weights themselves or their copies.
        lr: learning rate.
        eps: added to the denominator.
        max_grad_norm: maximum norm of all gradients together; None: no clipping.
        function: compiles a function.
        rectified: use RAdam (Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and Beyond", algorithm 2).
        weight_decay: decoupled weight decay of matrices and filters, as `make_adam`.
    """

    def __init__(
        self,
        master: Sequence[nn.Parameter],
        working: Sequence[nn.Parameter],
        *,
        lr: float,
        eps: float,
        max_grad_norm: float | None,
        function: Callable[[Step], Step],
        rectified: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        groups: ParamsT = _decay_groups(master, weight_decay) if weight_decay else master
        super().__init__(groups, lr=lr, eps=eps, decoupled_weight_decay=weight_decay > 0)
        self._pairs = list(zip(master, working, strict=True))
        self._weight_decay = weight_decay
        self._rectified = rectified
        self._max_grad_norm = max_grad_norm
        self._move = function(_clipped_adam)

    @torch.no_grad()
    def clip_and_step(self) -> Tensor:
        """Update every weight that has a gradient. Returns the norm of all gradients before clipping."""
        pairs = [(master, working) for master, working in self._pairs if working.grad is not None]
        for master, _ in pairs:
            if not self.state[master]:
                zeros = (torch.zeros_like(master), torch.zeros_like(master))
                self.state[master].update(step=torch.zeros(()), exp_avg=zeros[0], exp_avg_sq=zeros[1])
        states = [self.state[master] for master, _ in pairs]
        group = self.param_groups[0]
        torch._foreach_add_([state["step"] for state in states], 1)
        # Computed outside the compiled function, which would compute these powers again for every weight.
        factors = [self._factors(float(state["step"])) for state in states]
        return self._move(
            [master for master, _ in pairs],
            [None if working is master else working for master, working in pairs],
            [working.grad if master.grad is None else master.grad for master, working in pairs],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            torch.tensor(factors),
            [self._weight_decay > 0 and master.ndim >= 2 for master, _ in pairs],
            group["betas"],
            self._max_grad_norm,
        )

    def _factors(self, step: float) -> tuple[float, float, float, float]:
        """Return factors (a, b, c, d) of the update a * mean / (b * sqrt(square) + c) of a weight at a step.

        d is the fraction of the weight that remains after weight decay, where it applies.
        """
        group = self.param_groups[0]
        first, second = (1 - beta**step for beta in group["betas"])
        rate = float(group["lr"]) / first
        remaining = 1 - float(group["lr"]) * self._weight_decay
        if not self._rectified:
            return rate, second**-0.5, group["eps"], remaining
        decay = group["betas"][1]
        max_length = 2 / (1 - decay) - 1  # rho_infinity in the paper; `length` is rho_t
        length = max_length - 2 * step * (1 - second) / second
        if length <= 5:  # too few gradients to estimate the variance
            return rate, 0.0, 1.0, remaining
        rectification = (length - 4) * (length - 2) * max_length / ((max_length - 4) * (max_length - 2) * length)
        return rate * (rectification * second) ** 0.5, 1.0, group["eps"], remaining

    @torch.no_grad()
    def refresh(self) -> None:
        """Update the 16-bit copies after code other than this optimizer has changed the master weights."""
        for master, working in self._pairs:
            working.copy_(master)


def _clipped_adam(
    master: list[Tensor],
    copies: list[Tensor | None],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    factor_P4: Tensor,
    decays: list[bool],
    betas: tuple[float, float],
    max_norm: float | None,
) -> Tensor:
    """Clip the gradients and apply Adam in place (Kingma and Ba 2015, algorithm 1).

    With weight decay it is AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2).

    Args:
        master: float32 weights.
        copies: 16-bit copies of the weights to update too; None where there is no copy.
        grads: gradients.
        means: moving averages of the gradients.
        squares: moving averages of the squared gradients.
        factor_P4: `CompiledAdam._factors` of each of P weights.
        decays: True for weights with weight decay.
        betas: decay rates of the two averages.
        max_norm: maximum norm of all gradients together; None: no clipping.

    Returns:
        norm of all gradients before clipping.
    """
    norm = torch.stack([grad.float().square().sum() for grad in grads]).sum().sqrt()
    scale = 1.0 if max_norm is None else (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for weight, copy, grad, mean, square, factor_4, is_decayed in zip(
        master, copies, grads, means, squares, factor_P4.unbind(), decays, strict=True
    ):
        clipped = grad.float() * scale
        mean.lerp_(clipped, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(clipped, clipped, value=1 - betas[1])
        if is_decayed:
            weight.mul_(factor_4[3])
        weight.sub_(factor_4[0] * mean / (square.sqrt() * factor_4[1] + factor_4[2]))
        if copy is not None:
            copy.copy_(weight)
    return norm


def clip_and_step(optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> Tensor:
    """Clip gradients to `max_grad_norm` and step any optimizer. Returns the norm of all gradients before clipping."""
    if isinstance(optimizer, CompiledAdam):
        return optimizer.clip_and_step()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, float("inf") if max_grad_norm is None else max_grad_norm)
    optimizer.step()
    return norm.detach()


def make_adam(
    master: nn.Module,
    working: nn.Module,
    compute: Compute,
    *,
    lr: float,
    eps: float,
    max_grad_norm: float | None,
    rectified: bool = False,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Create Adam or RAdam for `clip_and_step`: `CompiledAdam` with compilation on a CPU, otherwise PyTorch's.

    On CUDA the optimizer can be captured in a CUDA graph; Adam's learning rate is then a tensor, so that it can change.

    Args:
        master: module with the float32 weights.
        working: module used in forward and backward passes (`Compute.working_copy`).
        compute: device and compilation.
        lr, eps, max_grad_norm, rectified: as for `CompiledAdam`.
        weight_decay: decoupled weight decay, lr * weight_decay per step, of parameters of two and more dimensions, not
            of biases and the gains of normalization layers; 0: none.
    """
    kind = compute.torch_device.type
    if kind == "cpu" and compute.compile:
        return CompiledAdam(
            list(master.parameters()),
            list(working.parameters()),
            lr=lr,
            eps=eps,
            max_grad_norm=max_grad_norm,
            function=compute.function,
            rectified=rectified,
            weight_decay=weight_decay,
        )
    cuda, parameters = kind == "cuda", list(master.parameters())
    groups: ParamsT = _decay_groups(parameters, weight_decay) if weight_decay else parameters
    if rectified:
        return RAdam(groups, lr=lr, eps=eps, capturable=cuda, decoupled_weight_decay=weight_decay > 0)
    return (AdamW if weight_decay else Adam)(
        groups,
        lr=torch.tensor(lr, device=compute.torch_device) if cuda else lr,
        eps=eps,
        fused=kind in ("cpu", "cuda"),
        capturable=cuda,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)  # in place, because a captured CUDA graph reads this memory
        else:
            group["lr"] = value


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimizer from its `state_dict`, perhaps from a run on another device or in another memory format.

    Fused or capturable kernels and a learning rate that is a tensor stay as the optimizer was created with them:
    PyTorch would take them from the state. The state of a parameter gets its memory format, because fused kernels read
    memory without regard to formats.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    groups = [
        {**saved, **{key: group[key] for key in _KERNELS if key in group}}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate.fill_(group["lr"]) if isinstance(rate, Tensor) else float(group["lr"])
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def refresh_copies(optimizer: torch.optim.Optimizer) -> None:
    """Update the 16-bit copies, if the optimizer has any, after other code has changed the weights."""
    if isinstance(optimizer, CompiledAdam):
        optimizer.refresh()
