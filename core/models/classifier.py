"""Image classifier: a backbone with a head; and the metadata of its model file.

classifier = make_classifier("vgg16", channels=3, image_size=224, classes=1000)
print(classifier.load_published(Path("vgg16-397923af.pth")))
logits_BK = classifier(x_BCHW)

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.googlenet import GoogLeNetHead
from zerokara.core.backbones.heads import PooledHead
from zerokara.core.backbones.registry import BackboneName, make_backbone
from zerokara.core.choices import Background
from zerokara.core.config import UserError
from zerokara.core.models.model_file import NormalizedMetadata
from zerokara.core.models.weights import LoadReport, load_copy, read_tensors

Head = Literal["paper", "pooled"]


class Classifier(nn.Module):
    """Network that computes class logits of images.

    Args:
        backbone: from images to the last feature map.
        head: from the last feature map to logits (B, K).
        classes: K.
        output_dropout: dropout probability of the logits in training, as in the book's deep CNN.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, classes: int, output_dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone, self.head, self.classes = backbone, head, classes
        self.output_dropout = nn.Dropout(output_dropout) if output_dropout else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute logits (B, K)."""
        logits_BK: Tensor = self.head(self.backbone(x_BCHW))
        return logits_BK if self.output_dropout is None else self.output_dropout(logits_BK)

    def logits_and_auxiliaries(self, x_BCHW: Tensor) -> tuple[Tensor, list[tuple[float, Tensor]]]:
        """Compute logits (B, K) and, in training, (loss weight, logits (B, K)) of each auxiliary head (GoogLeNet's)."""
        if not (self.training and isinstance(self.head, GoogLeNetHead)):
            return self(x_BCHW), []
        last, taps = self.backbone.with_taps(x_BCHW)
        logits_BK: Tensor = self.head(last)
        if self.output_dropout is not None:
            logits_BK = self.output_dropout(logits_BK)
        return logits_BK, self.head.auxiliaries(taps)

    def output_weights(self) -> list[Tensor]:
        """Return the weight matrices of the output layers, including those of auxiliary heads."""
        if isinstance(self.head, GoogLeNetHead):
            return [layer.weight for layer in (self.head.fc, self.head.aux1.fc2, self.head.aux2.fc2)]
        return [layer.weight for layer in self.head.modules() if isinstance(layer, nn.Linear)][-1:]

    def published_name(self, name: str) -> str:
        """Convert the name of a weight to the published name: backbone.layers.0.bias becomes features.0.bias."""
        part, _, rest = name.partition(".")
        return self.backbone.published_name(rest) if part == "backbone" else self.backbone.published_head_name(rest)

    def load_published(self, path: Path) -> LoadReport:
        """Load weights published by torchvision (.pth, .safetensors) or saved by zerokara, and report on every key.

        Weights of another shape are not loaded, for example those of an output layer for another number of classes.

        Raises:
            UserError: the file is missing or damaged, or none of its weights fits.
        """
        return load_copy(
            self, read_tensors(path), {self.published_name(name): name for name in self.state_dict()}, path
        )


def make_classifier(
    backbone: BackboneName,
    channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    head: Head = "paper",
    dropout: float | None = None,
    output_dropout: float = 0.0,
    **options: Any,
) -> Classifier:
    """Create a classifier with randomly initialized weights.

    Args:
        backbone: name in `BACKBONES`, or a network of one's own as in core/backbones/registry.py.
        channels: C of the images.
        image_size: H = W, or (H, W), of the images.
        classes: K.
        head: "paper" is the head of the backbone's paper, "pooled" is global average pooling and one linear layer.
        dropout: dropout probability of the head; None: the paper's value, or 0 for "pooled".
        output_dropout: dropout probability of the logits; 0.5 in the book.
        options: of the backbone (width, stem, ...).

    Raises:
        UserError: the backbone or an option is unknown, the images are too small, or there are fewer than 2 classes.
    """
    if classes < 2:
        raise UserError(f"A classifier needs at least 2 classes, got {classes}: give images of more classes.")
    network = make_backbone(backbone, channels, image_size, **options)
    if head == "paper":
        classifier_head = network.paper_head(classes, dropout)
    else:
        classifier_head = PooledHead(network.out_channels, classes, dropout or 0.0)
    return Classifier(network, classifier_head, classes, output_dropout)


@dataclass(frozen=True, kw_only=True)
class ClassifierMetadata(NormalizedMetadata[Classifier]):
    """Metadata of a classifier's model file: architecture, classes and input normalization."""

    FORMAT = "zerokara-classifier-1"
    NETWORK = "classifier"
    PROGRAM = "vision.classify"

    backbone: str
    head: Head
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]  # (H, W)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone: width, stem, ...
    dropout: float | None = None
    background: Background = "auto"  # color behind transparent pixels of the training images

    def build(self) -> Classifier:
        """Create the network with randomly initialized weights."""
        return make_classifier(
            self.backbone,
            self.channels,
            self.image_size,
            len(self.classes),
            head=self.head,
            dropout=self.dropout,
            **self.options,
        )
