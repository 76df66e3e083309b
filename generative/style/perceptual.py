"""Loss network of style transfer: feature maps of any backbone, by the names of its layers.

Every ReLU output of a VGG has a name, as in the papers: relu4_2 is the second one after the third pooling layer. Other
backbones have stages: stage1 is the finest.

Weights come from a file of torchvision (--weights), a run (--pretrained-backbone), the zoo (--loss-network), or are
random (--loss-network random). Random networks can represent style: He et al. 2016, "A Powerful Generative Model Using
Random Weights for the Deep Image Representation"; Du 2020, "How Much Deep Learning does Neural Style Transfer Really
Need?".

Shapes: B images, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.registry import make_backbone, option_names
from zerokara.core.backbones.vgg import VGG
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, flag, suggest
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.normalization import expected_moments, format_normalization
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.run import Run
from zerokara.core.run_inputs import check_origin, resumed_file, save_input
from zerokara.core.zoo import registry as zoo
from zerokara.generative.style.config import BackboneOptions, Pooling
from zerokara.generative.style.losses import luminance

DEFAULT_LOSS_NETWORK = "photographs-vgg"  # a network of the zoo
WEIGHTS_FILE = "loss_network.safetensors"  # weights in the run folder
MIN_SIDE = 32  # pixels; five pooling layers of a VGG halve it to 1


class Layers(NamedTuple):
    """Names of the content layers and the style layers."""

    content: tuple[str, ...]
    style: tuple[str, ...]


class LossNetwork(nn.Module):
    """Feature maps of images by layer, each layer scaled to a mean activation of about 1.

    The paper normalizes each filter over its training images. Here each layer is scaled over the given images (see
    `balance`), since filters that are nearly inactive on two images would be amplified too much.
    """

    mean: Tensor
    std: Tensor
    scales: Tensor

    def __init__(
        self,
        backbone: Backbone,
        selected: Layers,
        mean: Sequence[float],
        std: Sequence[float],
        description: str,
        pooling: Pooling = "max",
    ) -> None:
        """Wrap a backbone.

        Args:
            selected: names of content and style layers; `layers` has all of them, each once.
            mean, std: per channel, of the backbone's training images, for pixels from 0 to 1.
            description: printed when a run starts.
        """
        super().__init__()
        self.backbone, self.selected, self.description, self.pooling = backbone, selected, description, pooling
        self.layers = tuple(dict.fromkeys((*selected.content, *selected.style)))
        self.compute = Compute()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("scales", torch.ones(len(self.layers)))

    def on(self, compute: Compute) -> LossNetwork:
        """Move the network to a device, in evaluation mode and without gradients of its weights. Returns itself."""
        self.compute = compute
        compute.module(self.eval())
        compute.frozen(self.backbone)
        return self

    def forward(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Compute feature maps (B, C, H, W), float32, of pixels from 0 to 1, grayscale or RGB."""
        grayscale = self.backbone.in_channels == 1
        x = luminance(pixels_BCHW) if grayscale else pixels_BCHW.expand(-1, 3, -1, -1)
        x = self.compute.layout((x - self.mean) / self.std)
        with self.compute.autocast():
            maps = self._vgg(x) if isinstance(self.backbone, VGG) else self._stages(x)
        return {name: maps[name].float() * self.scales[index] for index, name in enumerate(self.layers)}

    @torch.no_grad()
    def balance(self, images: Sequence[Tensor]) -> None:
        """Set the scales so that the mean absolute activation of every layer over these images is 1."""
        self.scales.fill_(1.0)
        activations = [[features.abs().mean() for features in self(image).values()] for image in images]
        means = torch.stack([torch.stack(row) for row in activations]).mean(0)
        self.scales.copy_(1 / means.clamp(min=1e-6))

    def _vgg(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the ReLU outputs of a VGG, up to the last one that is needed."""
        assert isinstance(self.backbone, VGG)
        maps: dict[str, Tensor] = {}
        section = index = 1
        for layer in self.backbone.layers:
            if isinstance(layer, nn.MaxPool2d):
                x = layer(x) if self.pooling == "max" else F.avg_pool2d(x, 2)
                section, index = section + 1, 1
                continue
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps[f"relu{section}_{index}"] = x
                index += 1
                if maps.keys() >= set(self.layers):
                    break
        return maps

    def _stages(self, x: Tensor) -> dict[str, Tensor]:
        return {f"stage{index}": x for index, x in enumerate(self.backbone.stages(x), 1)}


def layers_of(backbone: Backbone) -> list[str]:
    """Return the names of a backbone's layers, from fine to coarse."""
    if not isinstance(backbone, VGG):
        return [f"stage{index}" for index in range(1, len(backbone.stage_shapes) + 1)]
    names, section, index = [], 1, 1
    for layer in backbone.layers:
        if isinstance(layer, nn.ReLU):
            names.append(f"relu{section}_{index}")
            index += 1
        elif isinstance(layer, nn.MaxPool2d):
            section, index = section + 1, 1
    return names


def chosen_layers(options: BackboneOptions, backbone: Backbone, content_of_vgg: str = "relu4_2") -> Layers:
    """Return the content layers and style layers of the options, by default those of Gatys et al.

    Args:
        content_of_vgg: default content layer of a VGG.

    Raises:
        UserError: a layer that the backbone does not have.
    """
    available = layers_of(backbone)
    vgg = isinstance(backbone, VGG)
    default_content = (content_of_vgg,) if vgg else (available[max(0, len(available) - 2)],)
    default_style = tuple(f"relu{section}_1" for section in range(1, 6)) if vgg else tuple(available)
    selected = Layers(options.content_layers or default_content, options.style_layers or default_style)
    for name, layers in zip(("content_layers", "style_layers"), selected, strict=True):
        if unknown := [layer for layer in layers if layer not in available]:
            raise UserError(
                f"The backbone {backbone.name} has no layer {unknown[0]!r}{suggest(unknown[0], available)}: "
                f"give {flag(name)} some of {', '.join(available)}."
            )
    return selected


def make_loss_network(options: BackboneOptions, seed: int = 0) -> LossNetwork:
    """Create the loss network of the options, with weights from a file, or random ones of the seed.

    Raises:
        UserError: two sources of weights, a missing, damaged or incompatible file, or unknown layers.
    """
    given = [name for name in ("weights", "pretrained_backbone", "loss_network") if getattr(options, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(map(flag, given))} name different weights: give only one of them.")
    if options.weights:
        published = options.published_normalization is not False
        return _from_file(options, seed, Path(options.weights).expanduser(), published)
    if options.loss_network == "random":
        backbone = _random_backbone(options, seed)
        description = f"{backbone.name} with random weights; trained weights give better results"
        return _loss_network(options, backbone, backbone.published_mean, backbone.published_std, description)
    if options.pretrained_backbone:
        source = options.pretrained_backbone
        if not zoo.is_classifier(source):
            return _from_file(options, seed, zoo.find_weights(source), bool(options.published_normalization))
        return _from_metadata(options, *_load_classifier(zoo.find_file(source)), source)
    name = options.loss_network or DEFAULT_LOSS_NETWORK
    return _from_metadata(options, *_load_classifier(zoo.find_file(name)), f"{name} of the zoo")


def loss_network_of(config: Any) -> LossNetwork:
    """Create the loss network of a run: by its config, with the weights in the folder of the run if it is resumed.

    Args:
        config: of the run; has the fields name, resume and seed.

    Raises:
        UserError: as `make_loss_network`, or the folder of an older release has no weights, and their file is gone.
    """
    if copy := resumed_file(config, WEIGHTS_FILE):
        field = "weights" if config.weights else "pretrained_backbone"  # they differ in their normalization
        return make_loss_network(replace(config, **{field: str(copy)}), config.seed)
    check_origin(config, config.weights or config.pretrained_backbone)
    return make_loss_network(config, config.seed)


def save_loss_network(run: Run, config: BackboneOptions, loss_network: LossNetwork) -> None:
    """Save weights that a file gave to a new loss network in the run folder, where a resumed run reads them.

    Args:
        run: the run, which is open.
        config: of the run.
        loss_network: on the CPU, as `loss_network_of` creates it.

    Raises:
        UserError: they cannot be written.
    """
    source = config.weights or config.pretrained_backbone
    if not source or (run.folder / WEIGHTS_FILE).exists():
        return
    if zoo.is_classifier(config.pretrained_backbone):
        content = zoo.find_file(source).read_bytes()
    else:
        content = to_bytes(loss_network.backbone.state_dict())
    save_input(run, WEIGHTS_FILE, content)


def _random_backbone(options: BackboneOptions, seed: int) -> Backbone:
    """Create --backbone with random weights."""
    width = (
        {"width": options.width_multiplier}
        if options.width_multiplier != 1.0 or "width" in option_names(options.backbone)
        else {}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_backbone(options.backbone, 3, 224, **width)


def _load_all_weights(backbone: Backbone, path: Path) -> Backbone:
    """Load weights into a backbone from a file that must contain all of them."""
    report = load_pretrained_backbone(backbone, path)
    if report.wrong_shape or any(not name.endswith("num_batches_tracked") for name in report.missing):
        raise UserError(
            f"{path} does not contain all weights of {backbone.name} ({report}): give the architecture of the weights "
            f"with --backbone, and its --width-multiplier."
        )
    return backbone


def _from_file(options: BackboneOptions, seed: int, path: Path, published: bool) -> LossNetwork:
    """Create --backbone with the weights of a file without metadata.

    Args:
        published: normalize inputs as published weights expect; False: pixels from 0 to 1.
    """
    backbone = _load_all_weights(_random_backbone(options, seed), path)
    description = f"{backbone.name} with the weights of {path}"
    if not published:
        return _loss_network(options, backbone, (0.0,) * 3, (1.0,) * 3, description)
    description += f"; {format_normalization(options)}"
    return _loss_network(options, backbone, *expected_moments(options), description)


def _load_classifier(path: Path) -> tuple[Backbone, ClassifierMetadata]:
    classifier, metadata = ClassifierMetadata.load(path)
    return classifier.backbone, metadata


def _from_metadata(
    options: BackboneOptions, backbone: Backbone, metadata: ClassifierMetadata, source: str
) -> LossNetwork:
    description = f"{backbone.name} of {source}, trained on {metadata.data}"
    # It was trained on small images, so deeper layers have receptive fields too large to represent the content.
    return _loss_network(options, backbone, metadata.mean, metadata.std, description, "relu3_1")


def _loss_network(
    options: BackboneOptions,
    backbone: Backbone,
    mean: Sequence[float],
    std: Sequence[float],
    description: str,
    content_of_vgg: str = "relu4_2",
) -> LossNetwork:
    return LossNetwork(
        backbone, chosen_layers(options, backbone, content_of_vgg), mean, std, description, options.pooling
    )
