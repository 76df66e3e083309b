"""The Q-network: a backbone, the streams on top of it, and a head that says what their numbers mean.

Shapes: B batch, C channels, H, W pixels, F features, A actions, X numbers of an action (agents/qlearning/heads.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zerokara.agents.configs import dqn, pqn
from zerokara.agents.qlearning.heads import HEADS, ExpectedReturn
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.layers import NoisyLinear, ReLU


class QNetwork(nn.Module):
    """Values of every action, from pixels.

    Args:
        obs_shape: (C, H, W).
        num_actions: A.
        backbone: a name of `core.backbones`; width: its channels are multiplied by it.
        hidden_units: units of the hidden layer (of each stream, if dueling).
        dueling: split into value and advantage (Wang et al. 2016, "Dueling Network Architectures", equation 9).
        layer_norm: normalise the hidden layer before its ReLU (Ba et al. 2016; in Q-learning Gallici et al. 2024).
        backbone_gradient_scale: factor on the gradient that flows from the streams into the backbone (Wang et al. 2016,
            section 4.2, which has 1 / sqrt(2) for two streams).
        noisy_sigma_init: linear layers have noise of this size at first (Fortunato et al. 2018); None: they have none.
        backbone_options: what else the backbone takes.
        head: made from the number of features; None: expected returns alone.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        *,
        backbone: str,
        width: float,
        hidden_units: int,
        dueling: bool,
        layer_norm: bool,
        backbone_gradient_scale: float = 1.0,
        noisy_sigma_init: float | None = None,
        head: Callable[[int], ExpectedReturn] | None = None,
        backbone_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.backbone_gradient_scale = backbone_gradient_scale
        # Whether training and playing differ: noise is off, and power iterations rest, where nobody learns.
        self.has_train_mode = noisy_sigma_init is not None or bool((backbone_options or {}).get("spectral_norm"))
        self.backbone = make_backbone(backbone, obs_shape[0], obs_shape[1:], width=width, **(backbone_options or {}))
        features = self.backbone.features
        self.head = ExpectedReturn() if head is None else head(features)
        outputs = self.head.outputs
        self.advantage = _stream(features, hidden_units, outputs * num_actions, layer_norm, noisy_sigma_init)
        self.value = _stream(features, hidden_units, outputs, layer_norm, noisy_sigma_init) if dueling else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Q-values (B, A) in float32, of images scaled to [0, 1]."""
        return self.values(self.features(x_BCHW))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """What the eye sees, (B, F)."""
        features_BF: Tensor = self.backbone(x_BCHW).flatten(1)
        if self.backbone_gradient_scale == 1:
            return features_BF
        return torch.lerp(features_BF.detach(), features_BF, self.backbone_gradient_scale)

    def values(self, features_BF: Tensor) -> Tensor:
        """Q-values (B, A) in float32."""
        return self.head.values(self.outputs(features_BF))

    def outputs(self, features_BF: Tensor, tau_BT: Tensor | None = None) -> Tensor:
        """The head's numbers (B, X, A) in float32.

        Args:
            tau_BT: fractions at which an implicit quantile head is asked; None: evenly spaced ones.
        """
        x = self.head.embed(features_BF, tau_BT)
        z_BXA: Tensor = self.advantage(x).view(len(features_BF), -1, self.num_actions)
        if self.value is not None:
            z_BXA = z_BXA - z_BXA.mean(dim=2, keepdim=True) + self.value(x).view(len(features_BF), -1, 1)
        return z_BXA.float()


def _stream(
    features: int, hidden_units: int, outputs: int, layer_norm: bool, noisy_sigma_init: float | None
) -> nn.Sequential:
    """Hidden layer and output. He initialisation; the outputs start near zero, so that no action starts favoured.

    Noisy layers start as their paper has them.
    """
    norm = nn.LayerNorm(hidden_units) if layer_norm else nn.Identity()
    if noisy_sigma_init is not None:
        layers = (
            NoisyLinear(features, hidden_units, noisy_sigma_init),
            NoisyLinear(hidden_units, outputs, noisy_sigma_init),
        )
        return nn.Sequential(layers[0], norm, ReLU(), layers[1])
    hidden, out = nn.Linear(features, hidden_units), nn.Linear(hidden_units, outputs)
    nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
    nn.init.zeros_(hidden.bias)
    nn.init.normal_(out.weight, std=0.1 / math.sqrt(hidden_units))
    nn.init.zeros_(out.bias)
    return nn.Sequential(hidden, norm, ReLU(), out)


def make_network(config: dqn.Config, obs_shape: tuple[int, int, int], num_actions: int) -> QNetwork:
    """The Q-network that a config describes."""
    options: dict[str, dict[str, Any]] = {
        "impala": {"spectral_norm": config.spectral_norm, "pool_size": config.pool_size},
        "dcgan": {"norm": "none"},  # values of a state must not depend on the other states of a batch
    }
    return QNetwork(
        obs_shape,
        num_actions,
        backbone=config.backbone,
        width=config.width_multiplier,
        hidden_units=config.hidden_units,
        dueling=config.dueling,
        layer_norm=config.layer_norm,
        backbone_gradient_scale=config.backbone_gradient_scale,
        noisy_sigma_init=config.noisy_sigma_init if config.noisy else None,
        head=functools.partial(HEADS[config.head], config),
        backbone_options=options.get(config.backbone),
    )


def make_pqn_network(config: pqn.Config, obs_shape: tuple[int, int, int], num_actions: int) -> QNetwork:
    """The Q-network that a config describes, its weights drawn as in the published code (He et al. 2015)."""
    network = QNetwork(
        obs_shape,
        num_actions,
        backbone=config.backbone,
        width=config.width_multiplier,
        hidden_units=config.hidden_units,
        dueling=False,
        layer_norm=config.layer_norm,
        backbone_options={"layer_norm": config.layer_norm},
    )
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    out = network.advantage[-1].get_parameter("weight")
    nn.init.normal_(out, std=config.hidden_units**-0.5)
    return network
