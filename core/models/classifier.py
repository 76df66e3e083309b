"""A classifier: a backbone and a head.

classifier = make_classifier("vgg16", channels=3, image_size=224, classes=1000)
print(classifier.load_published(Path("vgg16-397923af.pth")))
logits_BK = classifier(x_BCHW)

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.googlenet import GoogLeNetHead
from zerokara.core.backbones.heads import PooledHead
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.core.models.weights import LoadReport, load_into, read_tensors

Head = Literal["paper", "pooled"]


class Classifier(nn.Module):
    """Logits of images.

    Args:
        backbone: from images to the last feature map.
        head: from there to logits (B, K).
        classes: K.
        output_dropout: probability with which a logit is dropped in training, as the book's deep CNN does.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, classes: int, output_dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone, self.head, self.classes = backbone, head, classes
        self.output_dropout = nn.Dropout(output_dropout) if output_dropout else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits_BK: Tensor = self.head(self.backbone(x_BCHW))
        return logits_BK if self.output_dropout is None else self.output_dropout(logits_BK)

    def logits_and_auxiliaries(self, x_BCHW: Tensor) -> tuple[Tensor, list[tuple[float, Tensor]]]:
        """Logits (B, K), and in training weight and logits (B, K) of every auxiliary head: GoogLeNet has two."""
        if not (self.training and isinstance(self.head, GoogLeNetHead)):
            return self(x_BCHW), []
        last, taps = self.backbone.with_taps(x_BCHW)
        logits_BK: Tensor = self.head(last)
        if self.output_dropout is not None:
            logits_BK = self.output_dropout(logits_BK)
        return logits_BK, self.head.auxiliaries(taps)

    def output_weights(self) -> list[Tensor]:
        """The matrices that give logits, those of auxiliary heads too."""
        if isinstance(self.head, GoogLeNetHead):
            return [layer.weight for layer in (self.head.fc, self.head.aux1.fc2, self.head.aux2.fc2)]
        return [layer.weight for layer in self.head.modules() if isinstance(layer, nn.Linear)][-1:]

    def published_name(self, name: str) -> str:
        """What torchvision calls the weight `name` of this classifier: backbone.layers.0.bias is features.0.bias."""
        part, _, rest = name.partition(".")
        return self.backbone.published_name(rest) if part == "backbone" else rest

    def load_published(self, path: Path) -> LoadReport:
        """Put in weights that torchvision published (.pth, .safetensors), or our own; what happened to each key.

        A last layer for another number of classes stays as it is, as does everything of another shape.

        Raises:
            UserError: no such file, a damaged one, or one of which nothing fits.
        """
        state = self.state_dict()
        ours = {self.published_name(name): name for name in state} | {name: name for name in state}
        return load_into(self, {ours.get(key, key): value for key, value in read_tensors(path).items()}, path)


def make_classifier(
    backbone: str,
    channels: int,
    image_size: int | tuple[int, int],
    classes: int,
    *,
    head: Head = "paper",
    dropout: float | None = None,
    output_dropout: float = 0.0,
    **options: Any,
) -> Classifier:
    """A classifier with fresh weights.

    Args:
        backbone: its name in core.backbones; `options` are its own (width, stem, ...).
        channels, image_size: C, and H = W or (H, W), of the images.
        classes: K.
        head: "paper" is that of the backbone's paper, "pooled" the mean over the last feature map and one layer.
        dropout: probability with which the head drops a unit; None: the paper's, and none for "pooled".
        output_dropout: of the logits; the book has 0.5.

    Raises:
        UserError: unknown backbone or option, images too small for its strides, fewer than two classes.
    """
    if classes < 2:
        raise UserError(f"A classifier needs at least 2 classes, and there is {classes}: give images of more classes.")
    eye = make_backbone(backbone, channels, image_size, **options)
    if head == "paper":
        top = eye.paper_head(classes, dropout)
    else:
        top = PooledHead(eye.out_channels, classes, dropout or 0.0)
    return Classifier(eye, top, classes, output_dropout)
