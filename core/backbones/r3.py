"""Backbone of R3GAN's discriminator, at a size that can be trained on a desktop computer.

Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern Baseline GAN", section 4 and appendix. Residual blocks
without normalization: 1x1 convolution to twice the channels, grouped 3x3 convolution, 1x1 convolution back, with leaky
ReLU in between. Initialization similar to Fixup (Zhang et al. 2019): the last layer of every block is zero, the others
are scaled down with the number of blocks. Between stages, channels are changed by 1x1 convolutions without activation.

The network of the authors' code differs. It has four stages of two blocks with 768 channels each, in groups of 16; here
a stage has one block, and channels increase from 32 at the image's own size to 256. It halves maps with the filter
[1, 3, 3, 1]; here pixels are averaged 2x2. It ends with a depthwise 4x4 convolution and a linear layer; here the head
is one linear layer on the whole map. docs/dcgan.md lists how training differs.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.dcgan import halvings
from zerokara.core.backbones.heads import FlatHead

EXPANSION = 2
GROUP = 16  # input channels of each group of the 3x3 convolution
SLOPE = 0.2
GAIN = (2 / (1 + SLOPE**2)) ** 0.5
_MIN_CHANNELS, _MAX_CHANNELS = 32, 256


def stage_channels(stages: int, width: float) -> list[int]:
    """Compute the channels of each stage, from fine to coarse: doubled from 32 up to 256, times `width`.

    Each number is a multiple of half a group, so that the expanded map (twice the channels) has whole groups.
    """
    whole = GROUP // EXPANSION
    return [
        max(1, round(min(_MAX_CHANNELS, _MIN_CHANNELS * 2**stage) * width / whole)) * whole for stage in range(stages)
    ]


def init(conv: nn.Conv2d | nn.Linear, gain: float) -> None:
    """Initialize weights with N(0, gain^2 / fan_in) and biases with 0."""
    nn.init.normal_(conv.weight, std=gain / conv.weight[0].numel() ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class Block(nn.Module):
    """Residual block of three convolutions. The identity at initialization.

    Args:
        channels: of input and output; a multiple of half a group.
        blocks: number of blocks of the whole network; initial weights are scaled by blocks^-0.25.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.expand = nn.Conv2d(channels, inner, 1)
        self.filter = nn.Conv2d(inner, inner, 3, padding=1, groups=inner // GROUP)
        self.reduce = nn.Conv2d(inner, channels, 1, bias=False)
        for conv in (self.expand, self.filter):
            init(conv, GAIN * blocks**-0.25)  # Fixup: L^(-1 / (2 m - 2)) with m = 3 layers per branch
        init(self.reduce, 0.0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute a map of the same shape."""
        y = F.leaky_relu(self.expand(x_BCHW), SLOPE)
        y = F.leaky_relu(self.filter(y), SLOPE)
        out_BCHW: Tensor = x_BCHW + self.reduce(y)
        return out_BCHW


def resize_bilinear(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map to (H, W) by bilinear interpolation. At half the size this is the mean of four pixels."""
    return F.interpolate(x_BCHW, size, mode="bilinear", align_corners=False)


class R3(Backbone):
    """Residual blocks, one at the image's own size and one after every halving, down to a shorter side of 3 to 6.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels.
    """

    default_input = (3, 32)
    default_classes = 10

    def __init__(self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0) -> None:
        super().__init__(in_channels, image_size)
        self.sizes = [self.image_size, *halvings(self.image_size, self.name)]
        widths = stage_channels(len(self.sizes), width)
        self.extract = nn.Conv2d(in_channels, widths[0], 1, bias=False)
        self.blocks = nn.ModuleList(Block(channels, len(widths)) for channels in widths)
        self.widen = nn.ModuleList(
            nn.Conv2d(into, out, 1, bias=False) if into != out else nn.Identity()
            for into, out in itertools.pairwise(widths)
        )
        for module in (self.extract, *self.widen):
            if isinstance(module, nn.Conv2d):
                init(module, 1.0)
        self._measure()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: one linear layer on the whole map."""
        return FlatHead(self.out_channels, self.out_size, [], classes, dropout or 0.0)

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = [self.blocks[0](self.extract(x))]
        for block, widen, size in zip(self.blocks[1:], self.widen, self.sizes[1:], strict=True):
            maps.append(block(widen(resize_bilinear(maps[-1], size))))
        return maps
