"""The Q-network: a backbone and a head.

Shapes: B batch, C channels, H, W pixels, A actions.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from core.backbones import build


class QNetwork(nn.Module):
    """Values of every action, from pixels.

    Args:
        obs_shape: (C, H, W).
        num_actions: A.
        backbone: a name of `core.backbones`; width: its channels are multiplied by it.
        hidden_units: units of the hidden layer (of each stream, if dueling).
        dueling: split into value and advantage (Wang et al. 2016, "Dueling Network Architectures", equation 9).
        layer_norm: normalise the hidden layer before its ReLU (Ba et al. 2016; in Q-learning Gallici et al. 2024).
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
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.backbone = build(backbone, obs_shape[0], obs_shape[1:], width=width)
        self.advantage = _head(self.backbone.features, hidden_units, num_actions, layer_norm)
        self.value = _head(self.backbone.features, hidden_units, 1, layer_norm) if dueling else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Q-values (B, A) in float32, of images scaled to [0, 1]."""
        features = self.backbone(x_BCHW).flatten(1)
        q_BA: Tensor = self.advantage(features)
        if self.value is not None:
            q_BA = q_BA - q_BA.mean(dim=1, keepdim=True) + self.value(features)
        return q_BA.float()


def _head(features: int, hidden_units: int, outputs: int, layer_norm: bool) -> nn.Sequential:
    """Hidden layer and output. He initialisation; the outputs start near zero, so that no action starts favoured."""
    hidden, out = nn.Linear(features, hidden_units), nn.Linear(hidden_units, outputs)
    nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
    nn.init.zeros_(hidden.bias)
    nn.init.normal_(out.weight, std=0.1 / math.sqrt(hidden_units))
    nn.init.zeros_(out.bias)
    norm = nn.LayerNorm(hidden_units) if layer_norm else nn.Identity()
    return nn.Sequential(hidden, norm, nn.ReLU(), out)
