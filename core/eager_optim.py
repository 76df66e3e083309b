"""PyTorch's optimizers for code that is not compiled, without the import of the compiler.

PyTorch protects the methods of its optimizers from compilation with decorators, and the first call of one of them
imports torch._dynamo, which takes seconds. These classes have the same methods without the decorators.
"""

from __future__ import annotations

from inspect import unwrap

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """Base class of optimizers whose methods are not called in compiled code."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(EagerOptimizer, torch.optim.SGD):
    """torch.optim.SGD."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class Adam(EagerOptimizer, torch.optim.Adam):
    """torch.optim.Adam."""

    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """torch.optim.AdamW."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class RAdam(EagerOptimizer, torch.optim.RAdam):
    """torch.optim.RAdam."""

    step = torch.no_grad()(unwrap(torch.optim.RAdam.step))
