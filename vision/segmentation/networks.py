"""Networks that give every pixel a class: FCN and SegNet, on any backbone that can carry them.

network = make_segmenter("fcn8s", backbone="vgg16", channels=3, image_size=(180, 240), classes=11)
logits_BKHW = network(x_BCHW)

FCN: Shelhamer, Long and Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation". The classifier slides
over the last feature map; its scores are brought to the size of finer maps by learned upsampling, and the scores that
a 1x1 convolution reads there are added (section 3). fcn32s, 16s and 8s end at a map of that stride.

SegNet: Badrinarayanan, Kendall and Cipolla 2017, "SegNet: A Deep Convolutional Encoder-Decoder Architecture". VGG, and
VGG backwards: each pool remembers where its maxima were, and they are put there again (section 3).

Shapes: B batch, C channels, H, W pixels, h, w cells of a feature map, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone, he_init, scaled
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.backbones.vgg import VGG
from zerokara.core.config import UserError
from zerokara.core.models.weights import load_pretrained_backbone, read_tensors

NetworkName = Literal["fcn32s", "fcn16s", "fcn8s", "fcn4s", "fcn2s", "segnet"]
HEADS: Mapping[str, tuple[int, int]] = {"vgg": (7, 4096), "alexnet": (6, 4096)}  # side of fc6's kernel, units
PROBE_SIDE = 512  # of the image at which strides are measured: large enough for what edges lose to round away


class Segmenter(nn.Module):
    """Logits (B, K, H, W) of images (B, C, H, W) of any size.

    Attributes:
        backbone: the eye.
        classes: K.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes

    def load_published(self, path: Path) -> list[str]:
        """Put in the trunk's weights that torchvision published, and what else fits; what happened, in words.

        Raises:
            UserError: no such file, a damaged one, or one of which nothing fits.
        """
        return [str(load_pretrained_backbone(self.backbone, path))]


class Fcn(Segmenter):
    """A fully convolutional network.

    The image is continued by its mean colour, at the bottom and on the right, to whole cells of the coarsest map: what
    is left over there would otherwise not be looked at.

    Args:
        backbone: the trunk.
        strides: of each of its stages.
        classes: K.
        finest: stride of the map at which scores stop being summed.
        hidden: side of the kernel and units of the hidden layers fc6 and fc7; None: there are none.
        dropout: of these.
        decoder_channels: 0 sums scores, as the paper does; else so many channels are summed, a 3x3 convolution follows
            each sum, and only the finest map is scored.

    Raises:
        UserError: the trunk has no map of the stride `finest`.
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
        last = {stride: place for place, stride in enumerate(strides)}  # of several maps of one stride the deepest
        if finest not in last:
            known = ", ".join(f"fcn{stride}s" for stride in last)
            raise UserError(
                f"The backbone {backbone.name} has no map of stride {finest}: choose another --backbone or --stem, or "
                f"--network from {known}."
            )
        used = sorted((stride for stride in last if stride >= finest), reverse=True)
        self.coarsest, self._places = used[0], [last[stride] for stride in used]
        channels = decoder_channels or classes
        in_channels = [backbone.stage_shapes[place][0] for place in self._places]
        layers: list[nn.Module] = []
        if hidden is not None:
            kernel, units = hidden
            layers = [nn.Conv2d(in_channels[0], units, kernel, padding=kernel // 2), nn.ReLU(), nn.Dropout(dropout)]
            layers += [nn.Conv2d(units, units, 1), nn.ReLU(), nn.Dropout(dropout)]
            in_channels[0] = units
        self.hidden = nn.Sequential(*layers)
        he_init(self.hidden)
        self.laterals = nn.ModuleList(nn.Conv2d(number, channels, 1) for number in in_channels)
        self.ups = nn.ModuleList(upsampling(channels, coarse // fine) for coarse, fine in itertools.pairwise(used))
        self.mixes = nn.ModuleList(_mix(channels) if decoder_channels else nn.Identity() for _ in self.ups)
        self.score = nn.Conv2d(channels, classes, 1) if decoder_channels else nn.Identity()
        self.last_up = upsampling(classes, finest) if finest > 1 else nn.Identity()
        if decoder_channels:
            he_init(self.laterals)
            nn.init.normal_(self.score.weight, std=channels**-0.5)  # type: ignore[arg-type]
            nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        else:
            for layer in self.laterals:  # section 4.3; random scores would only have to be unlearned
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K, H, W)."""
        height, width = x_BCHW.shape[2:]
        x = F.pad(x_BCHW, (0, -width % self.coarsest, 0, -height % self.coarsest))
        stages = self.backbone.stages(x)
        first, *others = [stages[place] for place in self._places]
        y: Tensor = self.laterals[0](self.hidden(first))
        for finer, lateral, up, mix in zip(others, self.laterals[1:], self.ups, self.mixes, strict=True):
            skip = lateral(finer)
            y = mix(fitted(up(y), skip.shape[2:]) + skip)
        return fitted(self.last_up(self.score(y)), x.shape[2:])[:, :, :height, :width]

    def load_published(self, path: Path) -> list[str]:
        """As for every network; fc6 and fc7 come from a classifier's first linear layers (section 3.1)."""
        reports = super().load_published(path)
        if not len(self.hidden):
            return reports
        tensors = read_tensors(path)
        for name, layer in (("fc6", self.hidden[0]), ("fc7", self.hidden[3])):
            assert isinstance(layer, nn.Conv2d)
            units, inputs = len(layer.weight), layer.weight[0].numel()
            key = next((key for key, tensor in tensors.items() if tensor.shape == (units, inputs)), None)
            if key is None:
                reports.append(f"{name} stays fresh: the file has no linear layer of {inputs:,} x {units:,}")
                continue
            with torch.no_grad():
                layer.weight.copy_(tensors.pop(key).view_as(layer.weight))
                if layer.bias is not None and (bias := key.removesuffix("weight") + "bias") in tensors:
                    layer.bias.copy_(tensors[bias])
            reports.append(f"{name} from {key.removesuffix('.weight')}")
        return reports


