"""Network of both detectors: backbone up to a given stride, RoI pooling, two hidden layers, two output layers.

Fast R-CNN applies it to a whole image and all of its proposals. R-CNN applies it to each proposal as an image of its
own, with one region that covers it. The two therefore differ only in the number of backbone passes.

Shapes: B images, C channels, H, W pixels, h, w cells of the map, R regions, P bins, D hidden units, K classes.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.custom import CustomBackbone
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.boxes import roi_pool
from zerokara.core.config import UserError

MEASURED_SIDE = 1024  # pixels of the image on which strides are measured; large, so that padding has no effect


class RegionNet(nn.Module):
    """Class logits and box codes of regions.

    Args:
        backbone: name in core.backbones; `options` are its options.
        classes: number of classes K, without the background.
        stride: maximum stride in pixels; the deepest feature map with at most this stride is used.
        bins: height and width P of the pooled regions, in cells.
        hidden_units: D.
        dropout: dropout probability of the hidden layers.

    Raises:
        UserError: unknown backbone or option, or every feature map has a larger stride than `stride`.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        stride: int = 8,
        bins: int = 6,
        hidden_units: int = 256,
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
        self.fc6 = nn.Linear(channels * bins * bins, hidden_units)
        self.fc7 = nn.Linear(hidden_units, hidden_units)
        self.classify = nn.Linear(hidden_units, classes + 1)
        self.regress = nn.Linear(hidden_units, 4 * classes)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.classify.weight, std=0.01)  # Fast R-CNN, section 4.1
        nn.init.normal_(self.regress.weight, std=0.001)
        for layer in (self.fc6, self.fc7, self.classify, self.regress):
            nn.init.zeros_(layer.bias)

    def freeze_norm(self, freeze: bool = True) -> None:
        """Keep the running statistics of BatchNorm fixed during training."""
        self._frozen = freeze

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; BatchNorm layers with frozen statistics stay in evaluation mode."""
        super().train(mode)
        if self._frozen:
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        return self

    def maps(self, x_BCHW: Tensor) -> Tensor:
        """Return the feature map (B, C, h, w) of normalized images of any size."""
        return self.backbone.stages(x_BCHW)[self.stage]

    def vectors(self, maps_BChw: Tensor, boxes_R4: Tensor, image_R: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the output (R, D) of the hidden layers for regions; `size` is (H, W) of the images."""
        scale = (maps_BChw.shape[3] / size[1], maps_BChw.shape[2] / size[0])
        x = roi_pool(maps_BChw, boxes_R4, image_R, self.bins, scale).flatten(1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return x

    def outputs(self, vectors_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (R, K + 1), background first, and box codes (R, K, 4), both float32."""
        codes_R = self.regress(vectors_RD).float()
        return self.classify(vectors_RD).float(), codes_R.view(-1, self.classes, 4)

    def forward(self, x_BCHW: Tensor, boxes_R4: Tensor, image_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits and box codes for regions of normalized images."""
        height, width = x_BCHW.shape[2:]
        return self.outputs(self.vectors(self.maps(x_BCHW), boxes_R4, image_R, (height, width)))


def remove_last_pool(backbone: Backbone) -> None:
    """Remove the last max pooling of VGG, AlexNet and deep_cnn: RoI pooling replaces it (Fast R-CNN, section 2.1)."""
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.Sequential):
        return
    kinds = [type(layer) for layer in layers]
    last = max((index for index, kind in enumerate(kinds) if issubclass(kind, nn.MaxPool2d)), default=None)
    if last is not None and nn.Conv2d not in kinds[last:]:
        layers[last] = nn.MaxPool2d(1)  # identity; `stages` needs a pooling layer here


def choose_stage(backbone: Backbone, max_stride: int) -> tuple[int, int, int]:
    """Return index, stride and channels of the deepest feature map with a stride of at most `max_stride` pixels.

    Raises:
        UserError: every feature map has a larger stride.
    """
    if isinstance(backbone, CustomBackbone):
        shapes = backbone.stage_shapes
    else:  # measured again without the last pooling
        shapes = [(each.shape[1], each.shape[2], each.shape[3]) for each in _stages_on_meta(backbone)[0]]
    strides = [round(backbone.image_size[0] / height) for _, height, _ in shapes]
    fitting = [index for index, stride in enumerate(strides) if stride <= max_stride]
    if not fitting:
        raise UserError(
            f"The smallest stride of the backbone {backbone.name} is {min(strides)} pixels, but --stride {max_stride} "
            f"was given: use --stride {min(strides)}, or another --backbone or --stem."
        )
    return fitting[-1], strides[fitting[-1]], shapes[fitting[-1]][0]


def remove_unused_layers(backbone: Backbone, stage: int) -> None:
    """Replace the layers on which a feature map does not depend by nn.Identity, which saves their computation.

    A network of one's own is not changed: without these layers its code may fail.
    """
    if isinstance(backbone, CustomBackbone):
        return
    maps, weights = _stages_on_meta(backbone)
    gradients = torch.autograd.grad(maps[stage].sum(), list(weights.values()), allow_unused=True)
    found: list[Tensor | None] = list(gradients)  # autograd.grad's type does not include None
    used = [name for name, gradient in zip(weights, found, strict=True) if gradient is not None]
    removed: list[str] = []
    for name, module in list(backbone.named_modules()):
        inside = any(name.startswith(f"{each}.") for each in removed)
        has_weights = next(module.parameters(), None) is not None
        if name and has_weights and not inside and not any(each.startswith(f"{name}.") for each in used):
            backbone.set_submodule(name, nn.Identity())
            removed.append(name)


def _stages_on_meta(backbone: Backbone) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return all feature maps, with their autograd graph, and the weights by name, on the meta device."""
    copied = copy.deepcopy(backbone).to("meta").eval()
    maps = copied.stages(torch.empty(1, backbone.in_channels, *backbone.image_size, device="meta"))
    return maps, dict(copied.named_parameters())
