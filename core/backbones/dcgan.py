"""Backbone of DCGAN's discriminator.

Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
section 3, as implemented in PyTorch's tutorial.

4x4 convolutions of stride 2 with leaky ReLU of slope 0.2, BatchNorm after all but the first; weights are initialized
with N(0, 0.02), BatchNorm's gains with N(1, 0.02). A 64x64 image becomes a 4x4 map of 512 channels. With the final 4x4
convolution to one logit, a discriminator of color images has 2,765,568 parameters.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from zerokara.core.backbones.base import Backbone, scaled
from zerokara.core.backbones.heads import FlatHead
from zerokara.core.backbones.small_maps import Halve
from zerokara.core.config import UserError

Norm = Literal["batch", "spectral", "none"]
_MIN_SIDE, _MAX_SIDE = 28, 256


def halvings(image_size: tuple[int, int], backbone: str) -> list[tuple[int, int]]:
    """Compute the sizes (H, W) of an image that is halved until its shorter side is 3 to 6 pixels.

    The image's own size is not included. If the last map is 7 pixels wide (28x28 images halved twice), no unit's
    receptive field covers a whole digit, and the generated digits are malformed (docs/LOG.md).

    Raises:
        UserError: a side is below 28 or above 256 pixels.
    """
    height, wide = image_size
    if min(height, wide) < _MIN_SIDE or max(height, wide) > _MAX_SIDE:
        raise UserError(
            f"Images of {height}x{wide} pixels do not fit the backbone {backbone}: "
            f"it takes sides of {_MIN_SIDE} to {_MAX_SIDE} pixels; choose another --image-size."
        )
    sizes: list[tuple[int, int]] = []
    while min(height, wide) >= 7:
        height, wide = height // 2, wide // 2
        sizes.append((height, wide))
    return sizes


def layout(image_size: int | tuple[int, int], width: float = 1.0) -> list[tuple[int, tuple[int, int]]]:
    """Compute channels and size (H, W) after each convolution. The generator uses the same list in reverse order.

    Channels double from 64 up to 512. A 64x64 image gives (64, (32, 32)), (128, (16, 16)), (256, (8, 8)),
    (512, (4, 4)).

    Raises:
        UserError: see `halvings`.
    """
    sizes = halvings((image_size, image_size) if isinstance(image_size, int) else image_size, "dcgan")
    return [(scaled(64 * min(8, 2**index), width), size) for index, size in enumerate(sizes)]


class Dcgan(Backbone):
    """Discriminator backbone with the convolutions of `layout`.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels (the tutorial's ndf is 64 * width).
        norm: "batch" as in the paper, "spectral" (Miyato et al. 2018) or "none". The convolutions of the last two have
            biases. "none" uses He initialization, because with N(0, 0.02) the signal would vanish.
    """

    default_input = (3, 64)
    default_classes = 10

    def __init__(
        self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0, norm: Norm = "batch"
    ) -> None:
        super().__init__(in_channels, image_size)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for index, (channels, _) in enumerate(layout(self.image_size, width)):
            conv = Halve(in_channels, channels, bias=norm != "batch")
            nn.init.normal_(conv.weight, std=(2 / conv.weight[0].numel()) ** 0.5 if norm == "none" else 0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            if norm == "batch" and index:
                batch_norm = nn.BatchNorm2d(channels)
                nn.init.normal_(batch_norm.weight, mean=1.0, std=0.02)
                self.norms.append(batch_norm)
            else:
                self.norms.append(nn.Identity())
            self.convs.append(spectral_norm(conv) if norm == "spectral" else conv)
            in_channels = channels
        self._measure()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: one linear layer on the whole map, like the discriminator's last convolution."""
        return FlatHead(self.out_channels, self.out_size, [], classes, dropout or 0.0)

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.2)
            maps.append(x)
        return maps
