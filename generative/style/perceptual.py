"""The eye that judges a style: feature maps of any backbone, by the names of its layers.

Of a VGG every rectified convolution has a name, as in the papers: relu4_2 is the second one behind the third pool. Of
every other backbone the stages can be had: stage1 is the finest.

Its weights come from torchvision's file (--weights), a network of ours (--pretrained-backbone, --eye), or nowhere
(--eye random). That a network which has learnt nothing tells styles apart was found by He et al. 2016, "A Powerful
Generative Model Using Random Weights for the Deep Image Representation", and Du 2020, "How Much Deep Learning does
Neural Style Transfer Really Need?".

Shapes: B pictures, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.registry import make_backbone, option_names
from zerokara.core.backbones.vgg import VGG
from zerokara.core.compute import Compute
from zerokara.core.config import Range, UserError, flag, suggest
from zerokara.core.models import model_file
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.zoo import registry as zoo
from zerokara.generative.style.losses import luminance

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of what torchvision publishes
OWN_EYE = "photographs-vgg"  # of the zoo: what judges where nobody says who
SMALLEST_SIDE = 32  # pixels: a VGG's five pools leave nothing of less
Pooling = Literal["max", "average"]


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Which network judges, by which of its layers."""

    backbone: str = "vgg16"
    """Network of core.backbones that judges, where its weights do not say it themselves."""
    weights: str = ""
    """Its weights as torchvision publishes them: a file such as vgg16-397923af.pth."""
    pretrained_backbone: str = ""
    """Its weights from a run of ours: a folder runs/<name>, or a file of one."""
    eye: str = ""
    """A network of the zoo by its name, or random: --backbone with random weights. Empty, and no weights given either:
    photographs-vgg, a slim VGG-13 of ours."""
    width_multiplier: Annotated[float, Range(0.01, 4)] = 1.0
    """Factor on the channels of --backbone, where its weights do not say it themselves."""
    content_layers: tuple[str, ...] = ()
    """Layers that say what is in the picture: relu4_2 and the like of a VGG, stage3 and the like of others; empty:
    relu4_2, of a VGG of ours relu3_1, or the stage before the last."""
    style_layers: tuple[str, ...] = ()
    """Layers that say how it is painted; empty: relu1_1 to relu5_1, or all stages."""
    pooling: Pooling = "average"
    """How a VGG's maps are made smaller; average gives smoother pictures (Gatys et al. 2016, section 2)."""


class Layers(NamedTuple):
    """By which layers an eye judges."""

    content: tuple[str, ...]
    style: tuple[str, ...]


