"""VGG: Simonyan and Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition", table 1.

Columns A, B, D and E (11, 13, 16 and 19 layers with weights), each also with BatchNorm after every convolution.
Weights have torchvision's names; vgg16 has 138,357,544 parameters at 1,000 classes.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zerokara.core.backbones.base import PooledBackbone, he_init, scaled
from zerokara.core.backbones.heads import FlatHead
from zerokara.core.max_pool import MaxPool2d

# Number of 3x3 convolutions of each section; a 2x2 max-pool ends a section.
_SECTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(PooledBackbone):
    """VGG: five sections of 64, 128, 256, 512 and 512 channels.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels and on the hidden units of the head.
    """

    depth: ClassVar[int] = 16
    batch_norm: ClassVar[bool] = False

    def __init__(self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0) -> None:
        super().__init__(in_channels, image_size)
        self.width = width
        layers: list[nn.Module] = []
        for channels, number in zip((64, 128, 256, 512, 512), _SECTIONS[self.depth], strict=True):
            out_channels = scaled(channels, width)
            for _ in range(number):
                layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1))
                if self.batch_norm:
                    layers.append(nn.BatchNorm2d(out_channels))
                layers.append(nn.ReLU())
                in_channels = out_channels
            layers.append(MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        he_init(self)
        self._measure()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: average pooling to 7x7, two hidden layers of 4,096 units, dropout of 0.5 after each."""
        dropout = 0.5 if dropout is None else dropout
        units = scaled(4096, self.width)
        return FlatHead(self.out_channels, self.out_size, [units, units], classes, dropout, max_size=(7, 7))


def variants() -> dict[str, type[VGG]]:
    """Return the classes of vgg11 to vgg19, and of vgg11_bn to vgg19_bn with BatchNorm."""
    return {
        name: type(name, (VGG,), {"__doc__": VGG.__doc__, "name": name, "depth": depth, "batch_norm": batch_norm})
        for depth in _SECTIONS
        for batch_norm in (False, True)
        for name in [f"vgg{depth}" + "_bn" * batch_norm]
    }
