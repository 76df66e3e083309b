"""Tests of targets and losses against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor

from zerokara.agents.qlearning.losses import (
    NextValues,
    categorical_loss,
    categorical_target,
    greedy,
    lambda_returns,
    munchausen_bonus,
    project,
    quantile_loss,
    soft,
    td_loss,
    td_target,
)

NEXT_TARGET_BA = tensor([[1.0, 5.0, 3.0], [2.0, -1.0, 0.0], [4.0, 4.5, -2.0]])
NEXT_ONLINE_BA = tensor([[9.0, 0.0, 1.0], [0.0, 1.0, 7.0], [0.0, 2.0, 1.0]])
REWARD_B = tensor([1.0, -1.0, 0.5])
DISCOUNT_B = tensor([0.9, 0.81, 0.0])  # one step, two steps, a terminal


def q_target(discount_B: Tensor, q_BA: Tensor, selection_q_BA: Tensor) -> Tensor:
    """TD target of a scalar head."""
    return td_target(REWARD_B, discount_B, greedy(q_BA[:, None], selection_q_BA)).squeeze(1)


def test_target_uses_the_maximum_of_the_target_network() -> None:
    # 1 + .9 * 5; -1 + .81 * 2; .5 + 0
    target_B = q_target(DISCOUNT_B, NEXT_TARGET_BA, NEXT_TARGET_BA)
    torch.testing.assert_close(target_B, tensor([5.5, 0.62, 0.5]))


def test_double_target_evaluates_the_action_selected_by_the_online_network() -> None:
    # The online network selects actions 0, 2, 1; their values in the target network are 1, 0, 4.5.
    target_B = q_target(DISCOUNT_B, NEXT_TARGET_BA, NEXT_ONLINE_BA)
    torch.testing.assert_close(target_B, tensor([1.9, -1.0, 0.5]))


@pytest.mark.parametrize("selection_q_BA", [torch.zeros(3, 3), NEXT_ONLINE_BA])
def test_a_terminal_target_ignores_the_next_values(selection_q_BA: Tensor) -> None:
    huge_BA = torch.full((3, 3), 1e30)
    assert torch.equal(q_target(torch.zeros(3), huge_BA, selection_q_BA), REWARD_B)


def test_td_loss_is_the_weighted_mean_huber_loss() -> None:
    q_BA = tensor([[1.0, 2.0], [0.5, 3.0], [-1.0, 0.0], [7.0, 7.0]])
    action_B = tensor([1, 0, 1, 0])
    target_B = tensor([2.4, 4.0, -1.0, -93.0])
    weight_B = tensor([1.0, 2.0, 0.5, 0.0])
    # Errors .4, 3.5, -1, -100: .5 * .16 = .08; 3.5 - .5 = 3; at the boundary of the branches .5; the last has weight 0.
    loss, td_error_B = td_loss(q_BA, action_B, target_B, weight_B)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((0.08 + 2 * 3 + 0.5 * 0.5) / 4)
    torch.testing.assert_close(td_error_B, tensor([0.4, 3.5, 1.0, 100.0]))
    assert not td_error_B.requires_grad


def test_gradient_is_the_clipped_td_error() -> None:
    q_BA = tensor([[1.0, 2.0], [0.5, 3.0], [-1.0, 0.0], [7.0, 7.0]], requires_grad=True)
    target_B = tensor([2.4, 4.0, -9.0, -93.0])
    weight_B = tensor([1.0, 2.0, 0.5, 0.0])
    loss, _ = td_loss(q_BA, tensor([1, 0, 1, 0]), target_B, weight_B)
    loss.backward()
    # q - target is -.4, -3.5, 9, 100, clipped to [-1, 1], times weight / 4; the gradient of other actions is 0.
    expected = tensor([[0.0, -0.4], [-2.0, 0.0], [0.0, 0.5], [0.0, 0.0]]) / 4
    assert q_BA.grad is not None
    torch.testing.assert_close(q_BA.grad, expected)


# CategoricalHead


SUPPORT_X = tensor([-1.0, 0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("atom", "expected"),
    [
        (-1.0, [1, 0, 0, 0]),  # at the ends and between them
        (2.0, [0, 0, 0, 1]),
        (1.0, [0, 0, 1, 0]),
        (0.25, [0, 0.75, 0.25, 0]),
        (-0.9, [0.9, 0.1, 0, 0]),
        (-7.0, [1, 0, 0, 0]),  # outside: clipped
        (2.5, [0, 0, 0, 1]),
    ],
)
def test_an_atom_is_divided_between_neighboring_atoms(atom: float, expected: list[float]) -> None:
    torch.testing.assert_close(project(tensor([[atom]]), tensor([[1.0]]), SUPPORT_X), tensor([expected]).float())


def test_projection_equals_equation_7() -> None:
    """Compare with Bellemare et al. 2017, equation 7, term by term. The mean of the clipped atoms is preserved."""
    generator = torch.Generator().manual_seed(0)
    support_X = torch.linspace(-10, 10, 51)
    atom_BK = 30 * torch.rand(5, 40, generator=generator) - 15
    probability_BK = torch.rand(5, 40, generator=generator).softmax(dim=1)
    got_BX = project(atom_BK, probability_BK, support_X)
    for b in range(5):
        for i, z in enumerate(support_X.tolist()):
            expected = sum(
                p * min(max(1 - abs(min(max(a, -10.0), 10.0) - z) / 0.4, 0.0), 1.0)
                for a, p in zip(atom_BK[b].tolist(), probability_BK[b].tolist(), strict=True)
            )
            assert got_BX[b, i].item() == pytest.approx(expected, abs=2e-6)
    torch.testing.assert_close(got_BX.sum(dim=1), torch.ones(5))
    mean_B = (atom_BK.clamp(-10, 10) * probability_BK).sum(dim=1)
    torch.testing.assert_close((got_BX * support_X).sum(dim=1), mean_B, rtol=1e-4, atol=1e-4)


def test_categorical_target_by_hand() -> None:
    # Action 0 has all probability at atom 2, action 1 half each at 0 and 1. Q-values 2 and .5: action 0 is greedy.
    far = -1e9
    logit_BXA = tensor([[[far, far], [far, 0.0], [far, 0.0], [0.0, far]]]).expand(2, -1, -1)
    q_BA = tensor([[2.0, 0.5], [2.0, 0.5]])
    reward_B, discount_B = tensor([-0.5, 0.3]), tensor([0.9, 0.0])
    # -.5 + .9 * 2 = 1.3: .7 at atom 1, .3 at atom 2. At the terminal the return is .3: .7 at atom 0, .3 at atom 1.
    target_BX = categorical_target(reward_B, discount_B, greedy(logit_BXA, q_BA), SUPPORT_X)
    torch.testing.assert_close(target_BX, tensor([[0, 0, 0.7, 0.3], [0, 0.7, 0.3, 0]]))
    # With negated selection values action 1 is greedy: atoms -.5 and .4, probability .5 each.
    target_BX = categorical_target(reward_B, discount_B, greedy(logit_BXA, -q_BA), SUPPORT_X)
    torch.testing.assert_close(target_BX[0], tensor([0.25, 0.25 + 0.3, 0.2, 0]))


def test_categorical_mixture_by_hand() -> None:
    far = -1e9
    logit_BXM = tensor([[[far, 0.0], [far, far], [far, far], [0.0, far]]])
    next_values = NextValues(logit_BXM, tensor([[0.75, 0.25]]), tensor([[-0.5, 0.0]]))
    # Probability .75 at .8 * (2 + .5) = 2. Probability .25 at .8 * -1 = -.8: .8 of it at atom -1, .2 at atom 0.
    target_BX = categorical_target(tensor([0.0]), tensor([0.8]), next_values, SUPPORT_X)
    torch.testing.assert_close(target_BX, tensor([[0.2, 0.05, 0, 0.75]]))


def test_categorical_loss_is_a_kl_divergence_with_the_gradient_of_cross_entropy() -> None:
    logit_BX = tensor([[0.0, math.log(3.0)], [1.0, 1.0], [5.0, 0.0]], requires_grad=True)
    target_BX = tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]])
    weight_B = tensor([2.0, 1.0, 0.0])
    loss, divergence_B = categorical_loss(logit_BX, target_BX, weight_B)
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    third = math.log(math.exp(5) + 1)
    assert divergence_B.tolist() == pytest.approx([first, 0.0, third], abs=1e-6)
    assert loss.item() == pytest.approx(2 * first / 3, abs=1e-6)
    loss.backward()
    # softmax - target, times weight / 3.
    assert logit_BX.grad is not None
    torch.testing.assert_close(logit_BX.grad, 2 * tensor([[-0.25, 0.25], [0, 0], [0, 0]]) / 3)


# QuantileHead


def test_quantile_loss_by_hand() -> None:
    z_BT = tensor([[0.0, 2.0]], requires_grad=True)
    tau_BT = tensor([[0.25, 0.75]])
    target_BS = tensor([[1.0, 4.0, 2.5]])
    # Errors of 0: 1, 4, 2.5: Huber .5, 3.5, 2, times .25. Of 2: -1, 2, .5: Huber .5, 1.5, .125, times .25, .75, .75.
    first, second = 0.25 * (0.5 + 3.5 + 2) / 3, (0.25 * 0.5 + 0.75 * 1.5 + 0.75 * 0.125) / 3
    loss, td_error_B = quantile_loss(z_BT, tau_BT, target_BS, tensor([2.0]))
    assert loss.item() == pytest.approx(2 * (first + second))
    assert td_error_B.item() == pytest.approx((1 + 4 + 2.5 + 1 + 2 + 0.5) / 6)
    loss.backward()
    # The gradient is -|tau - 1{error < 0}| times the error clipped to [-1, 1].
    assert z_BT.grad is not None
    expected = tensor([[-0.25 * 3 / 3, (0.25 * 1 - 0.75 * 1 - 0.75 * 0.5) / 3]])
    torch.testing.assert_close(z_BT.grad, 2 * expected)


def test_quantile_loss_equals_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    z_BT, target_BS = 3 * torch.randn(4, 5, generator=generator), 3 * torch.randn(4, 7, generator=generator)
    tau_BT, weight_B = torch.rand(4, 5, generator=generator), torch.rand(4, generator=generator)
    expected = 0.0
    for b in range(4):
        for i in range(5):
            for j in range(7):
                u = (target_BS[b, j] - z_BT[b, i]).item()
                huber = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
                expected += weight_B[b].item() / 4 * abs(tau_BT[b, i].item() - (u < 0)) * huber / 7
    assert quantile_loss(z_BT, tau_BT, target_BS, weight_B)[0].item() == pytest.approx(expected, rel=1e-5)


def test_quantile_regression_converges_to_the_quantiles() -> None:
    """Trained on samples of a distribution, each output converges to the quantile at its fraction."""
    sample_S = torch.linspace(0, 100, 1001)
    tau_BT = tensor([[0.1, 0.5, 0.9]])
    z_BT = torch.full((1, 3), 50.0, requires_grad=True)
    optimizer = torch.optim.SGD([z_BT], lr=20.0)
    for _ in range(400):
        optimizer.zero_grad()
        quantile_loss(z_BT, tau_BT, sample_S[None], torch.ones(1))[0].backward()
        optimizer.step()
    torch.testing.assert_close(z_BT.detach(), tensor([[10.0, 50.0, 90.0]]), rtol=0, atol=0.5)


# Munchausen


def test_munchausen_by_hand() -> None:
    """At temperature .5, values 1 and 1 + .5 log 3 have probabilities 1/4 and 3/4."""
    q_BA = tensor([[1.0, 1 + 0.5 * math.log(3)]])
    low, high = 0.5 * math.log(0.25), 0.5 * math.log(0.75)
    for action, log_pi in ((0, low), (1, high)):
        bonus_B = munchausen_bonus(q_BA, tensor([action]), alpha=0.9, tau=0.5, clip_min=-10)
        assert bonus_B.item() == pytest.approx(0.9 * log_pi, rel=1e-5)
    clipped_B = munchausen_bonus(q_BA, tensor([0]), alpha=0.9, tau=0.5, clip_min=-0.4)
    assert clipped_B.item() == pytest.approx(-0.36)
    next_values = soft(q_BA[:, None], q_BA, 0.5)
    torch.testing.assert_close(next_values.probability_BM, tensor([[0.25, 0.75]]))
    # The sum over actions of pi (q - tau log pi) is tau logsumexp(q / tau).
    target_BX = td_target(tensor([0.2]), tensor([0.9]), next_values)
    assert target_BX.item() == pytest.approx(0.2 + 0.9 * 0.5 * math.log(math.exp(2) + 3 * math.exp(2)), rel=1e-5)


def test_munchausen_is_stable_for_large_differences_of_values() -> None:
    q_BA = tensor([[1000.0, -1000.0]])
    bonus_B = munchausen_bonus(q_BA, tensor([1]), alpha=0.9, tau=0.03, clip_min=-1)
    assert bonus_B.item() == pytest.approx(-0.9)
    assert td_target(tensor([0.0]), tensor([1.0]), soft(q_BA[:, None], q_BA, 0.03)).item() == pytest.approx(1000)


def test_soft_policy_averages_each_quantile() -> None:
    z_BXA = tensor([[[0.0, 4.0], [2.0, 8.0]]])  # two quantiles of two actions
    next_values = NextValues(z_BXA, tensor([[0.25, 0.75]]), tensor([[-1.0, -2.0]]))
    target_BX = td_target(tensor([1.0]), tensor([0.5]), next_values)
    # First: 1 + .5 (.25 * (0 + 1) + .75 * (4 + 2)); second: 1 + .5 (.25 * (2 + 1) + .75 * (8 + 2)).
    torch.testing.assert_close(target_BX, tensor([[3.375, 5.125]]))


# PQN


def returns(td_lambda: float, terminal: list[float], cut: list[float]) -> list[float]:
    column = [tensor(x)[:, None] for x in ([1.0, 2.0, 3.0], terminal, [10.0, 20.0, 30.0], cut)]
    return lambda_returns(*column, gamma=0.5, td_lambda=td_lambda).squeeze(1).tolist()


def test_lambda_returns_by_hand() -> None:
    nothing = [0.0, 0.0, 0.0]
    # Last step: 3 + .5 * 30 = 18. Before it: 2 + .5 (.6 * 20 + .4 * 18) = 11.6, 1 + .5 (.6 * 10 + .4 * 11.6).
    assert returns(0.4, nothing, nothing) == pytest.approx([6.32, 11.6, 18.0])
    assert returns(0.0, nothing, nothing) == pytest.approx([6.0, 12.0, 18.0]), "one-step returns"
    assert returns(1.0, nothing, nothing) == pytest.approx([6.5, 11.0, 18.0]), "Monte Carlo returns"
    # A terminal at the second step: no later rewards and no bootstrapping.
    assert returns(0.4, [0.0, 1.0, 0.0], nothing) == pytest.approx([1 + 0.5 * (6 + 0.8), 2.0, 18.0])
    # A truncation at the second step: bootstrapping, and no later rewards.
    assert returns(0.4, nothing, [0.0, 1.0, 0.0]) == pytest.approx([1 + 0.5 * (6 + 0.4 * 12), 12.0, 18.0])
    assert returns(0.4, [0.0, 0.0, 1.0], nothing)[2] == 3.0
