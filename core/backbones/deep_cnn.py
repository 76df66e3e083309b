"""The deep CNN of the book: *Deep Learning from Scratch*, chapter 8, after Simonyan and Zisserman's VGG.

3x3 filters in pairs of 16, 32 and 64 channels, each pair followed by a 2x2 max-pool; He initialisation. The fourth
convolution is padded by 2, so that 28x28 becomes 14, 16, 8 and 4. With its head of 50 hidden units and ten classes it
has 123,552 parameters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, scaled
from zerokara.core.backbones.heads import FlatHead


class WidelyPadded(nn.Conv2d):
    """A convolution whose outermost ring of padding lies in its input while it learns.

    oneDNN takes five times as long for the gradient of 3x3 filters padded by 2 as for those padded by 1, in 16 bits, a
    third of a whole update of this network (docs/LOG.md).
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        inner = (self.padding[0] - 1, self.padding[1] - 1)  # type: ignore[operator]  # numbers, no "same"
        return F.conv2d(F.pad(x_BCHW, (1, 1, 1, 1)), self.weight, self.bias, padding=inner)


class DeepCnn(Backbone):
    """Six convolutions. `width` multiplies the channels and the hidden units of the head."""

    name = "deep_cnn"
    usual_input = (1, 28)
    usual_classes = 10

    def __init__(self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0) -> None:
        super().__init__(in_channels, image_size)
        self.width = width
        layers: list[nn.Module] = []
        for pair, channels in enumerate((16, 32, 64)):
            out_channels = scaled(channels, width)
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1),
                nn.ReLU(),
                WidelyPadded(out_channels, out_channels, 3, padding=2)
                if pair == 1
                else nn.Conv2d(out_channels, out_channels, 3, padding=1),
                # ReLU and maximum may change places, and behind the pool ReLU has a quarter of the work.
                nn.MaxPool2d(2),
                nn.ReLU(),
            ]
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)
        he_init(self)
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place % 5 == 4:
                maps.append(x)
        return maps

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """50 hidden units, half of them dropped. The book's He initialisation goes for its output layer too."""
        dropout = 0.5 if dropout is None else dropout
        head = FlatHead(self.out_channels, self.out_size, [scaled(50, self.width)], classes, dropout)
        he_init(head)
        return head
