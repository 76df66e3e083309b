"""Tests of targets and losses against values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn, tensor

from zerokara.agents.configs.dqn import Config
from zerokara.agents.dqn import dqn_loss
from zerokara.agents.pqn import lambda_returns
from zerokara.agents.qlearning.heads import CategoricalHead, QuantileHead, ScalarHead
from zerokara.agents.qlearning.losses import kl_divergence, project, quantile_huber_loss
from zerokara.core.compute import Compute

NEXT_TARGET_BA = tensor([[1.0, 5.0, 3.0], [2.0, -1.0, 0.0], [4.0, 4.5, -2.0]])
NEXT_ONLINE_BA = tensor([[9.0, 0.0, 1.0], [0.0, 1.0, 7.0], [0.0, 2.0, 1.0]])
REWARD_B = tensor([1.0, -1.0, 0.5])
DISCOUNT_B = tensor([0.9, 0.81, 0.0])  # one step, two steps, a terminal


class TableNetwork(nn.Module):
    """Q-network whose outputs (B, X, A) are given: one table for the first, one for the next observations.

    An observation is a single pixel: its row in the table, plus 100 if it is a next observation.
    """

    def __init__(self, z_BXA: Tensor, next_z_BXA: Tensor, head: ScalarHead | None = None) -> None:
        super().__init__()
        self.z_BXA, self.next_z_BXA, self.head = z_BXA, next_z_BXA, head or ScalarHead()

    def features(self, x_BCHW: Tensor) -> Tensor:
        return (x_BCHW.flatten(1) * 255).round().long()

    def outputs(self, features_BF: Tensor, tau_BT: Tensor | None = None) -> Tensor:
        row_B = features_BF[:, 0]
        assert (row_B >= 100).all() or (row_B < 100).all(), "first and next observations are mixed"
        return self.next_z_BXA[row_B - 100] if row_B[0] >= 100 else self.z_BXA[row_B]

    def values(self, features_BF: Tensor) -> Tensor:
        return self.head.values(self.outputs(features_BF))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.values(self.features(x_BCHW))


def loss_of(
    online: TableNetwork,
    target: TableNetwork,
    *,
    action: list[int],
    reward_B: Tensor,
    discount_B: Tensor,
    weight_B: Tensor | None = None,
    tau_BT: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`dqn_loss` of one transition per row of the tables."""
    obs = torch.arange(len(action), dtype=torch.uint8).view(-1, 1, 1, 1)
    weight_B = torch.ones(len(action)) if weight_B is None else weight_B
    batch = obs, tensor(action), reward_B, discount_B, obs + 100, weight_B
    config = Config(**{"double": False, **settings})
    return dqn_loss(config, Compute(), online, target, *batch, tau_BT)  # type: ignore[arg-type]


def q_network(q_BA: Tensor, next_q_BA: Tensor) -> TableNetwork:
    return TableNetwork(q_BA[:, None], next_q_BA[:, None])


def q_targets(discount_B: Tensor, next_target_BA: Tensor, next_online_BA: Tensor, *, double: bool) -> Tensor:
    """TD targets of a scalar head: the error of a network whose Q-values are far below them, plus these Q-values."""
    low_BA = torch.full((3, 3), -64.0)
    online, target = q_network(low_BA, next_online_BA), q_network(low_BA, next_target_BA)
    rows: dict[str, Any] = {"action": [0, 1, 2], "reward_B": REWARD_B, "discount_B": discount_B}
    return loss_of(online, target, double=double, **rows)[2] - 64


def test_target_uses_the_maximum_of_the_target_network() -> None:
    # 1 + .9 * 5; -1 + .81 * 2; .5 + 0
    target_B = q_targets(DISCOUNT_B, NEXT_TARGET_BA, NEXT_ONLINE_BA, double=False)
    torch.testing.assert_close(target_B, tensor([5.5, 0.62, 0.5]), rtol=0, atol=2e-5)


