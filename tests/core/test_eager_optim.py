"""Optimizers without the compiler: the same steps and states as PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.programs import start_with_torch
from zerokara.core import eager_optim

SETTINGS: dict[str, dict[str, object]] = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "fused": True},
    "Adam": {"fused": True, "weight_decay": 0.1},
    "AdamW": {"fused": True, "weight_decay": 0.1},
    "RAdam": {"weight_decay": 0.1},
}


def train(make: Callable[..., torch.optim.Optimizer], name: str) -> tuple[list[Tensor], dict[str, object]]:
    """Do ten steps, with the state saved and restored after the fifth; return the weights and the last state."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(3)]
    optimizer = make([{"params": weights[:2]}, {"params": weights[2:], "lr": 0.003}], lr=0.01, **SETTINGS[name])
    for step in range(10):
        optimizer.zero_grad()
        assert all(weight.grad is None for weight in weights)
        loss = sum(((weight - 1) ** 2).sum() for weight in weights)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        assert all(weight.requires_grad and weight.is_leaf for weight in weights)
        if step == 4:
            state = optimizer.state_dict()
            optimizer = make(weights, lr=0.5, **SETTINGS[name])
            optimizer.param_groups.clear()
            optimizer.add_param_group({"params": weights[:2]})
            optimizer.add_param_group({"params": weights[2:]})
            optimizer.load_state_dict(state)
    return [weight.detach() for weight in weights], optimizer.state_dict()


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_and_states_are_those_of_pytorch(name: str) -> None:
    ours, our_state = train(getattr(eager_optim, name), name)
    theirs, their_state = train(getattr(torch.optim, name), name)
    assert not torch.equal(ours[0], ours[1])
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)
    torch.testing.assert_close(our_state, their_state, rtol=0, atol=0)


def test_the_compiler_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import torch\n"
        "from zerokara.core import eager_optim, optim\n"
        "from zerokara.core.compute import Compute\n"
        "net = torch.nn.Linear(4, 3)\n"
        "made = [getattr(eager_optim, name)(net.parameters(), lr=0.1) for name in ('SGD', 'Adam', 'AdamW', 'RAdam')]\n"
        "options = {'learning_rate': 0.1, 'weight_decay': 0.1, 'momentum': 0.9}\n"
        "made += [optim.make_optimizer(name, net, **options) for name in ('sgd', 'adam', 'adamw', 'muon')]\n"
        "made += [optim.CenteredRMSprop(net.parameters(), lr=0.1)]\n"
        "options = {'lr': 0.1, 'eps': 1e-8, 'max_grad_norm': 1.0}\n"
        "made += [optim.make_adam(net, net, Compute(), rectified=r, **options) for r in (False, True)]\n"
        "for optimizer in made:\n"
        "    optimizer.zero_grad()\n"
        "    net(torch.ones(2, 4)).sum().backward()\n"
        "    optim.clip_and_step(optimizer, 1.0)\n"
        "    optim.load_optimizer_state(optimizer, optimizer.state_dict())\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy') if name in sys.modules])\n"
    )
    assert start_with_torch(tmp_path, "-c", code).communicate() == ("[]\n", "")