class SegNet(Segmenter):
    """VGG forwards and backwards, with BatchNorm behind every convolution of the way back but the last.

    Raises:
        UserError: the backbone is no VGG, whose pools can be undone.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__(backbone, classes)
        if not isinstance(backbone, VGG):
            raise UserError(
                f"SegNet runs VGG's pools backwards, and the backbone {backbone.name} is no VGG: "
                f"choose --backbone vgg16_bn (the paper's) or another of vgg11 to vgg19_bn, or --network fcn8s."
            )
        sections: list[list[nn.Conv2d]] = [[]]
        for layer in backbone.layers:
            if isinstance(layer, nn.Conv2d):
                sections[-1].append(layer)
            elif isinstance(layer, nn.MaxPool2d):
                sections.append([])
        self.decoder = nn.ModuleList()
        for place in reversed(range(len(sections) - 1)):
            channels, number = sections[place][0].out_channels, len(sections[place])
            ends_at = sections[place - 1][0].out_channels if place else classes
            layers: list[nn.Module] = []
            for out_channels in [channels] * (number - 1) + [ends_at]:
                layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
                channels = out_channels
            self.decoder.append(nn.Sequential(*(layers if place else layers[:-2])))
        he_init(self.decoder)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K, H, W)."""
        x, pools = x_BCHW, []
        layers = self.backbone.layers
        assert isinstance(layers, nn.Sequential)
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                size = x.shape[2:]
                x, place = F.max_pool2d(x, 2, return_indices=True)
                pools.append((place, size))
            else:
                x = layer(x)
        for section, (place, size) in zip(self.decoder, reversed(pools), strict=True):
            x = section(unpool(x, place, size))
        return x


def unpool(x_BChw: Tensor, place_BChw: Tensor, size: torch.Size) -> Tensor:
    """Maps (B, C, *size) of zeros, with every number where its maximum had been found.

    PyTorch's own refuses to work where deterministic algorithms are asked for.

    Args:
        x_BChw: numbers.
        place_BChw: index of each within the flattened larger map, as max-pooling gives it.
        size: (H, W) of the larger map.
    """
    (batch, channels), (height, width) = x_BChw.shape[:2], size
    flat = x_BChw.new_zeros(batch, channels, height * width)
    return flat.scatter(2, place_BChw.flatten(2), x_BChw.flatten(2)).view(batch, channels, height, width)


def upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution that begins as bilinear interpolation and learns (section 3.3)."""
    kernel = 2 * factor - factor % 2
    layer = nn.ConvTranspose2d(channels, channels, kernel, factor, padding=factor // 2, bias=False)
    distance = (torch.arange(kernel) - (kernel - 1) / 2).abs() / factor
    tent = (1 - distance).clamp(min=0)
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(channels):
            layer.weight[channel, channel] = tent[:, None] * tent
    return layer


def fitted(x_BChw: Tensor, size: torch.Size) -> Tensor:
    """The middle of maps that are larger than `size`; smaller ones with their edge continued all around."""
    height, width = size
    top, left = (max(0, have - want) // 2 for have, want in zip(x_BChw.shape[2:], size, strict=True))
    x_BChw = x_BChw[:, :, top : top + height, left : left + width]
    down, right = height - x_BChw.shape[2], width - x_BChw.shape[3]
    if not (down or right):
        return x_BChw
    return F.pad(x_BChw, (right // 2, right - right // 2, down // 2, down - down // 2), mode="replicate")


def strides_of(name: str, channels: int, **options: Any) -> list[int]:
    """By how much each stage of a backbone shrinks its image, in whole numbers, found without arithmetic.

    Raises:
        UserError: as `core.backbones.build`.
    """
    with torch.device("meta"):
        eye = make_backbone(name, channels, PROBE_SIDE, **options)
    strides, before, stride = [], PROBE_SIDE, 1
    for _, height, _ in eye.stage_shapes:
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
    """A network with fresh weights.

    Args:
        network: one of `NetworkName`.
        backbone: its name in core.backbones; `options` are its own (width, stem, ...).
        channels, image_size: C and (H, W) of the images it is made for.
        classes: K.
        hidden_units: of FCN's fc6 and fc7; None: the paper's on VGG and AlexNet, and none on others; 0: none.
        dropout: of these.
        decoder_channels: see `Fcn`.

    Raises:
        UserError: unknown network, backbone or option; one that does not carry the other; images too small.
    """
    if network not in get_args(NetworkName):
        raise UserError(f"There is no network {network!r}: choose one of {', '.join(get_args(NetworkName))}.")
    if network == "segnet":
        return SegNet(make_backbone(backbone, channels, image_size, **options), classes)
    strides = strides_of(backbone, channels, **options)
    size = (image_size[0] + -image_size[0] % strides[-1], image_size[1] + -image_size[1] % strides[-1])
    eye = make_backbone(backbone, channels, size, **options)
    kernel, usual_units = next((head for name, head in HEADS.items() if eye.name.startswith(name)), (3, 0))
    units = scaled(usual_units, options.get("width", 1.0)) if hidden_units is None and usual_units else hidden_units
    return Fcn(
        eye,
        strides,
        classes,
        int(network.removeprefix("fcn").removesuffix("s")),
        hidden=(kernel, units) if units else None,
        dropout=dropout,
        decoder_channels=decoder_channels,
    )


def _mix(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layers = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
    he_init(layers)
    return layers
