"""AlexNet, in two forms.

`alexnet`: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", footnote 1, as
torchvision publishes it: 61,100,840 parameters at 1,000 classes.
`alexnet_2012`: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", section 3:
the second, fourth and fifth convolution see half of the channels each (it ran on two GPUs), and responses are
normalised across channels; 60,965,224 parameters.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zerokara.core.backbones.base import PooledBackbone, Stem, he_init, scaled
from zerokara.core.backbones.heads import FlatHead

_STEMS: dict[Stem, tuple[int, int, int]] = {"paper": (11, 4, 2), "medium": (7, 2, 3), "small": (5, 1, 2)}


class AlexNet(PooledBackbone):
    """Five convolutions and three pools.

    Args:
        width: factor on the channels and on the 4,096 hidden units of the head.
        stem: "paper" is an 11x11 convolution of stride 4, for some 224 pixels; "medium" 7x7 of stride 2, for some 100;
            "small" 5x5 of stride 1, for 32 to 64.
    """

    channels: ClassVar[tuple[int, ...]] = (64, 192, 384, 256, 256)
    groups: ClassVar[tuple[int, ...]] = (1, 1, 1, 1, 1)
    normalises: ClassVar[bool] = False

    def __init__(
        self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0, stem: Stem = "paper"
    ) -> None:
        super().__init__(in_channels, image_size)
        self.width = width
        kernels = [_STEMS[stem], (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]
        layers: list[nn.Module] = []
        for place, (channels, groups, (kernel, stride, padding)) in enumerate(
            zip(self.channels, self.groups, kernels, strict=True)
        ):
            out_channels = groups * scaled(channels // groups, width)
            layers += [nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups), nn.ReLU()]
            if self.normalises and place < 2:
                # Section 3.3; PyTorch divides alpha by the number of channels that it sums over, the paper does not.
                layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
            if place in (0, 1, 4):
                layers.append(nn.MaxPool2d(3, 2))
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)
        he_init(self)
        self._measure()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """6x6 cells, and twice 4,096 hidden units behind dropout of 0.5."""
        dropout = 0.5 if dropout is None else dropout
        units = scaled(4096, self.width)
        size = self.out_size
        return FlatHead(self.out_channels, size, [units, units], classes, dropout, most=(6, 6), dropout_first=True)


class AlexNet2012(AlexNet):
    """The network of 2012, on one device."""

    name = "alexnet_2012"
    channels = (96, 256, 384, 384, 256)
    groups = (1, 2, 1, 2, 2)
    normalises = True
