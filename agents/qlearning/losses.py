"""Targets and losses of Q-learning, as pure functions.

A network has X outputs per action: the expected return (X = 1), logits of a categorical distribution (C51), or
quantiles of the return (QR-DQN, IQN). The target policy in the next state is given as `NextValues`: one greedy action,
or all actions with their probabilities (Munchausen).

Shapes: B batch, A actions, M next actions (1 for a greedy, A for a soft policy), X outputs per action, K shifted atoms,
T quantiles, S target quantiles. In `lambda_returns`: T steps, N environments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class NextValues(NamedTuple):
    """Outputs of the target network in the next state, and the target policy over the next actions."""

    z_BXM: Tensor  # expected returns, quantiles or logits
    probability_BM: Tensor  # of the target policy
    tau_log_pi_BM: Tensor  # entropy term, subtracted from the return; 0 for a greedy policy


# ---- target policy in the next state


def greedy(z_BXA: Tensor, selection_q_BA: Tensor) -> NextValues:
    """Values of the greedy next action.

    Args:
        z_BXA: outputs of the target network.
        selection_q_BA: Q-values that select the action: of the target network (Mnih et al. 2015, algorithm 1), or of
            the online network for double Q-learning (van Hasselt et al. 2016, "Deep Reinforcement Learning with Double
            Q-learning", equation 4).
    """
    best_B1 = selection_q_BA.argmax(dim=1, keepdim=True)
    z_BX1 = z_BXA.gather(2, best_B1[:, None].expand(-1, z_BXA.shape[1], 1))
    return NextValues(z_BX1, torch.ones_like(selection_q_BA[:, :1]), torch.zeros_like(selection_q_BA[:, :1]))


def soft(z_BXA: Tensor, q_BA: Tensor, tau: float) -> NextValues:
    """Values of all next actions under the softmax policy pi = softmax(q / tau), with the entropy term tau * log pi.

    Vieillard et al. 2020, "Munchausen Reinforcement Learning", equation 1.

    Args:
        z_BXA: outputs of the target network.
        q_BA: Q-values of the target network.
        tau: temperature.
    """
    tau_log_pi_BA = scaled_log_policy(q_BA, tau)
    return NextValues(z_BXA, (tau_log_pi_BA / tau).exp(), tau_log_pi_BA)


def scaled_log_policy(q_BA: Tensor, tau: float) -> Tensor:
    """Return tau * log softmax(q / tau), (B, A), computed in a stable way (Vieillard et al. 2020, appendix B.1)."""
    return tau * F.log_softmax(q_BA / tau, dim=1)


def munchausen_bonus(q_BA: Tensor, action_B: Tensor, *, alpha: float, tau: float, clip_min: float) -> Tensor:
    """Munchausen term (B,) of the reward: alpha * [tau * log pi(a|s)], with the bracket clipped to [clip_min, 0].

    Vieillard et al. 2020, equation 1.

    Args:
        q_BA: Q-values of the target network, from which pi is computed.
        action_B: actions that were taken.
        alpha: factor on the term.
        tau: temperature of pi.
        clip_min: lower bound of tau * log pi (l_0 in the paper).
    """
    log_pi_B = scaled_log_policy(q_BA, tau).gather(1, action_B[:, None]).squeeze(1)
    return alpha * log_pi_B.clamp(clip_min, 0.0)


# ---- targets


def td_target(reward_B: Tensor, discount_B: Tensor, next_values: NextValues) -> Tensor:
    """TD target (B, X): r + discount * sum over a' of pi(a'|s') (z(s', a') - tau log pi(a'|s')).

    Args:
        reward_B: discounted sum of rewards up to the bootstrap state.
        discount_B: factor on the bootstrap value: gamma^n, 0 after a terminal.
        next_values: expected returns or quantiles in the bootstrap state.
    """
    z_BXM, probability_BM, tau_log_pi_BM = next_values
    value_BX = (probability_BM[:, None] * (z_BXM - tau_log_pi_BM[:, None])).sum(dim=2)
    return reward_B[:, None] + discount_B[:, None] * value_BX


def categorical_target(reward_B: Tensor, discount_B: Tensor, next_values: NextValues, atom_X: Tensor) -> Tensor:
    """Target probabilities (B, X) of the atoms (Bellemare et al. 2017, algorithm 1).

    With a soft policy, the distribution of the next return is the mixture of the distributions of all actions a', with
    weights pi(a'|s') and atoms shifted by -tau log pi(a'|s').

    Args:
        reward_B: as in `td_target`.
        discount_B: as in `td_target`.
        next_values: logits in the bootstrap state.
        atom_X: evenly spaced support.
    """
    logit_BXM, probability_BM, tau_log_pi_BM = next_values
    atom_BXM = reward_B[:, None, None] + discount_B[:, None, None] * (atom_X[:, None] - tau_log_pi_BM[:, None])
    probability_BXM = probability_BM[:, None] * logit_BXM.softmax(dim=1)
    return project(atom_BXM.flatten(1), probability_BXM.flatten(1), atom_X)


def project(atom_BK: Tensor, probability_BK: Tensor, support_X: Tensor) -> Tensor:
    """Project atoms onto a fixed support; returns probabilities (B, X) (Bellemare et al. 2017, equation 7).

    Each atom is clipped to the range of the support. Its probability is divided between the two neighboring atoms of
    the support, in proportion to proximity.
    """
    low, high, last = support_X[0], support_X[-1], len(support_X) - 1
    position_BK = ((atom_BK - low) / (high - low) * last).clamp(0, last)
    floor_BK = position_BK.floor()
    upper_fraction_BK = position_BK - floor_BK  # fraction for the upper neighbor
    lower_BK = floor_BK.long()
    upper_BK = (lower_BK + 1).clamp(max=last)  # at the upper end its fraction is 0
    projected_BX = probability_BK.new_zeros(len(atom_BK), len(support_X))
    projected_BX = projected_BX.scatter_add(1, lower_BK, probability_BK * (1 - upper_fraction_BK))
    return projected_BX.scatter_add(1, upper_BK, probability_BK * upper_fraction_BK)


# ---- losses: weighted mean over the batch, and an error for each transition, from which its priority is computed


def td_loss(q_BA: Tensor, action_B: Tensor, target_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted Huber loss (scalar), and absolute TD errors (B,).

    The gradient of the Huber loss with threshold 1 is the TD error clipped to [-1, 1], as in Mnih et al. 2015, Methods.
    """
    q_B = q_BA.gather(1, action_B[:, None]).squeeze(1)
    loss_B = F.huber_loss(q_B, target_B, reduction="none")
    return (weight_B * loss_B).mean(), (target_B - q_B).detach().abs()


def categorical_loss(logit_BX: Tensor, target_BX: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted Kullback-Leibler divergence KL(target, prediction) (scalar), and the divergence per transition (B,).

    The cross-entropy in Bellemare et al. 2017, algorithm 1, has the same gradient. Rainbow computes priorities from the
    divergence (Hessel et al. 2018, "The integrated agent").
    """
    divergence_BX = torch.xlogy(target_BX, target_BX) - target_BX * F.log_softmax(logit_BX, dim=1)
    loss_B = divergence_BX.sum(dim=1)
    return (weight_B * loss_B).mean(), loss_B.detach().clamp(min=0)


def quantile_loss(z_BT: Tensor, tau_BT: Tensor, target_BS: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted quantile Huber loss with threshold 1 (scalar), and the mean absolute TD error over all pairs (B,).

    The loss is summed over predicted quantiles and averaged over target quantiles (Dabney et al. 2018, "Distributional
    Reinforcement Learning with Quantile Regression", equation 10; "Implicit Quantile Networks", equation 3).

    Args:
        z_BT: predicted quantiles at the fractions `tau_BT`.
        tau_BT: fractions in [0, 1].
        target_BS: target samples or quantiles of the return.
        weight_B: importance-sampling weights.
    """
    error_BTS = target_BS[:, None] - z_BT[:, :, None]
    huber_BTS = F.huber_loss(error_BTS, torch.zeros_like(error_BTS), reduction="none")
    quantile_weight_BTS = (tau_BT[:, :, None] - (error_BTS.detach() < 0).to(z_BT.dtype)).abs()
    loss_B = (quantile_weight_BTS * huber_BTS).mean(dim=2).sum(dim=1)
    return (weight_B * loss_B).mean(), error_BTS.detach().abs().mean(dim=(1, 2))


# ---- PQN


def lambda_returns(
    reward_TN: Tensor,
    terminal_TN: Tensor,
    next_value_TN: Tensor,
    truncated_TN: Tensor,
    *,
    gamma: float,
    td_lambda: float,
) -> Tensor:
    """Lambda-returns (T, N) of a rollout of T steps in N environments (Gallici et al. 2024, algorithm 1).

    R_t = r_t + gamma ((1 - lambda) V_t+1 + lambda R_t+1) within an episode;
    R_t = r_t at a terminal;
    R_t = r_t + gamma V_t+1 at a truncation and at the last step of the rollout.

    Args:
        reward_TN: rewards.
        terminal_TN: 1 if the episode terminated at the step.
        next_value_TN: V_t+1, the maximum Q-value of the next observation, before any reset.
        truncated_TN: 1 if the episode was truncated at the step.
        gamma: discount factor of one step.
        td_lambda: 0 gives one-step returns, 1 gives returns up to the end of the rollout.
    """
    last = len(reward_TN) - 1
    discount_TN = gamma * (1 - terminal_TN)
    lambda_TN = td_lambda * (1 - truncated_TN)
    lambda_TN[last] = 0
    # The recursion R_t = one_step_t + weight_t R_t+1, from the last step to the first.
    one_step_TN = reward_TN + discount_TN * (1 - lambda_TN) * next_value_TN
    weight_TN = discount_TN * lambda_TN
    returns = [one_step_TN[last]]
    for t in range(last - 1, -1, -1):
        returns.append(one_step_TN[t] + weight_TN[t] * returns[-1])
    return torch.stack(returns[::-1])
