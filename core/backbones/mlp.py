"""Multilayer perceptron, for observations that are vectors, or for flattened images.

Two fully connected hidden layers with ReLU, as in the default networks of Stable-Baselines3 and CleanRL for vectors.
"""

from __future__ import annotations

from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, scaled
from zerokara.core.layers import relu

HIDDEN_UNITS = 128


class Mlp(Backbone):
    """Two hidden layers of 128 units. Its feature maps have one pixel.

    Args:
        in_channels: channels of the images, or numbers of a vector.
        image_size: side or (H, W) of the images, in pixels; 1 for vectors.
        width: factor on the units.
        layer_norm: normalize the units before the ReLU.
    """

    default_input = (1, 28)
    default_classes = 10

    def __init__(
        self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0, layer_norm: bool = False
    ) -> None:
        super().__init__(in_channels, image_size)
        inputs, units = in_channels * self.image_size[0] * self.image_size[1], scaled(HIDDEN_UNITS, width)
        self.linears = nn.ModuleList([nn.Linear(inputs, units), nn.Linear(units, units)])
        self.norms = nn.ModuleList(nn.LayerNorm(units) if layer_norm else nn.Identity() for _ in self.linears)
        he_init(self)
        self.stage_shapes = [(units, 1, 1)] * len(self.linears)
        self.out_channels, self.out_size = units, (1, 1)

    def stages(self, x: Tensor) -> list[Tensor]:
        x = x.flatten(1)
        maps = []
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = relu(norm(linear(x)))
            maps.append(x[:, :, None, None])
        return maps
