"""Segmentation networks: FCN on any backbone and SegNet on VGG; and the metadata of their model files.

network = make_segmenter("fcn8s", backbone="vgg16", channels=3, image_size=(180, 240), classes=11)
logits_BKHW = network(x_BCHW)

FCN: Shelhamer, Long and Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation". A classifier is applied
as a convolution to the last feature map. Its scores are upsampled by transposed convolutions, and the scores that 1x1
convolutions compute from finer feature maps are added (section 3). The number in fcn32s, fcn16s, fcn8s, ... is the
stride of the finest feature map that is used.

SegNet: Badrinarayanan, Kendall and Cipolla 2017, "SegNet: A Deep Convolutional Encoder-Decoder Architecture". The
encoder is VGG, the decoder its mirror image. Each max pooling stores the indices of its maxima, and the decoder uses
them to unpool (section 3).

Shapes: B batch, C channels, H, W pixels, h, w cells of a feature map, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, on_meta_device, scaled
from zerokara.core.backbones.registry import is_custom, make_backbone
from zerokara.core.backbones.vgg import VGG
from zerokara.core.choices import Background
from zerokara.core.config import UserError
from zerokara.core.models.model_file import NormalizedMetadata
from zerokara.core.models.weights import load_pretrained_backbone, read_tensors
from zerokara.vision.segmentation.config import NetworkName

HEADS: Mapping[str, tuple[int, int]] = {"vgg": (7, 4096), "alexnet": (6, 4096)}  # kernel size of fc6, units
# Side of the image with which strides are measured: large, so that pixels lost at the edges (convolutions without
# padding) do not change the rounded ratios.
PROBE_SIDE = 512


class Segmenter(nn.Module):
    """Base class of segmentation networks: logits (B, K, H, W) for images (B, C, H, W) of any size.

    Attributes:
        backbone: computes the feature maps.
        classes: K.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes

    def load_published(self, path: Path) -> list[str]:
        """Load weights of torchvision into the backbone. Return messages about what was and was not loaded.

        Raises:
            UserError: the file is missing or damaged, or none of its tensors fits the network.
        """
        return [str(load_pretrained_backbone(self.backbone, path))]


