"""Targets and losses against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, tensor

from agents.losses import td_loss, td_target

NEXT_TARGET_BA = tensor([[1.0, 5.0, 3.0], [2.0, -1.0, 0.0], [4.0, 4.5, -2.0]])
NEXT_ONLINE_BA = tensor([[9.0, 0.0, 1.0], [0.0, 1.0, 7.0], [0.0, 2.0, 1.0]])
REWARD_B = tensor([1.0, -1.0, 0.5])
DISCOUNT_B = tensor([0.9, 0.81, 0.0])  # one step, two steps, a terminal


def test_single_target_takes_the_target_networks_best() -> None:
    # 1 + .9 * 5; -1 + .81 * 2; .5 + 0
    target_B = td_target(REWARD_B, DISCOUNT_B, NEXT_TARGET_BA, None)
    torch.testing.assert_close(target_B, tensor([5.5, 0.62, 0.5]))


def test_double_target_values_the_online_networks_choice() -> None:
    # The online network chooses actions 0, 2, 1; the target network values them 1, 0, 4.5.
    target_B = td_target(REWARD_B, DISCOUNT_B, NEXT_TARGET_BA, NEXT_ONLINE_BA)
    torch.testing.assert_close(target_B, tensor([1.9, -1.0, 0.5]))


@pytest.mark.parametrize("online_BA", [None, NEXT_ONLINE_BA])
def test_a_terminal_needs_no_value(online_BA: Tensor | None) -> None:
    huge_BA = torch.full((3, 3), 1e30)
    target_B = td_target(REWARD_B, torch.zeros(3), huge_BA, online_BA)
    assert torch.equal(target_B, REWARD_B)


def test_loss_is_huber_in_both_branches_weighted_and_averaged() -> None:
    q_BA = tensor([[1.0, 2.0], [0.5, 3.0], [-1.0, 0.0], [7.0, 7.0]])
    action_B = tensor([1, 0, 1, 0])
    target_B = tensor([2.4, 4.0, -1.0, -93.0])
    weight_B = tensor([1.0, 2.0, 0.5, 0.0])
    # Errors .4, 3.5, -1, -100: .5 * .16 = .08; 3.5 - .5 = 3; where both branches meet .5; the last does not count.
    loss, error_B = td_loss(q_BA, action_B, target_B, weight_B)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((0.08 + 2 * 3 + 0.5 * 0.5) / 4)
    torch.testing.assert_close(error_B, tensor([0.4, 3.5, 1.0, 100.0]))
    assert not error_B.requires_grad


def test_gradient_is_the_error_clipped() -> None:
    q_BA = tensor([[1.0, 2.0], [0.5, 3.0], [-1.0, 0.0], [7.0, 7.0]], requires_grad=True)
    target_B = tensor([2.4, 4.0, -9.0, -93.0])
    weight_B = tensor([1.0, 2.0, 0.5, 0.0])
    loss, _ = td_loss(q_BA, tensor([1, 0, 1, 0]), target_B, weight_B)
    loss.backward()
    # q - target is -.4, -3.5, 9, 100, clipped to [-1, 1], times weight / 4; the other actions are not touched.
    expected = tensor([[0.0, -0.4], [-2.0, 0.0], [0.0, 0.5], [0.0, 0.0]]) / 4
    assert q_BA.grad is not None
    torch.testing.assert_close(q_BA.grad, expected)
