"""What a Q-network says of an action: its expected return, a distribution over atoms, or quantiles of the return.

A head gives meaning to the X numbers that the network's streams have for every action: values for who plays, target and
loss for who learns. One interface for all, by name in `HEADS`.

Shapes: B batch, A actions, M actions that may follow, F features, X numbers of an action, T quantiles.
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
    """The expected return, one number (Mnih et al. 2015); the interface of all heads."""

    outputs = 1  # X, or 1 where the streams are asked once for each quantile

    def embed(self, features_BF: Tensor, tau_BT: Tensor | None) -> Tensor:
        """What the streams are given: the features, or (B * T, F) of them, one row for each quantile asked for."""
        return features_BF

    def sample_taus(self, batch_size: int, generator: torch.Generator) -> TauSamples:
        """The random fractions of an update, (B, T) for the online and (B, S) for the target network; None: none."""
        return None, None

    def values(self, z_BXA: Tensor) -> Tensor:
        """Expected returns (B, A)."""
        return z_BXA.mean(dim=1) if z_BXA.shape[1] > 1 else z_BXA.squeeze(1)

    def target(self, reward_B: Tensor, discount_B: Tensor, next_values: NextValues) -> Tensor:
        """What the numbers (B, X) of the action that was taken are drawn to."""
        return td_target(reward_B, discount_B, next_values)

    def loss(
        self, z_BXA: Tensor, action_B: Tensor, target_BX: Tensor, weight_B: Tensor, tau_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss (scalar), and how wrong each transition was (B,), for its priority."""
        return td_loss(z_BXA.squeeze(1), action_B, target_BX.squeeze(1), weight_B)


class Categorical(ExpectedReturn):
    """C51: logits of evenly spaced atoms (Bellemare et al. 2017, "A Distributional Perspective on RL").

    Args:
        num_atoms: X.
        v_min, v_max: returns of the first and of the last atom; returns outside are clipped to these.
    """

    atom_X: Tensor

    def __init__(self, num_atoms: int, v_min: float, v_max: float) -> None:
        super().__init__()
        self.outputs = num_atoms
        self.register_buffer("atom_X", torch.linspace(v_min, v_max, num_atoms), persistent=False)

    def values(self, z_BXA: Tensor) -> Tensor:
        """Expected returns (B, A)."""
        return (z_BXA.softmax(dim=1) * self.atom_X[:, None]).sum(dim=1)

    def target(self, reward_B: Tensor, discount_B: Tensor, next_values: NextValues) -> Tensor:
        """Probabilities (B, X)."""
        return categorical_target(reward_B, discount_B, next_values, self.atom_X)

    def loss(
        self, z_BXA: Tensor, action_B: Tensor, target_BX: Tensor, weight_B: Tensor, tau_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Divergence from the target (scalar), and its terms (B,)."""
        return categorical_loss(_taken(z_BXA, action_B), target_BX, weight_B)


class Quantiles(ExpectedReturn):
    """QR-DQN: the return's quantiles at fixed fractions (Dabney et al. 2018, "Distributional RL with Quantile Regr.").

    Args:
        num_quantiles: X, at (i + 1/2) / X.
    """

    tau_1X: Tensor

    def __init__(self, num_quantiles: int) -> None:
        super().__init__()
        self.outputs = num_quantiles
        self.register_buffer("tau_1X", _midpoints(num_quantiles), persistent=False)

    def loss(
        self, z_BXA: Tensor, action_B: Tensor, target_BX: Tensor, weight_B: Tensor, tau_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Quantile Huber loss (scalar), and mean |error| (B,)."""
        tau = self.tau_1X if tau_BT is None else tau_BT
        return quantile_loss(_taken(z_BXA, action_B), tau, target_BX, weight_B)


class ImplicitQuantiles(Quantiles):
    """IQN: the quantile at any fraction, which the network is given (Dabney et al. 2018, "Implicit Quantile Networks").

    The features are multiplied by an embedding of the fraction, relu(linear(cos(pi i tau))), i from 0 on (equation 4).
    To choose an action, the fractions are evenly spaced in place of drawn: the same expectation without chance.

    Args:
        features: F.
        num_tau_samples: T, drawn for the prediction (the paper's N).
        num_target_tau_samples: drawn for the target (N').
        num_policy_tau_samples: evenly spaced, for values (K).
        cosine_embedding_dim: C, cosines that embed a fraction.
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
        """Features (B * T, F) for the fractions, or for the evenly spaced ones."""
        tau = self.tau_1X if tau_BT is None else tau_BT
        embedded = F.relu(self.embedding(torch.cos(tau[:, :, None] * self.frequency_C)))
        return (features_BF[:, None] * embedded).flatten(0, 1)

    def sample_taus(self, batch_size: int, generator: torch.Generator) -> TauSamples:
        """Uniform fractions."""
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
    """The numbers (B, X) of the actions that were taken."""
    return z_BXA.gather(2, action_B[:, None, None].expand(-1, z_BXA.shape[1], 1)).squeeze(2)


def _midpoints(number: int) -> Tensor:
    """(1, number): fractions in the middle of so many equal parts."""
    return ((torch.arange(number) + 0.5) / number)[None]
