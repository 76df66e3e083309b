"""GoogLeNet: Szegedy et al. 2015, "Going Deeper with Convolutions", table 1, with BatchNorm, as in torchvision.

An Inception module has parallel branches of 1x1, 3x3 and 5x5 filters and of a max-pool. In torchvision's version the
"5x5" filters are 3x3: 6,624,904 parameters at 1,000 classes, 13,004,888 with the two auxiliary heads. With real 5x5
filters (`true_5x5`) it has 7,005,832 parameters without the auxiliary heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, scaled
from zerokara.core.backbones.heads import PooledHead
from zerokara.core.choices import Stem
from zerokara.core.max_pool import MaxPool2d, max_pool2d

# Columns of table 1: 1x1; 1x1 and 3x3; 1x1 and 5x5; 1x1 after the pool.
_MODULES: dict[str, tuple[int, int, int, int, int, int]] = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
_TAPS = ("inception4a", "inception4d")  # inputs of the auxiliary heads
_AUXILIARY_WEIGHT = 0.3  # section 5


class _Conv(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Inception(nn.Module):
    """Inception module: four parallel branches (figure 2b)."""

    def __init__(self, in_channels: int, columns: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = columns
        self.branch1 = _Conv(in_channels, one, 1)
        self.branch2 = nn.Sequential(_Conv(in_channels, reduce3, 1), _Conv(reduce3, three, 3))
        self.branch3 = nn.Sequential(_Conv(in_channels, reduce5, 1), _Conv(reduce5, five, kernel))
        self.branch4 = nn.Sequential(MaxPool2d(3, 1, 1), _Conv(in_channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(Backbone):
    """GoogLeNet: a stem and nine Inception modules.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on all channels.
        stem: "paper" halves the image three times before the first module, for about 224 pixels; "medium" twice, for
            64 to 128; "small" once, for 32 to 64.
        true_5x5: use the paper's 5x5 filters instead of torchvision's 3x3.
        auxiliaries: add the two auxiliary heads of the paper to the head.
    """

    # The weights were converted from TensorFlow, where pixels were scaled to [-1, 1] (torchvision's transform_input).
    published_mean = published_std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        in_channels: int,
        image_size: int | tuple[int, int],
        *,
        width: float = 1.0,
        stem: Stem = "paper",
        true_5x5: bool = False,
        auxiliaries: bool = True,
    ) -> None:
        super().__init__(in_channels, image_size)
        self.width, self.auxiliaries = width, auxiliaries
        self.stem_pools = stem == "paper"
        channels = scaled(64, width)
        self.conv1 = _Conv(in_channels, channels, *{"paper": (7, 2), "medium": (3, 2), "small": (3, 1)}[stem])
        self.conv2 = _Conv(channels, channels, 1)
        self.conv3 = _Conv(channels, scaled(192, width), 3)
        channels = scaled(192, width)
        self.tap_channels: list[int] = []
        for name, columns in _MODULES.items():
            wide = tuple(scaled(column, width) for column in columns)
            self.add_module(name, _Inception(channels, wide, 5 if true_5x5 else 3))
            channels = wide[0] + wide[2] + wide[4] + wide[5]
            if name in _TAPS:
                self.tap_channels.append(channels)
        he_init(self)
        self._measure()

    def _forward_all(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Compute all stages and the inputs of the auxiliary heads."""
        maps, taps = [], []
        x = self.conv1(x)
        if self.stem_pools:
            maps.append(x)
            x = max_pool2d(x, 3, 2, ceil_mode=True)
        x = self.conv3(self.conv2(x))
        maps.append(x)
        x = max_pool2d(x, 3, 2, ceil_mode=True)
        for name in _MODULES:
            x = self.get_submodule(name)(x)
            if name in _TAPS:
                taps.append(x)
            if name == "inception3b":
                maps.append(x)
                x = max_pool2d(x, 3, 2, ceil_mode=True)
            elif name == "inception4e":
                maps.append(x)
                x = max_pool2d(x, 2, 2, ceil_mode=True)
        return [*maps, x], taps

    def stages(self, x: Tensor) -> list[Tensor]:
        return self._forward_all(x)[0]

    def with_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the last feature map and the outputs of the modules 4a and 4d."""
        maps, taps = self._forward_all(x)
        return maps[-1], taps

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the head: global average pooling, dropout (torchvision's 0.2; the paper's is 0.4), auxiliary heads."""
        dropout = 0.2 if dropout is None else dropout
        if not self.auxiliaries:
            return PooledHead(self.out_channels, classes, dropout)
        # Both taps lie between the pools after 3b and 4e, so they have the size of the second to last stage.
        return GoogLeNetHead(self, classes, dropout)


class GoogLeNetHead(PooledHead):
    """Head of GoogLeNet with the two auxiliary heads, which are used only in training.

    Args:
        backbone: only its shapes are read.
        classes: K.
        dropout: dropout probability of the main head.
    """

    def __init__(self, backbone: GoogLeNet, classes: int, dropout: float) -> None:
        super().__init__(backbone.out_channels, classes, dropout)
        size = backbone.stage_shapes[-2][1:]
        self.aux1 = _Auxiliary(backbone.tap_channels[0], size, classes, backbone.width)
        self.aux2 = _Auxiliary(backbone.tap_channels[1], size, classes, backbone.width)

    def auxiliaries(self, taps: list[Tensor]) -> list[tuple[float, Tensor]]:
        """Compute (loss weight, logits (B, K)) of each auxiliary head from the outputs of 4a and 4d."""
        return [(_AUXILIARY_WEIGHT, self.aux1(taps[0])), (_AUXILIARY_WEIGHT, self.aux2(taps[1]))]


class _Auxiliary(nn.Module):
    """Auxiliary head (section 5): 4x4 average pooling, 1x1 convolution, 1,024 hidden units, dropout 0.7.

    The convolution has 128 output channels.
    """

    def __init__(self, in_channels: int, size: tuple[int, int], classes: int, width: float) -> None:
        super().__init__()
        self.pool_to = (min(4, size[0]), min(4, size[1]))
        channels, units = scaled(128, width), scaled(1024, width)
        self.conv = _Conv(in_channels, channels, 1)
        self.fc1 = nn.Linear(channels * self.pool_to[0] * self.pool_to[1], units)
        self.fc2 = nn.Linear(units, classes)
        he_init(self)
        nn.init.normal_(self.fc2.weight, std=units**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, self.pool_to))
        logits: Tensor = self.fc2(F.dropout(F.relu(self.fc1(x.flatten(1))), 0.7, self.training))
        return logits
