"""AlexNet, in two versions.

`alexnet`: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", footnote 1, as
torchvision publishes it: 61,100,840 parameters at 1,000 classes.
`alexnet_2012`: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", section 3:
the second, fourth and fifth convolution have two groups (the network ran on two GPUs), and responses are normalized
across channels; 60,965,224 parameters.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zerokara.core.backbones.base import PooledBackbone, he_init, scaled
from zerokara.core.backbones.heads import FlatHead
from zerokara.core.choices import Stem
from zerokara.core.max_pool import MaxPool2d

_STEMS: dict[Stem, tuple[int, int, int]] = {"paper": (11, 4, 2), "medium": (7, 2, 3), "small": (5, 1, 2)}


class AlexNet(PooledBackbone):
    """AlexNet of 2014: five convolutions and three max-pools.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels and on the 4,096 hidden units of the head.
        stem: "paper" is an 11x11 convolution of stride 4, for about 224 pixels; "medium" 7x7 of stride 2, for about
            100; "small" 5x5 of stride 1, for 32 to 64.
    """

    channels: ClassVar[tuple[int, ...]] = (64, 192, 384, 256, 256)
    groups: ClassVar[tuple[int, ...]] = (1, 1, 1, 1, 1)
    normalizes: ClassVar[bool] = False

    def __init__(
        self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0, stem: Stem = "paper"
    ) -> None:
        super().__init__(in_channels, image_size)
        self.width = width
        kernels = [_STEMS[stem], (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]
        layers: list[nn.Module] = []
        for index, (channels, groups, (kernel, stride, padding)) in enumerate(
            zip(self.channels, self.groups, kernels, strict=True)
        ):
            out_channels = groups * scaled(channels // groups, width)
            layers += [nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups), nn.ReLU()]
            if self.normalizes and index < 2:
                # Section 3.3. PyTorch divides alpha by the number of channels in the sum; the paper does not.
                layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
            if index in (0, 1, 4):
                layers.append(MaxPool2d(3, 2))
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)
        he_init(self)
        self._measure()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: average pooling to 6x6, two hidden layers of 4,096 units, dropout of 0.5 before each."""
        dropout = 0.5 if dropout is None else dropout
        units = scaled(4096, self.width)
        size = self.out_size
        return FlatHead(self.out_channels, size, [units, units], classes, dropout, max_size=(6, 6), dropout_first=True)


class AlexNet2012(AlexNet):
    """AlexNet of 2012, on one device."""

    name = "alexnet_2012"
    channels = (96, 256, 384, 384, 256)
    groups = (1, 2, 1, 2, 2)
    normalizes = True
