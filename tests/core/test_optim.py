"""Centred RMSprop against two steps by hand, and against a loop in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from core.optim import CentredRMSprop


def test_two_steps_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = CentredRMSprop([w], lr=0.1, decay=0.9, eps=0.01)
    w.grad = torch.tensor([2.0])
    optimizer.step()
    # mean .1 * 2 = .2, square .1 * 4 = .4, variance .4 - .04 = .36
    first = 1 - 0.1 * 2 / math.sqrt(0.36 + 0.01)
    assert w.item() == pytest.approx(first, rel=1e-6)
    w.grad = torch.tensor([-1.0])
    optimizer.step()
    # mean .18 - .1 = .08, square .36 + .1 = .46, variance .46 - .0064
    assert w.item() == pytest.approx(first + 0.1 / math.sqrt(0.46 - 0.0064 + 0.01), rel=1e-6)


def test_epsilon_stands_inside_the_root() -> None:
    w = nn.Parameter(torch.tensor([0.0]))
    optimizer = CentredRMSprop([w], lr=1.0, decay=0.95, eps=0.01)
    w.grad = torch.tensor([1e-4])
    optimizer.step()
    # A small gradient is divided by sqrt(.01) = .1; outside the root, it would be by about .01.
    assert w.item() == pytest.approx(-1e-3, rel=1e-3)


def test_many_steps_equal_a_loop_in_float64() -> None:
    rng = np.random.default_rng(3)
    shapes = [(3, 4), (5,), (2, 2, 3)]
    params = [nn.Parameter(torch.from_numpy(rng.normal(size=shape)).float()) for shape in shapes]
    expected = [p.detach().double().numpy().copy() for p in params]
    mean = [np.zeros(shape) for shape in shapes]
    square = [np.zeros(shape) for shape in shapes]
    optimizer = CentredRMSprop(params, lr=2.5e-3)
    for _ in range(60):
        for i, p in enumerate(params):
            g = rng.normal(size=shapes[i]).astype(np.float32)
            p.grad = torch.from_numpy(g.copy())
            mean[i] = 0.95 * mean[i] + 0.05 * g.astype(np.float64)
            square[i] = 0.95 * square[i] + 0.05 * g.astype(np.float64) ** 2
            expected[i] -= 2.5e-3 * g / np.sqrt(square[i] - mean[i] ** 2 + 0.01)
        optimizer.step()
    for p, e in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), e, rtol=1e-4, atol=1e-5)


def test_a_constant_gradient_never_takes_the_root_of_less_than_nothing() -> None:
    w = nn.Parameter(torch.zeros(1000))
    optimizer = CentredRMSprop([w], lr=1e-4, decay=0.5, eps=1e-12)
    gradient = torch.rand(1000) * 1000
    for _ in range(200):
        w.grad = gradient.clone()
        optimizer.step()
    assert w.isfinite().all()


def test_what_has_no_gradient_stays() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = CentredRMSprop([a, b], lr=0.1)
    optimizer.step()
    assert torch.equal(a, torch.ones(2))
    a.grad = torch.ones(2)
    optimizer.step()
    assert (a < 1).all()
    assert torch.equal(b, torch.ones(2))
    assert torch.equal(a.grad, torch.ones(2)), "gradients are read, not written"


def test_state_round_trip_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    one = nn.Linear(4, 3)
    optimizer = CentredRMSprop(one.parameters(), lr=0.01)
    gradients = torch.randn(20, 15)

    def step(module: nn.Module, by: torch.optim.Optimizer, i: int) -> None:
        weight, bias = module.parameters()
        weight.grad, bias.grad = gradients[i, :12].view(3, 4).clone(), gradients[i, 12:].clone()
        by.step()

    for i in range(10):
        step(one, optimizer, i)
    two = copy.deepcopy(one)
    again = CentredRMSprop(two.parameters(), lr=0.5, decay=0.1, eps=1.0)  # the state brings its own
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for i in range(10, 20):
        step(one, optimizer, i)
        step(two, again, i)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
