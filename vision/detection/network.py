"""The network of both detectors: an eye cut off at a sensible stride, RoI pooling, two hidden layers, two outputs.

Fast R-CNN shows it a whole picture and all of its proposals; R-CNN shows it each proposal as a picture of its own,
whose only region is the whole of it. So the two differ in nothing but how often the eye looks.

Shapes: B images, C channels, H, W pixels, h, w cells of the map, R regions, P bins, D hidden units, K classes.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.boxes import roi_pool
from zerokara.core.config import UserError

MEASURED_SIDE = 1024  # pixels of the image on which strides are measured: so many that borders do not count


class RegionNet(nn.Module):
    """Scores and codes of regions.

    Args:
        backbone: its name in core.backbones, and its `options`.
        classes: K, without the background.
        stride: pixels for a cell of the map at most; the deepest map that keeps to it is taken.
        bins: P.
        units: D.
        dropout: probability with which a hidden unit is dropped.

    Raises:
        UserError: no such backbone or option, or one whose finest map is coarser than `stride`.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        stride: int = 8,
        bins: int = 6,
        units: int = 256,
        dropout: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__()
        self.classes, self.bins, self.dropout = classes, bins, dropout
        self._frozen = False
        self.backbone = make_backbone(backbone, 3, MEASURED_SIDE, **options)
        remove_last_pool(self.backbone)
        self.stage, self.stride, channels = choose_stage(self.backbone, stride)
        remove_unused_layers(self.backbone, self.stage)
        self.fc6 = nn.Linear(channels * bins * bins, units)
        self.fc7 = nn.Linear(units, units)
        self.classify = nn.Linear(units, classes + 1)
        self.regress = nn.Linear(units, 4 * classes)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.classify.weight, std=0.01)  # Fast R-CNN, section 4.1
        nn.init.normal_(self.regress.weight, std=0.001)
        for layer in (self.fc6, self.fc7, self.classify, self.regress):
            nn.init.zeros_(layer.bias)

    def freeze_norm(self, freeze: bool = True) -> None:
        """Leave the statistics of BatchNorm as they are, also while the rest learns."""
        self._frozen = freeze

    def train(self, mode: bool = True) -> Self:
        """As every module; frozen statistics stay as they are."""
        super().train(mode)
        if self._frozen:
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        return self

    def maps(self, x_BCHW: Tensor) -> Tensor:
        """The feature map (B, C, h, w) of normalised images of any size."""
        return self.backbone.stages(x_BCHW)[self.stage]

    def vectors(self, maps_BChw: Tensor, boxes_R4: Tensor, image_R: Tensor, size: tuple[int, int]) -> Tensor:
        """What the hidden layers make of regions (R, D); `size` is the (H, W) of the images."""
        scale = (maps_BChw.shape[3] / size[1], maps_BChw.shape[2] / size[0])
        x = roi_pool(maps_BChw, boxes_R4, image_R, self.bins, scale).flatten(1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return x

    def outputs(self, vectors_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1), the background first, and codes (R, K, 4), both float32."""
        codes_R = self.regress(vectors_RD).float()
        return self.classify(vectors_RD).float(), codes_R.view(-1, self.classes, 4)

    def forward(self, x_BCHW: Tensor, boxes_R4: Tensor, image_R: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and codes of regions of normalised images, from pixels on."""
        height, width = x_BCHW.shape[2:]
        return self.outputs(self.vectors(self.maps(x_BCHW), boxes_R4, image_R, (height, width)))


def remove_last_pool(backbone: Backbone) -> None:
    """Take away an eye's last pool, whose place RoI pooling takes (Fast R-CNN, section 2.1): VGG, AlexNet, deep_cnn."""
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.Sequential):
        return
    kinds = [type(layer) for layer in layers]
    last = max((index for index, kind in enumerate(kinds) if kind is nn.MaxPool2d), default=None)
    if last is not None and nn.Conv2d not in kinds[last:]:
        layers[last] = nn.MaxPool2d(1)  # stays where `stages` looks for the ends of sections, and does nothing


def choose_stage(backbone: Backbone, max_stride: int) -> tuple[int, int, int]:
    """The deepest feature map whose cells are at most so many pixels apart: its place, stride and channels."""
    maps = _stages_on_meta(backbone)[0]
    strides = [round(backbone.image_size[0] / each.shape[2]) for each in maps]
    fitting = [index for index, stride in enumerate(strides) if stride <= max_stride]
    if not fitting:
        raise UserError(
            f"The finest map of the backbone {backbone.name} has a cell for {min(strides)} pixels, and --stride "
            f"{max_stride} was asked for: allow --stride {min(strides)}, or take another --backbone or --stem."
        )
    return fitting[-1], strides[fitting[-1]], maps[fitting[-1]].shape[1]


def remove_unused_layers(backbone: Backbone, stage: int) -> None:
    """Put nothing in the place of layers on which a feature map does not depend, so that they cost nothing."""
    maps, weights = _stages_on_meta(backbone)
    gradients = torch.autograd.grad(maps[stage].sum(), list(weights.values()), allow_unused=True)
    found: list[Tensor | None] = list(gradients)  # torch's types do not know of unused ones
    seen = [name for name, gradient in zip(weights, found, strict=True) if gradient is not None]
    gone: list[str] = []
    for name, module in list(backbone.named_modules()):
        inside = any(name.startswith(f"{each}.") for each in gone)
        has_weights = next(module.parameters(), None) is not None
        if name and has_weights and not inside and not any(each.startswith(f"{name}.") for each in seen):
            backbone.set_submodule(name, nn.Identity())
            gone.append(name)


def _stages_on_meta(backbone: Backbone) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The shapes of all maps, with the graph that leads to them, and the weights by name, without arithmetic."""
    shadow = copy.deepcopy(backbone).to("meta").eval()
    maps = shadow.stages(torch.empty(1, backbone.in_channels, *backbone.image_size, device="meta"))
    return maps, dict(shadow.named_parameters())
