"""Targets and losses of Q-learning, as pure functions.

Shapes: B batch, A actions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def td_target(
    reward_B: Tensor, discount_B: Tensor, next_target_q_BA: Tensor, next_online_q_BA: Tensor | None
) -> Tensor:
    """The value (B,) that Q(s, a) is drawn to: r + discount * Q_target(s', a').

    a' is the target network's best action (Mnih et al. 2015, algorithm 1) or, where `next_online_q_BA` is given, the
    online network's (van Hasselt et al. 2016, "Deep Reinforcement Learning with Double Q-learning", equation 4).

    Args:
        reward_B: sum of discounted rewards until the bootstrap.
        discount_B: what the bootstrap is multiplied by; 0 after a terminal.
    """
    chooser_BA = next_target_q_BA if next_online_q_BA is None else next_online_q_BA
    best_B1 = chooser_BA.argmax(dim=1, keepdim=True)
    return reward_B + discount_B * next_target_q_BA.gather(1, best_B1).squeeze(1)


def td_loss(q_BA: Tensor, action_B: Tensor, target_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted Huber loss (scalar), and |error| (B,).

    The Huber loss with threshold 1 has the gradient of the paper's error clipped to [-1, 1] (Mnih et al. 2015,
    Methods).
    """
    q_B = q_BA.gather(1, action_B[:, None]).squeeze(1)
    loss_B = F.huber_loss(q_B, target_B, reduction="none")
    return (weight_B * loss_B).mean(), (target_B - q_B).detach().abs()
