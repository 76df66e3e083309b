"""The contract of a backbone.

Shapes: B batch, C channels, H, W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from core.config import UserError


class Backbone(nn.Module, ABC):
    """A trunk built as `Backbone(in_channels, image_size, **options)`; a subclass builds layers and gives `stages`.

    Attributes:
        in_channels: channels of the input, float, scaled to [0, 1].
        image_size: (H, W) of the input.
        out_channels: channels of the last feature map.
        out_size: (H, W) of the last feature map.
        features: numbers in the last feature map, what a head on top takes when it flattens.
    """

    in_channels: int
    image_size: tuple[int, int]
    out_channels: int
    out_size: tuple[int, int]

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

    @property
    def features(self) -> int:
        """Numbers in the last feature map."""
        return self.out_channels * self.out_size[0] * self.out_size[1]

    def _measure(self) -> None:
        """Find `out_channels` and `out_size` by a pass without arithmetic. A subclass calls it when it is built.

        Raises:
            UserError: the images are too small for the strides.
        """
        height, width = self.image_size
        shapes_only = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}
        images = torch.empty(1, self.in_channels, height, width, device="meta")
        try:
            out: Tensor = torch.func.functional_call(self, shapes_only, images)
        except RuntimeError as error:
            raise UserError(
                f"Images of {height}x{width} pixels are too small for the backbone {type(self).__name__.lower()}, "
                f"whose strides leave nothing of them; use larger images or another --backbone."
            ) from error
        self.out_channels, self.out_size = out.shape[1], (out.shape[2], out.shape[3])
