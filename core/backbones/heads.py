"""Heads that turn a feature map into logits. Their weights are named as torchvision names them.

Shapes: B batch, C channels, H, W pixels of a feature map, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class PooledHead(nn.Module):
    """The mean over the map and one linear layer, `fc`: Lin et al. 2014, "Network in Network", and all since."""

    def __init__(self, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = nn.Linear(channels, classes)
        nn.init.normal_(self.fc.weight, std=channels**-0.5)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits_BK: Tensor = self.fc(F.dropout(x_BCHW.mean((2, 3)), self.dropout, self.training))
        return logits_BK


class FlatHead(nn.Module):
    """The map, flattened, through `classifier`: hidden layers with ReLU, and the output.

    Args:
        channels, size: of the map.
        hidden_units: of each hidden layer.
        classes: K.
        dropout: of every hidden layer.
        most: the map is averaged to this (H, W) where it is larger, so that larger images need no other weights.
        dropout_first: drop before a hidden layer, as AlexNet does, instead of behind it.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        hidden_units: Sequence[int],
        classes: int,
        dropout: float = 0.0,
        *,
        most: tuple[int, int] | None = None,
        dropout_first: bool = False,
    ) -> None:
        super().__init__()
        self.pool_to = size if most is None else (min(size[0], most[0]), min(size[1], most[1]))
        self._pools = self.pool_to != size
        units = channels * self.pool_to[0] * self.pool_to[1]
        layers: list[nn.Module] = []
        for number in hidden_units:
            linear = nn.Linear(units, number)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            drop = nn.Dropout(dropout)
            layers += [drop, linear, nn.ReLU()] if dropout_first else [linear, nn.ReLU(), drop]
            units = number
        out = nn.Linear(units, classes)
        nn.init.normal_(out.weight, std=units**-0.5)
        for layer in (*layers, out):
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        self.classifier = nn.Sequential(*layers, out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        if self._pools:
            x_BCHW = F.adaptive_avg_pool2d(x_BCHW, self.pool_to)
        logits_BK: Tensor = self.classifier(x_BCHW.flatten(1))
        return logits_BK