class Eye(nn.Module):
    """Rectified feature maps of pictures by layer, each scaled so that its mean activation is about 1.

    The paper rescales each filter over its training images; here each layer is scaled over the pictures at hand (see
    `balance`), since a filter that is silent on two pictures would be made to shout.
    """

    mean: Tensor
    std: Tensor
    scales: Tensor

    def __init__(
        self,
        backbone: Backbone,
        chosen: Layers,
        mean: Sequence[float],
        std: Sequence[float],
        words: str,
        pooling: Pooling = "max",
    ) -> None:
        """An eye on these layers.

        Args:
            chosen: names of layers; `layers` has all of them, each once.
            mean, std: of the channels of what the backbone learnt from, in pixels of 0 to 1.
            words: what it is, for a person.
        """
        super().__init__()
        self.backbone, self.chosen, self.words, self.pooling = backbone, chosen, words, pooling
        self.layers = tuple(dict.fromkeys((*chosen.content, *chosen.style)))
        self.compute = Compute()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("scales", torch.ones(len(self.layers)))

    def on(self, compute: Compute) -> Eye:
        """Put it to work with a choice of hardware: it only looks, and its weights get no gradients."""
        self.compute = compute
        compute.module(self.eval())
        compute.frozen(self.backbone)
        return self

    def forward(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Feature maps (B, C, H, W), float32, of pixels of 0 to 1, grey or RGB."""
        grey_eye = self.backbone.in_channels == 1
        x = luminance(pixels_BCHW) if grey_eye else pixels_BCHW.expand(-1, 3, -1, -1)
        x = self.compute.layout((x - self.mean) / self.std)
        with self.compute.autocast():
            maps = self._vgg(x) if isinstance(self.backbone, VGG) else self._stages(x)
        return {name: maps[name].float() * self.scales[place] for place, name in enumerate(self.layers)}

    @torch.no_grad()
    def balance(self, pictures: Sequence[Tensor]) -> None:
        """Set the scales, so that the mean absolute activation of every layer over these pictures is 1."""
        self.scales.fill_(1.0)
        seen = [[features.abs().mean() for features in self(picture).values()] for picture in pictures]
        means = torch.stack([torch.stack(row) for row in seen]).mean(0)
        self.scales.copy_(1 / means.clamp(min=1e-6))

    def _vgg(self, x: Tensor) -> dict[str, Tensor]:
        """No further than the last layer that is asked for."""
        assert isinstance(self.backbone, VGG)
        maps: dict[str, Tensor] = {}
        section = place = 1
        for layer in self.backbone.layers:
            if isinstance(layer, nn.MaxPool2d):
                x = layer(x) if self.pooling == "max" else F.avg_pool2d(x, 2)
                section, place = section + 1, 1
                continue
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps[f"relu{section}_{place}"] = x
                place += 1
                if maps.keys() >= set(self.layers):
                    break
        return maps

    def _stages(self, x: Tensor) -> dict[str, Tensor]:
        return {f"stage{place}": x for place, x in enumerate(self.backbone.stages(x), 1)}


def layers_of(backbone: Backbone) -> list[str]:
    """The names of the layers that can be had of a backbone, from fine to coarse."""
    if not isinstance(backbone, VGG):
        return [f"stage{place}" for place in range(1, len(backbone.stage_shapes) + 1)]
    names, section, place = [], 1, 1
    for layer in backbone.layers:
        if isinstance(layer, nn.ReLU):
            names.append(f"relu{section}_{place}")
            place += 1
        elif isinstance(layer, nn.MaxPool2d):
            section, place = section + 1, 1
    return names


def chosen_layers(options: BackboneOptions, backbone: Backbone, content_of_vgg: str = "relu4_2") -> Layers:
    """Content layers and style layers, those of Gatys et al. where none are asked for.

    Args:
        content_of_vgg: the layer that says what is in a picture, where the backbone is a VGG.

    Raises:
        UserError: a layer that the backbone does not have.
    """
    there = layers_of(backbone)
    vgg = isinstance(backbone, VGG)
    usual_content = (content_of_vgg,) if vgg else (there[max(0, len(there) - 2)],)
    usual_style = tuple(f"relu{section}_1" for section in range(1, 6)) if vgg else tuple(there)
    chosen = Layers(options.content_layers or usual_content, options.style_layers or usual_style)
    for name, layers in zip(("content_layers", "style_layers"), chosen, strict=True):
        if unknown := [layer for layer in layers if layer not in there]:
            raise UserError(
                f"The backbone {backbone.name} has no layer {unknown[0]!r}{suggest(unknown[0], there)}: "
                f"give {flag(name)} some of {', '.join(there)}."
            )
    return chosen


def make_eye(options: BackboneOptions, seed: int = 0) -> Eye:
    """The eye that is asked for, its weights as they are in their file, or random by the seed.

    Raises:
        UserError: two sources of weights, a file that is missing, damaged or does not fit, unknown layers.
    """
    given = [name for name in ("weights", "pretrained_backbone", "eye") if getattr(options, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(map(flag, given))} both say whose eye it is: leave all but one out.")
    if options.weights:
        backbone = _whole(_fresh(options, seed), Path(options.weights).expanduser())
        words = f"{backbone.name} with the weights of {options.weights}"
        return _eye(options, backbone, IMAGENET_MEAN, IMAGENET_STD, words)
    if options.eye == "random":
        backbone = _fresh(options, seed)
        words = f"{backbone.name} with random weights, which has learnt nothing: a trained eye paints better"
        return _eye(options, backbone, IMAGENET_MEAN, IMAGENET_STD, words)
    if options.pretrained_backbone:
        path = Path(options.pretrained_backbone).expanduser()
        if (path.is_dir() and not (path / "model.safetensors").is_file()) or path.suffix in (".pt", ".pth"):
            backbone = _whole(_fresh(options, seed), path)
            return _eye(options, backbone, (0.0,) * 3, (1.0,) * 3, f"{backbone.name} of {path}")
        return _from_metadata(options, *_trunk(zoo.find_file(options.pretrained_backbone)), options.pretrained_backbone)
    name = options.eye or OWN_EYE
    return _from_metadata(options, *_trunk(zoo.find_file(name)), f"{name} of the zoo")


def _fresh(options: BackboneOptions, seed: int) -> Backbone:
    width = (
        {"width": options.width_multiplier}
        if options.width_multiplier != 1.0 or "width" in option_names(options.backbone)
        else {}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_backbone(options.backbone, 3, 224, **width)


def _whole(backbone: Backbone, path: Path) -> Backbone:
    """The backbone with weights from a file that must hold them all: half an eye would see nonsense, silently."""
    report = load_pretrained_backbone(backbone, path)
    if report.wrong_shape or any(not name.endswith("num_batches_tracked") for name in report.missing):
        raise UserError(
            f"{path} does not hold all weights of {backbone.name} ({report}): name the backbone that it is of with "
            f"--backbone, and its --width-multiplier."
        )
    return backbone


def _trunk(path: Path) -> tuple[Backbone, ClassifierMetadata]:
    classifier, metadata = model_file.load(path)
    return classifier.backbone, metadata


def _from_metadata(options: BackboneOptions, backbone: Backbone, metadata: ClassifierMetadata, source: str) -> Eye:
    words = f"{backbone.name} of {source}, which learnt {metadata.data}"
    # It learnt on small pictures: what is deeper sees so much of one that it hardly knows where things are.
    return _eye(options, backbone, metadata.mean, metadata.std, words, "relu3_1")


def _eye(
    options: BackboneOptions,
    backbone: Backbone,
    mean: Sequence[float],
    std: Sequence[float],
    words: str,
    content_of_vgg: str = "relu4_2",
) -> Eye:
    return Eye(backbone, chosen_layers(options, backbone, content_of_vgg), mean, std, words, options.pooling)
