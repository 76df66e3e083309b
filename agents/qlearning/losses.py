"""Targets and losses of Q-learning, as pure functions.

A network says of every action how good it is by X numbers: the expected return alone (X = 1), the logits of a
distribution over fixed atoms (C51), or quantiles of the return (QR-DQN, IQN). What may follow a transition is a `Next`:
the one action that is chosen, or all of them, each with its probability (Munchausen).

Shapes: B batch, A actions, M actions that may follow (1 or A), X numbers of an action, T quantiles, S target quantiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class NextValues(NamedTuple):
    """What the target network says of the actions that may follow."""

    z_BXM: Tensor  # returns, or logits
    probability_BM: Tensor
    tau_log_pi_BM: Tensor  # taken off the return: tau log pi of a soft policy, 0 of a greedy one


# ---- what follows


def greedy(z_BXA: Tensor, selection_q_BA: Tensor) -> NextValues:
    """The action that `chooser_BA` values most, and that alone.

    The chooser is the target network itself (Mnih et al. 2015, algorithm 1) or the online network (van Hasselt et al.
    2016, "Deep Reinforcement Learning with Double Q-learning", equation 4).
    """
    best_B1 = selection_q_BA.argmax(dim=1, keepdim=True)
    z_BX1 = z_BXA.gather(2, best_B1[:, None].expand(-1, z_BXA.shape[1], 1))
    return NextValues(z_BX1, torch.ones_like(selection_q_BA[:, :1]), torch.zeros_like(selection_q_BA[:, :1]))


def soft(z_BXA: Tensor, q_BA: Tensor, tau: float) -> NextValues:
    """Every action with its probability under softmax(q / temperature), at the cost of its temperature * log pi.

    Vieillard et al. 2020, "Munchausen Reinforcement Learning", equation 1.
    """
    tau_log_pi_BA = scaled_log_policy(q_BA, tau)
    return NextValues(z_BXA, (tau_log_pi_BA / tau).exp(), tau_log_pi_BA)


def scaled_log_policy(q_BA: Tensor, tau: float) -> Tensor:
    """Log softmax(q / temperature) times the temperature, (B, A) (Vieillard et al. 2020, appendix B.1)."""
    return tau * F.log_softmax(q_BA / tau, dim=1)


def munchausen_bonus(q_BA: Tensor, action_B: Tensor, *, alpha: float, tau: float, clip_min: float) -> Tensor:
    """What is added to the reward (B,): scale * [temperature * log pi(a|s)], clipped to between `floor` and 0.

    Vieillard et al. 2020, equation 1. pi is the policy of the target network, whose values `q_BA` are, not of the
    network that learns.
    """
    log_pi_B = scaled_log_policy(q_BA, tau).gather(1, action_B[:, None]).squeeze(1)
    return alpha * log_pi_B.clamp(clip_min, 0.0)


# ---- targets


def td_target(reward_B: Tensor, discount_B: Tensor, next_values: NextValues) -> Tensor:
    """Returns (B, X) that those of Q(s, a) are drawn to: r + discount * sum over a' of pi(a') (z(s', a') - cost(a')).

    Args:
        reward_B: sum of discounted rewards until the bootstrap.
        discount_B: what the bootstrap is multiplied by; 0 after a terminal.
        following: expected returns, or quantiles of them.
    """
    z_BXM, probability_BM, tau_log_pi_BM = next_values
    value_BX = (probability_BM[:, None] * (z_BXM - tau_log_pi_BM[:, None])).sum(dim=2)
    return reward_B[:, None] + discount_B[:, None] * value_BX


def categorical_target(reward_B: Tensor, discount_B: Tensor, next_values: NextValues, atom_X: Tensor) -> Tensor:
    """Probabilities (B, X) of the atoms that those of Q(s, a) are drawn to (Bellemare et al. 2017, algorithm 1).

    The return that follows is a mixture: with probability pi(a') it is that of a', whose atoms are shifted by the cost.

    Args:
        reward_B, discount_B: as in `td_target`.
        following: logits.
        atom_X: the support, evenly spaced.
    """
    logit_BXM, probability_BM, tau_log_pi_BM = next_values
    atom_BXM = reward_B[:, None, None] + discount_B[:, None, None] * (atom_X[:, None] - tau_log_pi_BM[:, None])
    probability_BXM = probability_BM[:, None] * logit_BXM.softmax(dim=1)
    return project(atom_BXM.flatten(1), probability_BXM.flatten(1), atom_X)


def project(atom_BK: Tensor, probability_BK: Tensor, support_X: Tensor) -> Tensor:
    """Probabilities (B, X) of the support's atoms, to which other atoms are brought (Bellemare et al. 2017, eq. 7).

    Each atom is clipped to the support and shared by its two neighbours there, the nearer one getting more.
    """
    low, high, last = support_X[0], support_X[-1], len(support_X) - 1
    position_BK = ((atom_BK - low) / (high - low) * last).clamp(0, last)
    below_BK = position_BK.floor()
    upper_fraction_BK = position_BK - below_BK  # of the neighbour above
    index_BK = below_BK.long()
    above_BK = (index_BK + 1).clamp(max=last)  # where the share is 0 already
    projected_BX = probability_BK.new_zeros(len(atom_BK), len(support_X))
    projected_BX = projected_BX.scatter_add(1, index_BK, probability_BK * (1 - upper_fraction_BK))
    return projected_BX.scatter_add(1, above_BK, probability_BK * upper_fraction_BK)


# ---- losses: weighted, averaged over the batch; and for each transition how wrong it was, for its priority


def td_loss(q_BA: Tensor, action_B: Tensor, target_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted Huber loss (scalar), and |error| (B,).

    The Huber loss with threshold 1 has the gradient of the paper's error clipped to [-1, 1] (Mnih et al. 2015,
    Methods).
    """
    q_B = q_BA.gather(1, action_B[:, None]).squeeze(1)
    loss_B = F.huber_loss(q_B, target_B, reduction="none")
    return (weight_B * loss_B).mean(), (target_B - q_B).detach().abs()


def categorical_loss(logit_BX: Tensor, target_BX: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted Kullback-Leibler divergence of the prediction from the target (scalar), and its terms (B,).

    Bellemare et al. 2017, algorithm 1, whose cross-entropy has the same gradient; the divergence is what Rainbow ranks
    transitions by (Hessel et al. 2018, "The integrated agent").
    """
    divergence_BX = torch.xlogy(target_BX, target_BX) - target_BX * F.log_softmax(logit_BX, dim=1)
    loss_B = divergence_BX.sum(dim=1)
    return (weight_B * loss_B).mean(), loss_B.detach().clamp(min=0)


def quantile_loss(z_BT: Tensor, tau_BT: Tensor, target_BS: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted quantile Huber loss with threshold 1 (scalar), and the mean |error| over all pairs (B,).

    The sum over predicted quantiles of the mean over target quantiles (Dabney et al. 2018, "Distributional
    Reinforcement Learning with Quantile Regression", equation 10; "Implicit Quantile Networks", equation 3).

    Args:
        z_BT: the quantiles at `tau_BT`, fractions from 0 to 1.
        target_BS: samples, or quantiles, of the return.
    """
    error_BTS = target_BS[:, None] - z_BT[:, :, None]
    huber_BTS = F.huber_loss(error_BTS, torch.zeros_like(error_BTS), reduction="none")
    slope_BTS = (tau_BT[:, :, None] - (error_BTS.detach() < 0).to(z_BT.dtype)).abs()
    loss_B = (slope_BTS * huber_BTS).mean(dim=2).sum(dim=1)
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
    """Lambda returns (T, N) of T successive steps in N environments (Gallici et al. 2024, algorithm 1).

    R_t = r_t + gamma ((1 - trace) V_t+1 + trace R_t+1) where the game goes on; r_t at a terminal; r_t + gamma V_t+1
    where it is cut: at a truncation, and at the last of the steps, behind which no return is known.

    Args:
        reward_TN: of each step.
        terminal_TN, cut_TN: 1 where the step ended the episode for good; where the episode was cut, as the last step is
            anyway.
        bootstrap_TN: V_t+1, the best value of the observation that the step led to, before any reset.
        gamma: discount of one step.
        trace: lambda, 0 for one-step targets, 1 for all of the return.
    """
    last = len(reward_TN) - 1
    going_TN = gamma * (1 - terminal_TN)
    trace_TN = td_lambda * (1 - truncated_TN)
    trace_TN[last] = 0
    # What a step gives by itself, and its share of the return that follows.
    own_TN = reward_TN + going_TN * (1 - trace_TN) * next_value_TN
    share_TN = going_TN * trace_TN
    returns = [own_TN[last]]
    for t in range(last - 1, -1, -1):
        returns.append(own_TN[t] + share_TN[t] * returns[-1])
    return torch.stack(returns[::-1])
