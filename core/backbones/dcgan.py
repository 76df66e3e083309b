"""The trunk of DCGAN's discriminator.

Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
section 3, in the form of PyTorch's tutorial.

4x4 convolutions of stride 2 with leaky ReLU of slope 0.2, BatchNorm behind all but the first; weights N(0, 0.02), gains
N(1, 0.02). 64x64 becomes 4x4 of 512 channels; with the last 4x4 convolution to one number on top, a discriminator of
colour images has 2,765,568 parameters.
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
_LEAST, _MOST = 28, 256


def halvings(image_size: tuple[int, int], backbone: str) -> list[tuple[int, int]]:
    """Sizes (H, W) of an image that is halved until the shorter side is 3 to 6 pixels; its own is not among them.

    Where it ended at 7 (MNIST as it is), digits were badly put together: nothing saw them whole (docs/LOG.md).

    Raises:
        UserError: a side below 28 or above 256 pixels; names the backbone.
    """
    height, wide = image_size
    if min(height, wide) < _LEAST or max(height, wide) > _MOST:
        raise UserError(
            f"Images of {height}x{wide} pixels do not fit the backbone {backbone}: "
            f"it takes sides of {_LEAST} to {_MOST} pixels; choose another --image-size."
        )
    sizes: list[tuple[int, int]] = []
    while min(height, wide) >= 7:
        height, wide = height // 2, wide // 2
        sizes.append((height, wide))
    return sizes


def layout(image_size: int | tuple[int, int], width: float = 1.0) -> list[tuple[int, tuple[int, int]]]:
    """Channels and size (H, W) behind each convolution, which a generator follows backwards.

    Channels double from 64 to 512 and stay there. 64x64 gives (64, (32, 32)), (128, (16, 16)), (256, (8, 8)),
    (512, (4, 4)).

    Raises:
        UserError: as `halvings`.
    """
    sizes = halvings((image_size, image_size) if isinstance(image_size, int) else image_size, "dcgan")
    return [(scaled(64 * min(8, 2**place), width), size) for place, size in enumerate(sizes)]


class Dcgan(Backbone):
    """As many convolutions as `layout` says.

    Args:
        width: factor on the channels (the tutorial's ndf is 64 * width).
        norm: "batch" as the paper, "spectral" (Miyato et al. 2018) or "none"; the last two have biases instead, and
            "none" begins as He et al. 2015 say, for weights of 0.02 would let nothing through.
    """

    usual_input = (3, 64)
    usual_classes = 10

    def __init__(
        self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0, norm: Norm = "batch"
    ) -> None:
        super().__init__(in_channels, image_size)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for place, (channels, _) in enumerate(layout(self.image_size, width)):
            conv = Halve(in_channels, channels, bias=norm != "batch")
            nn.init.normal_(conv.weight, std=(2 / conv.weight[0].numel()) ** 0.5 if norm == "none" else 0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            if norm == "batch" and place:
                batch_norm = nn.BatchNorm2d(channels)
                nn.init.normal_(batch_norm.weight, mean=1.0, std=0.02)
                self.norms.append(batch_norm)
            else:
                self.norms.append(nn.Identity())
            self.convs.append(spectral_norm(conv) if norm == "spectral" else conv)
            in_channels = channels
        self._measure()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """One layer on the whole map, as the discriminator's last convolution is."""
        return FlatHead(self.out_channels, self.out_size, [], classes, dropout or 0.0)

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.2)
            maps.append(x)
        return maps
