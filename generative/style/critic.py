"""Loss of style transfer: distance of an image to the content of one image and to the style of another.

Shapes: B images, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zerokara.generative.style.losses import content_loss, gram, style_loss, total_variation
from zerokara.generative.style.perceptual import LossNetwork


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the terms of the loss."""

    content: float
    style: float
    variation: float


@dataclass(frozen=True)
class Losses:
    """Total loss, and its terms before weighting (scalars)."""

    total: Tensor
    content: Tensor
    style: Tensor
    variation: Tensor
    styles: Mapping[str, Tensor]  # by layer; `style` is their mean

    def detach(self) -> Losses:
        """Detach all tensors from the graph."""
        styles = {layer: value.detach() for layer, value in self.styles.items()}
        total, content, style = self.total.detach(), self.content.detach(), self.style.detach()
        return Losses(total, content, style, self.variation.detach(), styles)

    def scalars(self, group: str) -> dict[str, Tensor]:
        """Return the losses as metrics <group>/<name>."""
        parts = {"loss": self.total, "content": self.content, "style": self.style, "variation": self.variation}
        parts |= {f"style_{layer}": value for layer, value in self.styles.items()}
        return {f"{group}/{name}": value.detach() for name, value in parts.items()}


class PerceptualLoss:
    """Weighted sum of content loss, style loss and total variation, for one style image.

    Args:
        loss_network: network whose features are compared. Losses are averaged over its content and style layers.
        weights: of the terms.
        style_1CHW: pixels from 0 to 1 of the style image.
    """

    def __init__(self, loss_network: LossNetwork, weights: Weights, style_1CHW: Tensor) -> None:
        self.loss_network, self.weights = loss_network, weights
        with torch.no_grad():
            features = loss_network(style_1CHW)
            self.grams = {layer: gram(features[layer]) for layer in self.loss_network.selected.style}

    @torch.no_grad()
    def content_features(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Compute the content layers' features of images."""
        features = self.loss_network(pixels_BCHW)
        return {layer: features[layer] for layer in self.loss_network.selected.content}

    def losses(self, pixels_BCHW: Tensor, content: Mapping[str, Tensor]) -> Losses:
        """Compute the losses of images (pixels from 0 to 1).

        Args:
            content: target features, of `content_features`.
        """
        features = self.loss_network(pixels_BCHW)
        contents = [content_loss(features[layer], content[layer]) for layer in self.loss_network.selected.content]
        styles = {
            layer: style_loss(gram(features[layer]), self.grams[layer]) for layer in self.loss_network.selected.style
        }
        content_mean, style_mean = torch.stack(contents).mean(), torch.stack(list(styles.values())).mean()
        variation = total_variation(pixels_BCHW)
        weights = self.weights
        total = weights.content * content_mean + weights.style * style_mean + weights.variation * variation
        return Losses(total, content_mean, style_mean, variation, styles)