class Fcn(Segmenter):
    """Fully convolutional network (FCN).

    The input is padded at the bottom and on the right to a multiple of the coarsest stride, so that the coarsest
    feature map covers all pixels. The padding is 0, which is the mean color of normalized images.

    Args:
        backbone: computes the feature maps.
        strides: strides of its stages.
        classes: K.
        finest: stride of the finest feature map that is used.
        hidden: kernel size of fc6 and number of units of fc6 and fc7; None: no hidden layers.
        dropout: dropout probability of the hidden layers.
        decoder_channels: 0: scores are summed, as in the paper; otherwise feature maps of this many channels are
            summed, each sum is followed by a 3x3 convolution, and only the finest map is classified.

    Raises:
        UserError: the backbone has no feature map of stride `finest`.
    """

    def __init__(
        self,
        backbone: Backbone,
        strides: list[int],
        classes: int,
        finest: int,
        *,
        hidden: tuple[int, int] | None,
        dropout: float = 0.5,
        decoder_channels: int = 0,
    ) -> None:
        super().__init__(backbone, classes)
        stage_of = {stride: stage for stage, stride in enumerate(strides)}  # the deepest one of a stride
        if finest not in stage_of:
            available = [f"fcn{stride}s" for stride in stage_of if f"fcn{stride}s" in get_args(NetworkName)]
            networks = f", or a --network from {', '.join(available)}" if available else ""
            raise UserError(
                f"The backbone {backbone.name} has no feature map of stride {finest}: choose another --backbone or "
                f"--stem{networks}."
            )
        used = sorted((stride for stride in stage_of if stride >= finest), reverse=True)
        self.coarsest, self._stages = used[0], [stage_of[stride] for stride in used]
        channels = decoder_channels or classes
        in_channels = [backbone.stage_shapes[stage][0] for stage in self._stages]
        layers: list[nn.Module] = []
        if hidden is not None:
            kernel, units = hidden
            layers = [nn.Conv2d(in_channels[0], units, kernel, padding=kernel // 2), nn.ReLU(), nn.Dropout(dropout)]
            layers += [nn.Conv2d(units, units, 1), nn.ReLU(), nn.Dropout(dropout)]
            in_channels[0] = units
        self.hidden = nn.Sequential(*layers)
        he_init(self.hidden)
        self.laterals = nn.ModuleList(nn.Conv2d(number, channels, 1) for number in in_channels)
        self.ups = nn.ModuleList(
            bilinear_upsampling(channels, coarse // fine) for coarse, fine in itertools.pairwise(used)
        )
        self.mixes = nn.ModuleList(_conv_bn_relu(channels) if decoder_channels else nn.Identity() for _ in self.ups)
        self.score = nn.Conv2d(channels, classes, 1) if decoder_channels else nn.Identity()
        self.last_up = bilinear_upsampling(classes, finest) if finest > 1 else nn.Identity()
        if decoder_channels:
            he_init(self.laterals)
            nn.init.normal_(self.score.weight, std=channels**-0.5)  # type: ignore[arg-type]
            nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        else:
            for layer in self.laterals:  # section 4.3: random initial scores have no advantage
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute logits (B, K, H, W)."""
        height, width = x_BCHW.shape[2:]
        x = F.pad(x_BCHW, (0, -width % self.coarsest, 0, -height % self.coarsest))
        stages = self.backbone.stages(x)
        coarsest, *finer_maps = [stages[stage] for stage in self._stages]
        y: Tensor = self.laterals[0](self.hidden(coarsest))
        for finer, lateral, up, mix in zip(finer_maps, self.laterals[1:], self.ups, self.mixes, strict=True):
            skip = lateral(finer)
            y = mix(center_fit(up(y), skip.shape[2:]) + skip)
        return center_fit(self.last_up(self.score(y)), x.shape[2:])[:, :, :height, :width]

    def load_published(self, path: Path) -> list[str]:
        """Load the backbone, and fc6 and fc7 from the first linear layers of the classifier (section 3.1)."""
        reports = super().load_published(path)
        if not len(self.hidden):
            return reports
        tensors = read_tensors(path)
        for name, layer in (("fc6", self.hidden[0]), ("fc7", self.hidden[3])):
            assert isinstance(layer, nn.Conv2d)
            units, inputs = len(layer.weight), layer.weight[0].numel()
            key = next((key for key, tensor in tensors.items() if tensor.shape == (units, inputs)), None)
            if key is None:
                reports.append(
                    f"{name} keeps its random initialization: the file has no linear layer of {inputs:,} x {units:,}"
                )
                continue
            with torch.no_grad():
                layer.weight.copy_(tensors.pop(key).view_as(layer.weight))
                if layer.bias is not None and (bias := key.removesuffix("weight") + "bias") in tensors:
                    layer.bias.copy_(tensors[bias])
            reports.append(f"{name} loaded from {key.removesuffix('.weight')}")
        return reports


class SegNet(Segmenter):
    """SegNet: VGG as the encoder and its mirror image as the decoder.

    Every convolution of the decoder except the last one is followed by BatchNorm and ReLU.

    Args:
        backbone: a VGG. The poolings of other backbones cannot be reversed.
        classes: K.

    Raises:
        UserError: the backbone is not a VGG.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__(backbone, classes)
        if not isinstance(backbone, VGG):
            raise UserError(
                f"SegNet reverses the max poolings of VGG, and the backbone {backbone.name} is not a VGG: "
                f"choose --backbone vgg16_bn (as in the paper) or another from vgg11 to vgg19_bn, or --network fcn8s."
            )
        blocks: list[list[nn.Conv2d]] = [[]]  # convolutions between two poolings
        for layer in backbone.layers:
            if isinstance(layer, nn.Conv2d):
                blocks[-1].append(layer)
            elif isinstance(layer, nn.MaxPool2d):
                blocks.append([])
        self.decoder = nn.ModuleList()
        for index in reversed(range(len(blocks) - 1)):
            channels, number = blocks[index][0].out_channels, len(blocks[index])
            last_channels = blocks[index - 1][0].out_channels if index else classes
            layers: list[nn.Module] = []
            for out_channels in [channels] * (number - 1) + [last_channels]:
                layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
                channels = out_channels
            self.decoder.append(nn.Sequential(*(layers if index else layers[:-2])))
        he_init(self.decoder)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute logits (B, K, H, W)."""
        x, pools = x_BCHW, []
        layers = self.backbone.layers
        assert isinstance(layers, nn.Sequential)
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                size = x.shape[2:]
                x, indices = F.max_pool2d(x, 2, return_indices=True)
                pools.append((indices, size))
            else:
                x = layer(x)
        for block, (indices, size) in zip(self.decoder, reversed(pools), strict=True):
            x = block(unpool(x, indices, size))
        return x


def unpool(x_BChw: Tensor, index_BChw: Tensor, size: torch.Size) -> Tensor:
    """Max unpooling: feature maps (B, C, H, W) with each value at the position of its maximum, and 0 elsewhere.

    `F.max_unpool2d` raises an error if deterministic algorithms are enabled.

    Args:
        x_BChw: values.
        index_BChw: index of each value in the flattened larger map, as `F.max_pool2d` returns it.
        size: (H, W) of the larger map.
    """
    (batch, channels), (height, width) = x_BChw.shape[:2], size
    flat = x_BChw.new_zeros(batch, channels, height * width)
    return flat.scatter(2, index_BChw.flatten(2), x_BChw.flatten(2)).view(batch, channels, height, width)


def bilinear_upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Create a transposed convolution that is initialized to bilinear interpolation and trained (section 3.3)."""
    kernel = 2 * factor - factor % 2
    layer = nn.ConvTranspose2d(channels, channels, kernel, factor, padding=factor // 2, bias=False)
    distance = (torch.arange(kernel) - (kernel - 1) / 2).abs() / factor
    tent = (1 - distance).clamp(min=0)
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(channels):
            layer.weight[channel, channel] = tent[:, None] * tent
    return layer


def center_fit(x_BChw: Tensor, size: torch.Size) -> Tensor:
    """Crop feature maps to the height and width `size` around their center, or pad them by repeating their edges."""
    height, width = size
    top, left = (max(0, actual - target) // 2 for actual, target in zip(x_BChw.shape[2:], size, strict=True))
    x_BChw = x_BChw[:, :, top : top + height, left : left + width]
    down, right = height - x_BChw.shape[2], width - x_BChw.shape[3]
    if not (down or right):
        return x_BChw
    return F.pad(x_BChw, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")


def stage_strides(name: str, channels: int, **options: Any) -> list[int]:
    """Return the stride of each stage of a backbone, in pixels of the image.

    The backbone is built on the meta device, so nothing is computed.

    Raises:
        UserError: as in `core.backbones.registry.make_backbone`.
    """
    with on_meta_device():
        backbone = make_backbone(name, channels, PROBE_SIDE, **options)
    strides, before, stride = [], PROBE_SIDE, 1
    for _, height, _ in backbone.stage_shapes:
        stride *= max(1, round(before / height))
        before = height
        strides.append(stride)
    return strides


def make_segmenter(
    network: str,
    *,
    backbone: str,
    channels: int,
    image_size: tuple[int, int],
    classes: int,
    hidden_units: int | None = None,
    dropout: float = 0.5,
    decoder_channels: int = 0,
    **options: Any,
) -> Segmenter:
    """Create a segmentation network with randomly initialized weights.

    Args:
        network: one of `NetworkName`.
        backbone: name of the backbone in core.backbones; `options` are its options (width, stem, ...).
        channels, image_size: C and (H, W) of the training images.
        classes: K.
        hidden_units: units of FCN's hidden layers fc6 and fc7; None: those of the paper on VGG and AlexNet, no hidden
            layers on other backbones; 0: no hidden layers.
        dropout: dropout probability of the hidden layers.
        decoder_channels: see `Fcn`.

    Raises:
        UserError: the network, the backbone or an option is unknown; the backbone does not fit the network; the images
            are too small.
    """
    if network not in get_args(NetworkName):
        raise UserError(f"There is no network {network!r}: choose one of {', '.join(get_args(NetworkName))}.")
    if network == "segnet":
        return SegNet(make_backbone(backbone, channels, image_size, **options), classes)
    strides = stage_strides(backbone, channels, **options)
    size = (image_size[0] + -image_size[0] % strides[-1], image_size[1] + -image_size[1] % strides[-1])
    feature_extractor = make_backbone(backbone, channels, size, **options)
    kernel, paper_units = next(
        (head for name, head in HEADS.items() if feature_extractor.name.startswith(name) and not is_custom(backbone)),
        (3, 0),
    )
    units = scaled(paper_units, options.get("width", 1.0)) if hidden_units is None and paper_units else hidden_units
    return Fcn(
        feature_extractor,
        strides,
        classes,
        int(network.removeprefix("fcn").removesuffix("s")),
        hidden=(kernel, units) if units else None,
        dropout=dropout,
        decoder_channels=decoder_channels,
    )


@dataclass(frozen=True, kw_only=True)
class SegmenterMetadata(NormalizedMetadata[Segmenter]):
    """Metadata of a segmentation network's model file: architecture, classes and input normalization."""

    FORMAT = "zerokara-segmenter-1"
    NETWORK = "segmenter"
    PROGRAM = "vision.segment"

    network: str
    backbone: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]  # (H, W) of the training images
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone: width, stem, ...
    hidden_units: int | None = None
    dropout: float = 0.5
    decoder_channels: int = 0
    background: Background = "auto"  # color behind transparent pixels of the training images

    def build(self) -> Segmenter:
        """Create the network with randomly initialized weights."""
        return make_segmenter(
            self.network,
            backbone=self.backbone,
            channels=self.channels,
            image_size=self.image_size,
            classes=len(self.classes),
            hidden_units=self.hidden_units,
            dropout=self.dropout,
            decoder_channels=self.decoder_channels,
            **self.options,
        )


def _conv_bn_relu(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layers = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
    he_init(layers)
    return layers
