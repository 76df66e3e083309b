"""Distributional parts of the targets and losses of Q-learning, as pure functions.

The TD target and the loss of DQN are in agents/dqn.py, the lambda-returns and the loss of PQN in agents/pqn.py.

Shapes: B batch, X atoms, K shifted atoms, T quantiles, S target quantiles.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def kl_divergence(logit_BX: Tensor, target_BX: Tensor) -> Tensor:
    """Kullback-Leibler divergence (B,) of target probabilities from the softmax of logits.

    The cross-entropy in Bellemare et al. 2017, algorithm 1, has the same gradient. Rainbow computes priorities from the
    divergence (Hessel et al. 2018, "The integrated agent").
    """
    divergence_BX = torch.xlogy(target_BX, target_BX) - target_BX * F.log_softmax(logit_BX, dim=1)
    return divergence_BX.sum(dim=1)


def quantile_huber_loss(z_BT: Tensor, tau_BT: Tensor, target_BS: Tensor) -> Tensor:
    """Quantile Huber loss (B,) with threshold 1.

    It is summed over predicted quantiles and averaged over target quantiles (Dabney et al. 2018, "Distributional
    Reinforcement Learning with Quantile Regression", equation 10; "Implicit Quantile Networks", equation 3).

    Args:
        z_BT: predicted quantiles at the fractions `tau_BT`.
        tau_BT: fractions in [0, 1], (B, T) or (1, T).
        target_BS: target samples or quantiles of the return.
    """
    error_BTS = target_BS[:, None] - z_BT[:, :, None]
    huber_BTS = F.huber_loss(error_BTS, torch.zeros_like(error_BTS), reduction="none")
    quantile_weight_BTS = (tau_BT[:, :, None] - (error_BTS.detach() < 0).to(z_BT.dtype)).abs()
    return (quantile_weight_BTS * huber_BTS).mean(dim=2).sum(dim=1)
