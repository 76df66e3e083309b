"""Residual networks: He et al. 2016, "Deep Residual Learning for Image Recognition".

`resnet18`, 34, 50, 101, 152: table 1, for ImageNet, as in torchvision (the stride of a bottleneck is in its 3x3
convolution); resnet50 has 25,557,032 parameters at 1,000 classes.
`resnet20`, 32, 44, 56, 110 and any other 6n+2: section 4.2, for CIFAR-10, with shortcuts without weights (option A);
resnet20 has 269,722 parameters at 10 classes.
`plain20` and any other 6n+2: the same networks without shortcuts, for comparison.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, scaled
from zerokara.core.choices import Stem
from zerokara.core.max_pool import MaxPool2d


class _Block(nn.Module, ABC):
    """Base class of basic block and bottleneck: relu(branch(x) + shortcut(x))."""

    expansion: ClassVar[int]
    downsample: nn.Module | None

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    @abstractmethod
    def branch(self, x: Tensor) -> Tensor:
        """Compute the residual branch, which is added to the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.branch(x) + shortcut)


class _Basic(_Block):
    """Basic block: two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return out


class _Bottleneck(_Block):
    """Bottleneck: 1x1 convolution to a quarter of the channels, 3x3 convolution, 1x1 convolution back (figure 5)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * 4)

    def branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class _CifarBlock(nn.Module):
    """Block of the CIFAR networks: two 3x3 convolutions and a shortcut of option A (strided identity, zero padding).

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: of the first convolution and of the shortcut.
        use_shortcuts: add the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, use_shortcuts: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.use_shortcuts, self.stride, self.more = use_shortcuts, stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if not self.use_shortcuts:
            return F.relu(out)
        if self.stride != 1 or self.more:
            before = self.more // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.more - before))
        return F.relu(out + x)


class ResNet(Backbone):
    """ResNet for ImageNet: a stem and four layers of residual blocks of 64, 128, 256 and 512 channels.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels.
        stem: "paper" is a 7x7 convolution of stride 2 and a max-pool, for about 224 pixels; "medium" a 3x3 convolution
            of stride 2 without a pool, for 64 to 128; "small" a 3x3 convolution of stride 1, for 32 to 64.
    """

    block: ClassVar[type[_Block]] = _Basic
    blocks_per_layer: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)

    def __init__(
        self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0, stem: Stem = "paper"
    ) -> None:
        super().__init__(in_channels, image_size)
        channels = scaled(64, width)
        kernel, stride = (7, 2) if stem == "paper" else (3, 2 if stem == "medium" else 1)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = MaxPool2d(3, 2, 1) if stem == "paper" else None
        layers = []
        for index, number in enumerate(self.blocks_per_layer):
            wide = scaled(64 * 2**index, width)
            blocks = []
            for i in range(number):
                blocks.append(self.block(channels, wide, 2 if index and i == 0 else 1))
                channels = wide * self.block.expansion
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        he_init(self, "fan_out")
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute the outputs of the four layers, preceded by the stem's output if a pool follows it."""
        maps = []
        x = F.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            maps.append(x)
            x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class CifarResNet(Backbone):
    """ResNet for CIFAR-10: a 3x3 convolution and three layers of n blocks with 16, 32 and 64 channels.

    The network has 6n + 2 layers with weights, including the head.

    Args:
        in_channels: channels of the images.
        image_size: side or (H, W) of the images, in pixels.
        width: factor on the channels.
    """

    default_input = (3, 32)
    default_classes = 10
    blocks: ClassVar[int] = 3
    use_shortcuts: ClassVar[bool] = True

    def __init__(self, in_channels: int, image_size: int | tuple[int, int], *, width: float = 1.0) -> None:
        super().__init__(in_channels, image_size)
        channels = scaled(16, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        layers = []
        for index in range(3):
            wide = scaled(16 * 2**index, width)
            blocks = []
            for i in range(self.blocks):
                blocks.append(
                    _CifarBlock(channels, wide, 2 if index and i == 0 else 1, use_shortcuts=self.use_shortcuts)
                )
                channels = wide
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = layers
        he_init(self)
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            maps.append(x)
        return maps


def _named(name: str, base: type[Backbone], **attributes: object) -> type[Backbone]:
    return type(name, (base,), {"__doc__": base.__doc__, "name": name, **attributes})


def cifar(name: str, layers: int, *, use_shortcuts: bool) -> type[Backbone]:
    """Create the class of a CIFAR network.

    Args:
        name: of the backbone.
        layers: 6n + 2.
        use_shortcuts: use shortcuts.
    """
    return _named(name, CifarResNet, blocks=(layers - 2) // 6, use_shortcuts=use_shortcuts)


def variants() -> dict[str, type[Backbone]]:
    """Return the classes of the paper's networks, by name."""
    classes = {
        f"resnet{depth}": _named(f"resnet{depth}", ResNet, block=block, blocks_per_layer=blocks_per_layer)
        for depth, block, blocks_per_layer in (
            (18, _Basic, (2, 2, 2, 2)),
            (34, _Basic, (3, 4, 6, 3)),
            (50, _Bottleneck, (3, 4, 6, 3)),
            (101, _Bottleneck, (3, 4, 23, 3)),
            (152, _Bottleneck, (3, 8, 36, 3)),
        )
    }
    for prefix, use_shortcuts in (("resnet", True), ("plain", False)):
        for depth in (20, 32, 44, 56, 110):
            name = f"{prefix}{depth}"
            classes[name] = cifar(name, depth, use_shortcuts=use_shortcuts)
    return classes