def test_double_target_evaluates_the_action_selected_by_the_online_network() -> None:
    # The online network selects actions 0, 2, 1; their values in the target network are 1, 0, 4.5.
    target_B = q_targets(DISCOUNT_B, NEXT_TARGET_BA, NEXT_ONLINE_BA, double=True)
    torch.testing.assert_close(target_B, tensor([1.9, -1.0, 0.5]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("double", [False, True])
def test_a_terminal_target_ignores_the_next_values(double: bool) -> None:
    huge_BA = torch.full((3, 3), 1e30)
    assert torch.equal(q_targets(torch.zeros(3), huge_BA, NEXT_ONLINE_BA, double=double), REWARD_B)


Q_BA = tensor([[1.0, 2.0], [0.5, 3.0], [-1.0, 0.0], [7.0, 7.0]])
ACTIONS = [1, 0, 1, 0]
WEIGHT_B = tensor([1.0, 2.0, 0.5, 0.0])


def test_td_loss_is_the_weighted_mean_huber_loss() -> None:
    online = q_network(Q_BA, torch.zeros(4, 2))
    target_B = tensor([2.4, 4.0, -1.0, -93.0])  # terminals, so that the reward is the target
    # Errors .4, 3.5, -1, -100: .5 * .16 = .08; 3.5 - .5 = 3; at the boundary of the branches .5; the last has weight 0.
    loss, mean_q, td_error_B = loss_of(
        online, online, action=ACTIONS, reward_B=target_B, discount_B=torch.zeros(4), weight_B=WEIGHT_B
    )
    assert loss.shape == ()
    assert loss.item() == pytest.approx((0.08 + 2 * 3 + 0.5 * 0.5) / 4)
    assert mean_q.item() == pytest.approx(Q_BA.mean().item())
    torch.testing.assert_close(td_error_B, tensor([0.4, 3.5, 1.0, 100.0]))
    assert not td_error_B.requires_grad


def test_gradient_is_the_clipped_td_error() -> None:
    q_BA = Q_BA.clone().requires_grad_()
    online = q_network(q_BA, torch.zeros(4, 2))
    target_B = tensor([2.4, 4.0, -9.0, -93.0])
    loss, *_ = loss_of(online, online, action=ACTIONS, reward_B=target_B, discount_B=torch.zeros(4), weight_B=WEIGHT_B)
    loss.backward()
    # q - target is -.4, -3.5, 9, 100, clipped to [-1, 1], times weight / 4; the gradient of other actions is 0.
    expected = tensor([[0.0, -0.4], [-2.0, 0.0], [0.0, 0.5], [0.0, 0.0]]) / 4
    assert q_BA.grad is not None
    torch.testing.assert_close(q_BA.grad, expected)


# Categorical


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


def categorical_target(
    next_logit_BXA: Tensor, online_next_BXA: Tensor, reward: Any, discount: Any, **settings: Any
) -> Tensor:
    """Target probabilities (B, X): minus the gradient of the loss, because the predicted probabilities are uniform."""
    rows = len(next_logit_BXA)
    logit_BXA = torch.zeros(rows, 4, 2, requires_grad=True)
    head = CategoricalHead(4, -1.0, 2.0)
    networks = (TableNetwork(logit_BXA, z, head) for z in (online_next_BXA, next_logit_BXA))
    loss, *_ = loss_of(
        *networks, action=[0] * rows, reward_B=tensor(reward), discount_B=tensor(discount), head="c51", **settings
    )
    loss.backward()
    assert logit_BXA.grad is not None
    return 0.25 - rows * logit_BXA.grad[:, :, 0]


def test_categorical_target_by_hand() -> None:
    # Action 0 has all probability at atom 2, action 1 half each at 0 and 1. Q-values 2 and .5: action 0 is greedy.
    far = -1e9
    next_BXA = tensor([[[far, far], [far, 0.0], [far, 0.0], [0.0, far]]]).expand(2, -1, -1)
    # -.5 + .9 * 2 = 1.3: .7 at atom 1, .3 at atom 2. At the terminal the return is .3: .7 at atom 0, .3 at atom 1.
    target_BX = categorical_target(next_BXA, next_BXA, [-0.5, 0.3], [0.9, 0.0])
    torch.testing.assert_close(target_BX, tensor([[0, 0, 0.7, 0.3], [0, 0.7, 0.3, 0]]), rtol=0, atol=1e-6)
    # With double Q-learning, an online network with exchanged actions selects action 1: atoms -.5 and .4, .5 each.
    target_BX = categorical_target(next_BXA, next_BXA.flip(2), [-0.5, 0.3], [0.9, 0.0], double=True)
    torch.testing.assert_close(target_BX[0], tensor([0.25, 0.25 + 0.3, 0.2, 0]), rtol=0, atol=1e-6)


def test_categorical_mixture_by_hand() -> None:
    """Munchausen: at temperature .5, Q-values 2 and 2 - .5 log 3 have probabilities 3/4 and 1/4."""
    far = -1e9
    other = 2 - 0.5 * math.log(3)  # 1.4507: between atoms 1 and 2
    share = math.log((other - 1) / (2 - other))
    next_BXA = tensor([[[far, far], [far, far], [far, 0.0], [0.0, share]]])
    settings = {"munchausen": True, "munchausen_tau": 0.5, "munchausen_alpha": 0.0}
    target_BX = categorical_target(next_BXA, next_BXA, [-0.5], [0.8], **settings)
    expected = torch.zeros(4)
    log_pi = (0.5 * math.log(0.75), 0.5 * math.log(0.25))
    for action, pi in ((0, 0.75), (1, 0.25)):
        for x, probability in enumerate(next_BXA[0, :, action].softmax(dim=0).tolist()):
            moved = min(max(-0.5 + 0.8 * (x - 1 - log_pi[action]), -1.0), 2.0) + 1
            low = min(int(moved), 2)
            expected[low] += pi * probability * (1 - (moved - low))
            expected[low + 1] += pi * probability * (moved - low)
    torch.testing.assert_close(target_BX[0], expected, rtol=0, atol=1e-5)


def test_categorical_loss_is_a_kl_divergence_with_the_gradient_of_cross_entropy() -> None:
    logit_BX = tensor([[0.0, math.log(3.0)], [1.0, 1.0], [5.0, 0.0]], requires_grad=True)
    target_BX = tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]])
    divergence_B = kl_divergence(logit_BX, target_BX)
    loss = (tensor([2.0, 1.0, 0.0]) * divergence_B).mean()
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
    (loss,) = quantile_huber_loss(z_BT, tau_BT, target_BS)
    assert loss.item() == pytest.approx(first + second)
    loss.backward()
    # The gradient is -|tau - 1{error < 0}| times the error clipped to [-1, 1].
    assert z_BT.grad is not None
    expected = tensor([[-0.25 * 3 / 3, (0.25 * 1 - 0.75 * 1 - 0.75 * 0.5) / 3]])
    torch.testing.assert_close(z_BT.grad, expected)


