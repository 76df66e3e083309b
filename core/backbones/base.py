"""The contract of a backbone.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from zerokara.core.backbones.heads import PooledHead
from zerokara.core.config import UserError

Stem = Literal["paper", "medium", "small"]
"""How much the first layers shrink an image: as published for 224 pixels, half as much, or a quarter as much."""


class Backbone(nn.Module, ABC):
    """A trunk built as `Backbone(in_channels, image_size, **options)`; a subclass builds layers and gives `stages`.

    Attributes:
        name: what `BACKBONES` calls it.
        usual_input, usual_classes: channels and side of its paper's images, and their classes.
        in_channels: channels of the input, float, scaled to [0, 1] or normalised.
        image_size: (H, W) of the input.
        out_channels: channels of the last feature map.
        out_size: (H, W) of the last feature map.
        features: numbers in the last feature map, what a head on top takes when it flattens.
        stage_shapes: (C, H, W) of every feature map that `stages` gives.
    """

    name: ClassVar[str]
    usual_input: ClassVar[tuple[int, int]] = (3, 224)
    usual_classes: ClassVar[int] = 1000
    in_channels: int
    image_size: tuple[int, int]
    out_channels: int
    out_size: tuple[int, int]
    stage_shapes: list[tuple[int, int, int]]

    def __init_subclass__(cls, **keywords: Any) -> None:
        """A class that does not say its name is called after itself."""
        super().__init_subclass__(**keywords)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def __init__(self, in_channels: int, image_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size

    @abstractmethod
    def stages(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, C_i, H_i, W_i) of images x (B, in_channels, H, W), from fine to coarse."""

    def forward(self, x: Tensor) -> Tensor:
        """The last feature map (B, out_channels, *out_size)."""
        return self.stages(x)[-1]

    def with_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last feature map, and those from which auxiliary heads read; most networks have none."""
        return self(x), []

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """The classifier's head of the network's paper, from the last feature map to logits (B, K).

        Args:
            classes: K.
            dropout: probability with which it drops a unit; None: the paper's.
        """
        return PooledHead(self.out_channels, classes, dropout or 0.0)

    def published_name(self, name: str) -> str:
        """What torchvision calls the weight `name` of this trunk: `features` is a number here."""
        return f"features.{name.removeprefix('layers.')}" if name.startswith("layers.") else name

    @property
    def features(self) -> int:
        """Numbers in the last feature map."""
        return self.out_channels * self.out_size[0] * self.out_size[1]

    def _measure(self) -> None:
        """Find the shapes of all stages by a pass without arithmetic. A subclass calls it when it is built.

        Raises:
            UserError: the images are too small for the strides.
        """
        height, width = self.image_size
        shapes_only = {f"eye.{name}": tensor.to("meta") for name, tensor in self.state_dict().items()}
        # Two images: BatchNorm refuses to learn from a single number.
        images = torch.empty(2, self.in_channels, height, width, device="meta")
        try:
            maps: list[Tensor] = torch.func.functional_call(_Stages(self), shapes_only, images)
        except RuntimeError as error:
            raise UserError(
                f"Images of {height}x{width} pixels are too small for the backbone {self.name}, "
                f"whose strides leave nothing of them; use larger images or another --backbone."
            ) from error
        self.stage_shapes = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        self.out_channels, *out_size = self.stage_shapes[-1]
        self.out_size = (out_size[0], out_size[1])


class PooledBackbone(Backbone):
    """A trunk of `layers` in a row that ends in a max-pool; the stages are the maps behind all of its max-pools."""

    layers: nn.Sequential

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        return maps


class _Stages(nn.Module):
    """A backbone whose call gives all its stages."""

    def __init__(self, eye: Backbone) -> None:
        super().__init__()
        self.eye = eye

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.eye.stages(x)


def scaled(channels: int, width: float) -> int:
    """Channels multiplied by a width, at least one."""
    return max(1, round(channels * width))


def he_init(module: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """He et al. 2015, "Delving Deep into Rectifiers", equation 10, for all convolutions and linear layers; biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
