"""Heads: scalar Q-values, categorical distributions (C51), and quantiles (QR-DQN, IQN).

The streams of a Q-network have X outputs per action. A head computes from them the Q-values, the TD target and the
loss. All heads have the interface of `ExpectedReturn`; `HEADS` lists them by name.

Shapes: B batch, A actions, M next actions (1 or A), F features, X outputs per action, T and S quantile fractions of the
online and of the target network, C cosines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.agents.qlearning.losses import (
    NextValues,
    categorical_loss,
    categorical_target,
    quantile_loss,
    td_loss,
    td_target,
)

TauSamples = tuple[Tensor | None, Tensor | None]


class ExpectedReturn(nn.Module):
    """Scalar head: the expected return of each action (Mnih et al. 2015). Base class of all heads."""

    outputs = 1  # X; 1 for IQN, whose streams run once for each quantile fraction

    def embed(self, features_BF: Tensor, tau_BT: Tensor | None) -> Tensor:
        """Return the input of the streams: the features (B, F), or (B * T, F) with one row per quantile fraction."""
        return features_BF

    def sample_taus(self, batch_size: int, generator: torch.Generator) -> TauSamples:
        """Sample quantile fractions for one update, (B, T) for the online and (B, S) for the target network.

        Heads without sampled fractions return None for both.
        """
        return None, None

    def values(self, z_BXA: Tensor) -> Tensor:
        """Q-values (B, A)."""
        return z_BXA.mean(dim=1) if z_BXA.shape[1] > 1 else z_BXA.squeeze(1)

    def target(self, reward_B: Tensor, discount_B: Tensor, next_values: NextValues) -> Tensor:
        """TD target (B, X) for the outputs of the action that was taken."""
        return td_target(reward_B, discount_B, next_values)

    def loss(
        self, z_BXA: Tensor, action_B: Tensor, target_BX: Tensor, weight_B: Tensor, tau_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss (scalar), and the error of each transition (B,), from which its priority is computed."""
        return td_loss(z_BXA.squeeze(1), action_B, target_BX.squeeze(1), weight_B)


class Categorical(ExpectedReturn):
    """C51 head: logits of evenly spaced atoms (Bellemare et al. 2017, "A Distributional Perspective on RL").

    Args:
        num_atoms: X.
        v_min: return of the first atom; smaller returns are clipped to it.
        v_max: return of the last atom; larger returns are clipped to it.
    """

    atom_X: Tensor

    def __init__(self, num_atoms: int, v_min: float, v_max: float) -> None:
        super().__init__()
        self.outputs = num_atoms
        self.register_buffer("atom_X", torch.linspace(v_min, v_max, num_atoms), persistent=False)

    def values(self, z_BXA: Tensor) -> Tensor:
        """Q-values (B, A): means of the distributions."""
        return (z_BXA.softmax(dim=1) * self.atom_X[:, None]).sum(dim=1)

    def target(self, reward_B: Tensor, discount_B: Tensor, next_values: NextValues) -> Tensor:
        """Target probabilities (B, X) of the atoms."""
        return categorical_target(reward_B, discount_B, next_values, self.atom_X)

    def loss(
        self, z_BXA: Tensor, action_B: Tensor, target_BX: Tensor, weight_B: Tensor, tau_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """KL divergence from the target: weighted mean (scalar), and per transition (B,)."""
        return categorical_loss(_taken(z_BXA, action_B), target_BX, weight_B)


class Quantiles(ExpectedReturn):
    """QR-DQN head: quantiles at fixed fractions (Dabney et al. 2018, "Distributional RL with Quantile Regression").

    Args:
        num_quantiles: X; the fractions are (i + 1/2) / X.
    """

    tau_1X: Tensor

    def __init__(self, num_quantiles: int) -> None:
        super().__init__()
        self.outputs = num_quantiles
        self.register_buffer("tau_1X", _midpoints(num_quantiles), persistent=False)

    def loss(
        self, z_BXA: Tensor, action_B: Tensor, target_BX: Tensor, weight_B: Tensor, tau_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Quantile Huber loss: weighted mean (scalar), and mean absolute TD error per transition (B,)."""
        tau = self.tau_1X if tau_BT is None else tau_BT
        return quantile_loss(_taken(z_BXA, action_B), tau, target_BX, weight_B)


class ImplicitQuantiles(Quantiles):
    """IQN head: the quantile fraction is an input (Dabney et al. 2018, "Implicit Quantile Networks").

    The features are multiplied by an embedding of the fraction tau, relu(linear(cos(pi i tau))), i = 0, ..., C - 1
    (equation 4). For action selection the fractions are evenly spaced instead of sampled, which gives the same mean
    without variance.

    Args:
        features: F.
        num_tau_samples: T, fractions sampled for the online network (N in the paper).
        num_target_tau_samples: S, fractions sampled for the target network (N' in the paper).
        num_policy_tau_samples: evenly spaced fractions for Q-values (K in the paper).
        cosine_embedding_dim: C, dimension of the cosine embedding.
    """

    frequency_C: Tensor

    def __init__(
        self,
        features: int,
        num_tau_samples: int,
        num_target_tau_samples: int,
        num_policy_tau_samples: int,
        cosine_embedding_dim: int,
    ) -> None:
        super().__init__(num_policy_tau_samples)
        self.outputs = 1
        self.num_tau_samples, self.num_target_tau_samples = num_tau_samples, num_target_tau_samples
        self.embedding = nn.Linear(cosine_embedding_dim, features)
        self.register_buffer("frequency_C", math.pi * torch.arange(cosine_embedding_dim), persistent=False)

    def embed(self, features_BF: Tensor, tau_BT: Tensor | None) -> Tensor:
        """Features (B * T, F) multiplied by the embeddings of `tau_BT`; None: of the evenly spaced fractions."""
        tau = self.tau_1X if tau_BT is None else tau_BT
        embedded = F.relu(self.embedding(torch.cos(tau[:, :, None] * self.frequency_C)))
        return (features_BF[:, None] * embedded).flatten(0, 1)

    def sample_taus(self, batch_size: int, generator: torch.Generator) -> TauSamples:
        """Sample fractions uniformly from [0, 1): (B, T) and (B, S)."""
        shapes = (batch_size, self.num_tau_samples), (batch_size, self.num_target_tau_samples)
        online, target = (torch.rand(shape, generator=generator, device=generator.device) for shape in shapes)
        return online, target


HEADS: dict[str, Callable[[Any, int], ExpectedReturn]] = {
    "q": lambda config, features: ExpectedReturn(),
    "c51": lambda config, features: Categorical(config.num_atoms, *config.value_range),
    "qr": lambda config, features: Quantiles(config.num_quantiles),
    "iqn": lambda config, features: ImplicitQuantiles(
        features,
        config.num_tau_samples,
        config.num_target_tau_samples,
        config.num_policy_tau_samples,
        config.cosine_embedding_dim,
    ),
}


def _taken(z_BXA: Tensor, action_B: Tensor) -> Tensor:
    """Outputs (B, X) of the actions that were taken."""
    return z_BXA.gather(2, action_B[:, None, None].expand(-1, z_BXA.shape[1], 1)).squeeze(2)


def _midpoints(number: int) -> Tensor:
    """Midpoints (1, number) of equal subintervals of [0, 1]."""
    return ((torch.arange(number) + 0.5) / number)[None]
