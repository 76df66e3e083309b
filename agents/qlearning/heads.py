"""Heads: scalar Q-values, categorical distributions (C51), and quantiles (QR-DQN, IQN).

The streams of a Q-network have X outputs per action. A head computes the Q-values from them. All heads have the
interface of `ScalarHead`; `HEADS` lists them by name. Their TD targets and losses are in agents/dqn.py.

Shapes: B batch, A actions, F features, X outputs per action, T and S quantile fractions of the online and of the target
network, C cosines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TauSamples = tuple[Tensor | None, Tensor | None]


def outputs_of_actions(z_BXA: Tensor, action_B: Tensor) -> Tensor:
    """Outputs (B, X) of one action per row."""
    return z_BXA.gather(2, action_B[:, None, None].expand(-1, z_BXA.shape[1], 1)).squeeze(2)


class ScalarHead(nn.Module):
    """Scalar head: the expected return of each action (Mnih et al. 2015). Base class of all heads."""

    outputs = 1  # X; 1 for IQN, whose streams run once for each quantile fraction

    def embed(self, features_BF: Tensor, tau_BT: Tensor | None) -> Tensor:
        """Return the input of the streams: the features (B, F), or (B * T, F) with one row per quantile fraction."""
        return features_BF

    def sample_taus(self, batch_size: int, generator: torch.Generator) -> TauSamples:
        """Quantile fractions of one update, (B, T) for the online and (B, S) for the target network.

        Heads without quantiles return None for both. Fixed fractions are (1, T), and None for the target network.
        """
        return None, None

    def values(self, z_BXA: Tensor) -> Tensor:
        """Q-values (B, A)."""
        return z_BXA.mean(dim=1) if z_BXA.shape[1] > 1 else z_BXA.squeeze(1)


class CategoricalHead(ScalarHead):
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


class QuantileHead(ScalarHead):
    """QR-DQN head: quantiles at fixed fractions (Dabney et al. 2018, "Distributional RL with Quantile Regression").

    Args:
        num_quantiles: X; the fractions are (i + 1/2) / X.
    """

    tau_1X: Tensor

    def __init__(self, num_quantiles: int) -> None:
        super().__init__()
        self.outputs = num_quantiles
        self.register_buffer("tau_1X", _midpoints(num_quantiles), persistent=False)

    def sample_taus(self, batch_size: int, generator: torch.Generator) -> TauSamples:
        """Fixed fractions (1, X), and None."""
        return self.tau_1X, None


class ImplicitQuantileHead(QuantileHead):
    """IQN head: the quantile fraction is an input (Dabney et al. 2018, "Implicit Quantile Networks").

    The features are multiplied by an embedding of the fraction tau, relu(linear(cos(pi i tau))), i = 0, ..., C - 1
    (equation 4), or i = 1, ..., C as in published code. For action selection the fractions are evenly spaced instead of
    sampled, which gives the same mean without variance.

    Args:
        features: F.
        num_tau_samples: T, fractions sampled for the online network (N in the paper).
        num_target_tau_samples: S, fractions sampled for the target network (N' in the paper).
        num_policy_tau_samples: evenly spaced fractions for Q-values (K in the paper).
        cosine_embedding_dim: C, dimension of the cosine embedding.
        cosine_embedding_first: first i.
    """

    frequency_C: Tensor

    def __init__(
        self,
        features: int,
        num_tau_samples: int,
        num_target_tau_samples: int,
        num_policy_tau_samples: int,
        cosine_embedding_dim: int,
        cosine_embedding_first: int = 0,
    ) -> None:
        super().__init__(num_policy_tau_samples)
        self.outputs = 1
        self.num_tau_samples, self.num_target_tau_samples = num_tau_samples, num_target_tau_samples
        self.embedding = nn.Linear(cosine_embedding_dim, features)
        i_C = torch.arange(cosine_embedding_first, cosine_embedding_first + cosine_embedding_dim)
        self.register_buffer("frequency_C", math.pi * i_C, persistent=False)

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


HEADS: dict[str, Callable[[Any, int], ScalarHead]] = {
    "q": lambda config, features: ScalarHead(),
    "c51": lambda config, features: CategoricalHead(config.num_atoms, *config.value_range),
    "qr": lambda config, features: QuantileHead(config.num_quantiles),
    "iqn": lambda config, features: ImplicitQuantileHead(
        features,
        config.num_tau_samples,
        config.num_target_tau_samples,
        config.num_policy_tau_samples,
        config.cosine_embedding_dim,
        config.cosine_embedding_first,
    ),
}


def _midpoints(number: int) -> Tensor:
    """Midpoints (1, number) of equal subintervals of [0, 1]."""
    return ((torch.arange(number) + 0.5) / number)[None]