def test_quantile_loss_equals_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    z_BT, target_BS = 3 * torch.randn(4, 5, generator=generator), 3 * torch.randn(4, 7, generator=generator)
    tau_BT = torch.rand(4, 5, generator=generator)
    loss_B = quantile_huber_loss(z_BT, tau_BT, target_BS)
    for b in range(4):
        expected = 0.0
        for i in range(5):
            for j in range(7):
                u = (target_BS[b, j] - z_BT[b, i]).item()
                huber = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
                expected += abs(tau_BT[b, i].item() - (u < 0)) * huber / 7
        assert loss_B[b].item() == pytest.approx(expected, rel=1e-5)


def test_quantile_targets_errors_and_weights() -> None:
    """Two quantiles of the greedy next action; its values 0 and 4 average above those of action 0."""
    next_BXA = tensor([[[1.0, 0.0], [2.0, 4.0]]])
    z_BXA = tensor([[[0.0, 9.0], [2.0, 9.0]]])
    network = TableNetwork(z_BXA, next_BXA, QuantileHead(2))
    loss, mean_q, td_error_B = loss_of(
        network, network, action=[0], reward_B=tensor([1.0]), discount_B=tensor([0.5]), weight_B=tensor([2.0]),
        tau_BT=QuantileHead(2).tau_1X, head="qr",
    )  # fmt: skip
    target_BS = tensor([[1.0, 3.0]])  # 1 + .5 * 0, 1 + .5 * 4
    (expected,) = quantile_huber_loss(z_BXA[:, :, 0], tensor([[0.25, 0.75]]), target_BS)
    assert loss.item() == pytest.approx(2 * expected.item())
    assert td_error_B.item() == pytest.approx((1 + 3 + 1 + 1) / 4)
    assert mean_q.item() == pytest.approx((1 + 9) / 2)


