"""Network of airbench94 for small photographs, with a whitened first layer.

Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498), section 3.1, as in the version with
Muon (github.com/KellerJordan/cifar10-airbench, airbench94_muon.py):

    2x2 whitening convolution with frozen filters and a trained bias, GELU
    three blocks of 64, 256 and 256 channels: conv, max-pool 2, BatchNorm, GELU, conv, BatchNorm, GELU
    global max-pool, linear layer without bias

Convolutions of the blocks are 3x3, without bias. Their first filters are initialized to the identity (section 3.3),
BatchNorm has a trained bias and a constant gain of 1. Images of 32x32 become maps of 31, 15, 7 and 3 pixels.
`initialize_from_images` whitens the first layer, which `vision.classify` does; without it, its filters are random.

Shapes: N images, C channels, H, W pixels, P elements of a patch (C * 2 * 2).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, scaled
from zerokara.core.backbones.heads import MaxPooledHead
from zerokara.core.max_pool import MaxPool2d

WHITENING_IMAGES = 5_000  # of which the patches are taken
WHITENING_EPSILON = 5e-4  # added to the variances of the principal components
BATCH_NORM_MOMENTUM = 0.4  # weight of the new batch in PyTorch's sense; airbench calls the rest, 0.6, momentum
BATCH_NORM_EPSILON = 1e-12


def whitening_filters(x_NCHW: Tensor, kernel: int, epsilon: float = WHITENING_EPSILON) -> Tensor:
    """Compute filters (2 * P, C, kernel, kernel) whose outputs on patches of the images are uncorrelated.

    Section 3.2: the eigenvectors of the patches' second moments, each divided by the root of its eigenvalue plus
    `epsilon`, from the largest eigenvalue on, and then the same filters with the opposite sign.

    Args:
        x_NCHW: normalized images.
        kernel: side of the patches, in pixels.
        epsilon: limits the amplification of components with small variance.
    """
    number = x_NCHW.shape[1] * kernel**2
    moments_PP, patches = torch.zeros(number, number, dtype=torch.float64, device=x_NCHW.device), 0
    for part in x_NCHW.split(500):
        rows_PM = F.unfold(part.double(), kernel).transpose(0, 1).reshape(number, -1)
        moments_PP += rows_PM @ rows_PM.T
        patches += rows_PM.shape[1]
    variance_P, vector_PP = torch.linalg.eigh(moments_PP / patches)  # vectors are columns, eigenvalues ascend
    filters_PP = (vector_PP / (variance_P + epsilon).sqrt()).T.flip(0)
    return torch.cat([filters_PP, -filters_PP]).float().view(-1, x_NCHW.shape[1], kernel, kernel)


class Whitening(nn.Conv2d):
    """Convolution with frozen filters and a bias.

    Attributes:
        trains_bias: the bias gets gradients. Without it, no gradient has to be computed for the layers before and for
            the input of the first layer after it.
    """

    bias: nn.Parameter

    def __init__(self, in_channels: int, kernel: int = 2) -> None:
        super().__init__(in_channels, 2 * in_channels * kernel**2, kernel)
        self.weight.requires_grad_(False)
        self.trains_bias = True

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (PyTorch's name)
        return F.conv2d(input, self.weight, self.bias if self.trains_bias else self.bias.detach())


class _Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and GELU; a max-pool follows the first one."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(in_channels, channels), _batch_norm(channels)
        self.conv2, self.norm2 = _convolution(channels, channels), _batch_norm(channels)
        self.pool, self.activation = MaxPool2d(2), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        out: Tensor = self.activation(self.norm2(self.conv2(x)))
        return out


class Airbench(Backbone):
    """Whitening layer and three blocks of two convolutions. The feature maps are those of all four.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels of the blocks.
    """

    default_input = (3, 32)
    default_classes = 10
    has_own_initialization = True
    channels: ClassVar[tuple[int, ...]] = (64, 256, 256)

    def __init__(self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0) -> None:
        super().__init__(in_channels, image_size)
        self.whiten = Whitening(in_channels)
        self.activation = nn.GELU()
        sizes = [self.whiten.out_channels, *(scaled(channels, width) for channels in self.channels)]
        self.blocks = nn.ModuleList(_Block(*pair) for pair in pairwise(sizes))
        self._measure()

    def initialize_from_images(self, images_NCHW: Tensor, normalize: Callable[[Tensor], Tensor]) -> None:
        """Whiten the first layer with `WHITENING_IMAGES` evenly spaced images: those of a folder are in class order."""
        step = max(1, len(images_NCHW) // WHITENING_IMAGES)
        x_NCHW = normalize(images_NCHW[::step][:WHITENING_IMAGES])
        with torch.no_grad():
            self.whiten.weight.copy_(whitening_filters(x_NCHW, self.whiten.kernel_size[0]))

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: global max-pooling and a linear layer without bias."""
        return MaxPooledHead(self.out_channels, classes, dropout or 0.0)

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = [self.activation(self.whiten(x))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps


def _convolution(in_channels: int, channels: int) -> nn.Conv2d:
    """Create a convolution whose first filters are the identity; the others have PyTorch's initialization."""
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    if not convolution.weight.is_meta:
        number = min(in_channels, channels)
        with torch.no_grad():
            convolution.weight[:number] = 0
            convolution.weight[:number, :number, 1, 1] = torch.eye(number)
    return convolution


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    """Create a BatchNorm layer with a constant gain of 1."""
    norm = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm
