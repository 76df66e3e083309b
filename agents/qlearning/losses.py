"""Parts of the targets and losses of Q-learning, as pure functions.

The TD target and the loss of DQN are in agents/dqn.py, the lambda-returns and the loss of PQN in agents/pqn.py.

Shapes: B batch, X atoms, K shifted atoms, E edges of bins, T quantiles, S target quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def two_hot(value_B: Tensor, support_X: Tensor) -> Tensor:
    """Return probabilities (B, X) of the two atoms next to each value, whose mean is the value.

    Farebrother et al. 2024, "Stop Regressing: Training Value Functions via Classification for Scalable Deep RL",
    section 3.1, "Two-Hot". Values are clipped to the range of the support.
    """
    return project(value_B[:, None], torch.ones_like(value_B[:, None]), support_X)


def hl_gauss(value_B: Tensor, support_X: Tensor, sigma: float) -> Tensor:
    """Return probabilities (B, X) of a normal distribution around each value, in bins that are centered on the atoms.

    Farebrother et al. 2024, section 3.1, "HL-Gauss", after Imani and White 2018, "Improving Regression Performance with
    Distributional Losses". The probabilities are divided by their sum. Values are clipped to the range of the support,
    which the published listing leaves out: far outside of it, the sum would be 0.

    Args:
        value_B: means.
        support_X: atoms, the centers of the bins.
        sigma: standard deviation, in widths of a bin.
    """
    width = (support_X[-1] - support_X[0]) / (len(support_X) - 1)
    edge_E = torch.cat([support_X - width / 2, support_X[-1:] + width / 2])  # E = X + 1
    value_B1 = torch.minimum(torch.maximum(value_B[:, None], support_X[0]), support_X[-1])
    cdf_BE = torch.erf((edge_E - value_B1) / (sigma * width * 2**0.5))  # twice the distribution function, minus 1
    return cdf_BE.diff(dim=1) / (cdf_BE[:, -1:] - cdf_BE[:, :1])


C51_TARGETS: Mapping[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "c51": lambda atom_BK, probability_BK, support_X, sigma: project(atom_BK, probability_BK, support_X),
    "two_hot": lambda atom_BK, probability_BK, support_X, sigma: two_hot(
        (atom_BK * probability_BK).sum(dim=1), support_X
    ),
    "hl_gauss": lambda atom_BK, probability_BK, support_X, sigma: hl_gauss(
        (atom_BK * probability_BK).sum(dim=1), support_X, sigma
    ),
}
"""Target distributions of head c51 by name: functions of the shifted atoms of the target network (B, K), their
probabilities (B, K), the support (X,) and sigma of `hl_gauss`, which return probabilities (B, X). The mean of the
shifted atoms is the TD target of a scalar head."""


def kl_divergence(logit_BX: Tensor, target_BX: Tensor) -> Tensor:
    """Kullback-Leibler divergence (B,) of target probabilities from the softmax of logits.

    It is the cross-entropy less the entropy of the target, which has no gradient.
    """
    divergence_BX = torch.xlogy(target_BX, target_BX) - target_BX * F.log_softmax(logit_BX, dim=1)
    return divergence_BX.sum(dim=1)


def cross_entropy(logit_BX: Tensor, target_BX: Tensor) -> Tensor:
    """Cross-entropy (B,) of target probabilities and the softmax of logits (Bellemare et al. 2017, algorithm 1)."""
    return -(target_BX * F.log_softmax(logit_BX, dim=1)).sum(dim=1)


CATEGORICAL_LOSSES = {"kl": kl_divergence, "cross_entropy": cross_entropy}
"""Losses of C51 by name. The gradient is the same, but priorities that are computed from them differ: Hessel et al.
2018 write "KL loss" ("The integrated agent"), and rlpyt (cat_dqn.py) and SPR's code use KL; DQN Zoo, Dopamine,
Kaixhin's Rainbow and CleanRL use the cross-entropy."""


def huber_after_weight(q_BX: Tensor, target_BX: Tensor, weight_B: Tensor) -> Tensor:
    """Huber loss (B, X) whose threshold is 1 / weight: its gradient times the weight is that of the weighted error.

    With `huber_loss`, the gradient of a weighted loss is weight * clip(error, -1, 1). Here it is
    clip(weight * error, -1, 1), as in DQN Zoo. A weight of 0 gives the squared error, which the caller multiplies by 0.
    """
    error_BX = target_BX - q_BX
    limit_B1 = 1 / weight_B[:, None].clamp(min=torch.finfo(torch.float32).tiny)
    clipped_BX = torch.minimum(torch.maximum(error_BX, -limit_B1), limit_B1)
    return clipped_BX * (error_BX - clipped_BX / 2)


SCALAR_LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "huber": lambda q_BX, target_BX, weight_B: F.huber_loss(q_BX, target_BX, reduction="none"),
    "huber_after_weight": huber_after_weight,
    "mse": lambda q_BX, target_BX, weight_B: F.mse_loss(q_BX, target_BX, reduction="none"),
}
"""Losses of the scalar head by name, of (Q-values (B, 1), targets (B, 1), weights (B,)); returns them (B, 1)."""


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