def test_quantile_errors_are_those_of_each_row() -> None:
    """In the second row all quantiles are 2 too small."""
    next_BXA, z_BXA = torch.zeros(2, 2, 1), tensor([[[0.0], [1.0]], [[-2.0], [-2.0]]])
    network = TableNetwork(z_BXA, next_BXA, QuantileHead(2))
    loss, _, td_error_B = loss_of(
        network, network, action=[0, 0], reward_B=torch.zeros(2), discount_B=torch.ones(2),
        weight_B=tensor([1.0, 3.0]), tau_BT=QuantileHead(2).tau_1X, head="qr",
    )  # fmt: skip
    assert td_error_B.tolist() == [0.5, 2.0]
    first, second = quantile_huber_loss(z_BXA[:, :, 0], tensor([[0.25, 0.75]]), torch.zeros(2, 2)).tolist()
    assert loss.item() == pytest.approx((first + 3 * second) / 2)


def test_quantile_regression_converges_to_the_quantiles() -> None:
    """Trained on samples of a distribution, each output converges to the quantile at its fraction."""
    sample_S = torch.linspace(0, 100, 1001)
    tau_BT = tensor([[0.1, 0.5, 0.9]])
    z_BT = torch.full((1, 3), 50.0, requires_grad=True)
    optimizer = torch.optim.SGD([z_BT], lr=20.0)
    for _ in range(400):
        optimizer.zero_grad()
        quantile_huber_loss(z_BT, tau_BT, sample_S[None]).sum().backward()
        optimizer.step()
    torch.testing.assert_close(z_BT.detach(), tensor([[10.0, 50.0, 90.0]]), rtol=0, atol=0.5)


# Munchausen


def munchausen_error(
    q_BA: Tensor, next_BXA: Tensor, action: int, reward: float, discount: float, **settings: Any
) -> Tensor:
    """TD target of the action (its Q-value in the online network is 0), minus 0."""
    rows: dict[str, Any] = {"action": [action], "reward_B": tensor([reward]), "discount_B": tensor([discount])}
    online = TableNetwork(torch.zeros(1, *next_BXA.shape[1:]), next_BXA)
    target = TableNetwork(q_BA[:, None], next_BXA)
    return loss_of(online, target, munchausen=True, **rows, **settings)[2]


def test_munchausen_by_hand() -> None:
    """At temperature .5, values 1 and 1 + .5 log 3 have probabilities 1/4 and 3/4."""
    q_BA = tensor([[1.0, 1 + 0.5 * math.log(3)]])
    settings = {"munchausen_alpha": 0.9, "munchausen_tau": 0.5}
    low, high = 0.5 * math.log(0.25), 0.5 * math.log(0.75)
    for action, log_pi in ((0, low), (1, high)):
        error_B = munchausen_error(q_BA, q_BA[:, None], action, 0.0, 0.0, munchausen_clip=-10.0, **settings)
        assert error_B.item() == pytest.approx(-0.9 * log_pi, rel=1e-5)
    clipped_B = munchausen_error(q_BA, q_BA[:, None], 0, 0.0, 0.0, munchausen_clip=-0.4, **settings)
    assert clipped_B.item() == pytest.approx(0.36)
    # The sum over actions of pi (q - tau log pi) is tau logsumexp(q / tau).
    soft_value = 0.5 * math.log(math.exp(2) + 3 * math.exp(2))
    error_B = munchausen_error(q_BA, q_BA[:, None], 0, 0.2, 0.9, munchausen_clip=-10.0, **settings)
    assert error_B.item() == pytest.approx(abs(0.2 + 0.9 * low + 0.9 * soft_value), rel=1e-5)


def test_munchausen_is_stable_for_large_differences_of_values() -> None:
    q_BA = tensor([[1000.0, -1000.0]])
    settings = {"munchausen_alpha": 0.9, "munchausen_tau": 0.03, "munchausen_clip": -1.0}
    assert munchausen_error(q_BA, q_BA[:, None], 1, 0.0, 0.0, **settings).item() == pytest.approx(0.9)
    assert munchausen_error(q_BA, q_BA[:, None], 1, 0.9, 1.0, **settings).item() == pytest.approx(1000)


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
