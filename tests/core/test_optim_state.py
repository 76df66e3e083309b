"""Optimizer states of a run on another device or in another memory format."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from zerokara.core import optim
from zerokara.core.compute import Compute


def trained(make: Callable[[nn.Module], torch.optim.Optimizer], *, channels_last: bool) -> tuple[nn.Module, Any]:
    """Return a network after three steps, and its optimizer."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    network = Compute(channels_last=channels_last).module(network)
    optimizer = make(network)
    for _ in range(3):
        optim_step(network, optimizer)
    return network, optimizer


def optim_step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)
    optimizer.zero_grad()
    network(x).square().sum().backward()
    optim.clip_and_step(optimizer, None)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_state_fits_another_memory_format(name: optim.OptimizerName, channels_last: bool) -> None:
    def make(network: nn.Module) -> torch.optim.Optimizer:
        return optim.make_optimizer(name, network, learning_rate=0.01, weight_decay=0.1, momentum=0.9)

    network, optimizer = trained(make, channels_last=channels_last)
    other, restored = trained(make, channels_last=not channels_last)
    other.load_state_dict(network.state_dict())
    optim.load_optimizer_state(restored, copy.deepcopy(optimizer.state_dict()))
    for trained_network, its_optimizer in ((network, optimizer), (other, restored)):
        optim_step(trained_network, its_optimizer)
        optim_step(trained_network, its_optimizer)
    for ours, theirs in zip(other.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_state_of_a_gpu_does_not_change_the_kernels() -> None:
    """Adam for a CUDA graph has its learning rate in a tensor, and its step is capturable."""

    def make(network: nn.Module) -> torch.optim.Optimizer:
        return optim.make_adam(network, network, Compute(), lr=0.01, eps=1e-8, max_grad_norm=None)

    network, optimizer = trained(make, channels_last=False)
    state = optimizer.state_dict()
    on_gpu = {**state["param_groups"][0], "lr": torch.tensor(0.02), "capturable": True, "fused": None, "foreach": True}
    _, restored = trained(make, channels_last=False)
    optim.load_optimizer_state(restored, {**state, "param_groups": [on_gpu]})
    group = restored.param_groups[0]
    assert (group["capturable"], group["fused"], group["foreach"]) == (False, True, None)
    assert type(group["lr"]) is float
    assert group["lr"] == pytest.approx(0.02)
    optim_step(network, restored)


def test_a_learning_rate_in_a_tensor_stays_in_it() -> None:
    parameter = nn.Parameter(torch.ones(3))
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam([parameter], lr=rate, fused=True)
    state = optimizer.state_dict()
    optim.load_optimizer_state(optimizer, {**state, "param_groups": [{**state["param_groups"][0], "lr": 0.25}]})
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25
