"""The critic: how far a picture is from one picture's content and from another's style, in the sight of an eye.

Shapes: B pictures, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zerokara.generative.style.losses import content_loss, gram, style_loss, total_variation
from zerokara.generative.style.perceptual import Eye


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What counts how much in the loss."""

    content: float
    style: float
    variation: float


@dataclass(frozen=True)
class Losses:
    """What a picture was judged at (scalars): the sum, and its parts before they are weighted."""

    total: Tensor
    content: Tensor
    style: Tensor
    variation: Tensor
    styles: Mapping[str, Tensor]  # of each layer, before the mean is taken

    def detach(self) -> Losses:
        """The same numbers without their graph."""
        styles = {layer: value.detach() for layer, value in self.styles.items()}
        total, content, style = self.total.detach(), self.content.detach(), self.style.detach()
        return Losses(total, content, style, self.variation.detach(), styles)

    def scalars(self, group: str) -> dict[str, Tensor]:
        """For the metrics."""
        parts = {"loss": self.total, "content": self.content, "style": self.style, "variation": self.variation}
        parts |= {f"style_{layer}": value for layer, value in self.styles.items()}
        return {f"{group}/{name}": value.detach() for name, value in parts.items()}


class Critic:
    """An eye that has seen a style.

    Args:
        eye: the losses of its content layers are averaged, and those of its style layers.
        style_1CHW: pixels of 0 to 1 of the picture that has the style.
    """

    def __init__(self, eye: Eye, weights: Weights, style_1CHW: Tensor) -> None:
        self.eye, self.weights = eye, weights
        with torch.no_grad():
            seen = eye(style_1CHW)
            self.grams = {layer: gram(seen[layer]) for layer in self.eye.chosen.style}

    @torch.no_grad()
    def content_of(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """What is in pictures, as the content layers see it."""
        seen = self.eye(pixels_BCHW)
        return {layer: seen[layer] for layer in self.eye.chosen.content}

    def judge(self, pixels_BCHW: Tensor, content: Mapping[str, Tensor]) -> Losses:
        """The loss of pictures, pixels of 0 to 1, that should show `content` in the critic's style."""
        seen = self.eye(pixels_BCHW)
        contents = [content_loss(seen[layer], content[layer]) for layer in self.eye.chosen.content]
        styles = {layer: style_loss(gram(seen[layer]), self.grams[layer]) for layer in self.eye.chosen.style}
        content_mean, style_mean = torch.stack(contents).mean(), torch.stack(list(styles.values())).mean()
        variation = total_variation(pixels_BCHW)
        weights = self.weights
        total = weights.content * content_mean + weights.style * style_mean + weights.variation * variation
        return Losses(total, content_mean, style_mean, variation, styles)
