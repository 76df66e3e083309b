"""Deep CNN of the book *Deep Learning from Scratch*, chapter 8, similar to Simonyan and Zisserman's VGG.

Pairs of 3x3 convolutions with 16, 32 and 64 channels, each pair followed by a 2x2 max-pool; He initialization. The
fourth convolution has padding 2, so that the sides are 28, 14, 16, 8 and 4. With its head of 50 hidden units and ten
classes it has 123,552 parameters.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, scaled
from zerokara.core.backbones.heads import FlatHead
from zerokara.core.max_pool import MaxPool2d


class WidelyPadded(nn.Conv2d):
    """Convolution that applies one pixel of its padding explicitly to the input in training mode.

    In 16 bits, oneDNN takes five times as long for the gradient of 3x3 filters with padding 2 as with padding 1, which
    was a third of the time of an update of this network (docs/LOG.md).
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        inner = (self.padding[0] - 1, self.padding[1] - 1)  # type: ignore[operator]  # integers, not "same"
        return F.conv2d(F.pad(x_BCHW, (1, 1, 1, 1)), self.weight, self.bias, padding=inner)


class DeepCnn(Backbone):
    """Six convolutions in three pairs.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels and on the hidden units of the head.
    """

    name = "deep_cnn"
    default_input = (1, 28)
    default_classes = 10

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
                # ReLU and max-pooling commute; after the pool, ReLU has a quarter of the elements.
                MaxPool2d(2),
                nn.ReLU(),
            ]
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)
        he_init(self)
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index % 5 == 4:
                maps.append(x)
        return maps

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: 50 hidden units, dropout 0.5. As in the book, the output layer has He initialization too."""
        dropout = 0.5 if dropout is None else dropout
        head = FlatHead(self.out_channels, self.out_size, [scaled(50, self.width)], classes, dropout)
        he_init(head)
        return head
