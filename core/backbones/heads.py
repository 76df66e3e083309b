"""Classifier heads, from a feature map to logits. Their weights have torchvision's names.

Shapes: B batch, C channels, H, W pixels of a feature map, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class PooledHead(nn.Module):
    """Global average pooling (Lin et al. 2014, "Network in Network") and one linear layer, `fc`."""

    def __init__(self, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = nn.Linear(channels, classes)
        nn.init.normal_(self.fc.weight, std=channels**-0.5)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute logits (B, K)."""
        logits_BK: Tensor = self.fc(F.dropout(x_BCHW.mean((2, 3)), self.dropout, self.training))
        return logits_BK


class MaxPooledHead(nn.Module):
    """Global max-pooling and one linear layer without bias, `fc`, whose weights have standard deviation 1 / channels.

    Jordan 2024 (arXiv 2404.00498), section 3.3, in the version with Muon: weights of standard deviation 1, logits
    divided by the number of channels. Here the division is part of the weights, which gives the same function. A step
    of SGD with learning rate r on the published weights is one with r / channels^2 on these.
    """

    def __init__(self, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = nn.Linear(channels, classes, bias=False)
        bound = 3**0.5 / channels  # of a uniform distribution with standard deviation 1 / channels
        nn.init.uniform_(self.fc.weight, -bound, bound)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute logits (B, K)."""
        x_BC = F.max_pool2d(x_BCHW, (x_BCHW.shape[2], x_BCHW.shape[3])).flatten(1)
        logits_BK: Tensor = self.fc(F.dropout(x_BC, self.dropout, self.training))
        return logits_BK


class FlatHead(nn.Module):
    """Flattened feature map, hidden layers with ReLU, and an output layer (`classifier`).

    Args:
        channels: of the feature map.
        size: (H, W) of the feature map.
        hidden_units: of each hidden layer.
        classes: K.
        dropout: dropout probability of every hidden layer.
        max_size: maximum (H, W); larger maps are average-pooled to it, so that the number of weights does not depend
            on the image size.
        dropout_first: apply dropout before each hidden layer, as in AlexNet, instead of after it.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        hidden_units: Sequence[int],
        classes: int,
        dropout: float = 0.0,
        *,
        max_size: tuple[int, int] | None = None,
        dropout_first: bool = False,
    ) -> None:
        super().__init__()
        self.pool_to = size if max_size is None else (min(size[0], max_size[0]), min(size[1], max_size[1]))
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
        """Compute logits (B, K)."""
        if self._pools:
            x_BCHW = F.adaptive_avg_pool2d(x_BCHW, self.pool_to)
        logits_BK: Tensor = self.classifier(x_BCHW.flatten(1))
        return logits_BK
