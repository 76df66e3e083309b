"""Who scores: a classifier of ours that the painter has never met, and the features that it sees images by.

scorer = Scorer.load("runs/classify-mnist", images.shape)
reference = scorer.look(held_out.images)
scores = scorer.compare(reference, scorer.look(painted))

Shapes: N images, C channels, H, W pixels, F features, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.core.models import model_file
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.zoo import provenance
from zerokara.core.zoo.provenance import Provenance
from zerokara.core.zoo.registry import files, find_file
from zerokara.generative.gan.config import Config
from zerokara.generative.scoring.distances import frechet_distance, kernel_distance, overlap

RANDOM_SEED = 1_511_06434  # the same random network always
CHUNK = 250  # images that are looked at together
ALIASES = {"mnist": "digits"}  # what the zoo calls the classifier of a set


@dataclass(frozen=True)
class Seen:
    """What a network saw: features (N, F) and probabilities (N, K), None for a network that knows no classes."""

    features_NF: Tensor
    probability_NK: Tensor | None


class Scorer:
    """A network in evaluation mode that gives the features under which images are compared.

    Attributes:
        card: what the classifier is, None for a random network.
        fingerprint: of its file.
        protocol: in words, what stands beside every score.
        name: of the Fréchet distance in its features: "fcd", or "random_fd", which is no measure of quality.
        doubt: whether it is a stranger to the discriminator, where that cannot be known; else empty.
    """

    def __init__(
        self, network: nn.Module, last: nn.Module, metadata: ClassifierMetadata | None, fingerprint: str
    ) -> None:
        """Features are what the layer `last` takes."""
        self.metadata, self.fingerprint = metadata, fingerprint
        self._network, self._last = network.eval().requires_grad_(False), last
        self.name = "random_fd" if metadata is None else "fcd"
        self.doubt = ""

    @classmethod
    def load(cls, path: Path) -> Scorer:
        """The classifier of a run's folder or of a file.

        Raises:
            UserError: no such classifier, or a damaged one.
        """
        file = path / "model.safetensors" if path.is_dir() else path
        classifier, metadata = model_file.load(file)
        linears = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise UserError(f"The classifier in {path} has no linear layer, before which features could be taken.")
        return cls(classifier, linears[-1], metadata, model_file.fingerprint(file))

    @classmethod
    def random(cls, shape: tuple[int, int, int]) -> Scorer:
        """A network with random weights for images (C, H, W): the control, and who scores where nobody knows."""
        with torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            trunk = make_backbone("dcgan", shape[0], shape[1:], norm="none")
            for module in trunk.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, a=0.2)
        pooled = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity())
        return cls(pooled, pooled[-1], None, "")

    @classmethod
    def choose(
        cls, config: Config, shape: tuple[int, int, int], extra: Mapping[str, Any] = MappingProxyType({})
    ) -> Scorer:
        """The classifier that a config names, else the one that ships for its data, else a random network.

        Args:
            shape: (C, H, W) of the images.
            extra: what the run's config.json remembers: there stands where its eye comes from.

        Raises:
            UserError: the classifier is the eye from which the discriminator starts, or that eye began from it.
        """
        name = config.classifier or ALIASES.get(config.data, config.data)
        if not config.classifier and name not in files():
            return cls.random(shape)
        path = find_file(name)
        scorer = cls.load(path)
        began = provenance.begun_with(extra, config.pretrained_backbone)
        if began is not None:
            judge = provenance.trace(path)
            if judge.own & began.all:
                raise UserError(
                    f"--classifier {path} is the very eye that the discriminator starts from, or that eye's ancestor, "
                    f"so its score would flatter: give another one, or leave --pretrained-backbone out."
                )
            scorer.doubt = doubt(judge, began)
        return scorer

    @functools.cached_property
    def protocol(self) -> str:
        """What sees, and in which layer."""
        if self.metadata is None:
            return "features: a random network, its last map averaged, which tells difference but not quality"
        figures = (
            ", ".join(f"{name} {value:.4g}" for name, value in self.metadata.figures.items()) or "accuracy not known"
        )
        size = "x".join(map(str, self.metadata.image_size))
        return (
            f"features: classifier {self.metadata.backbone} {self.fingerprint} on {self.metadata.data} ({figures}), what its "
            f"last layer takes ({self._last.in_features} numbers), images at {size}"
        )

    def fit(self, images_NCHW: Tensor) -> Tensor:
        """Pixels uint8 as the network expects them: float32, in its colours and size, normalised."""
        return images_NCHW.float() / 255 * 2 - 1 if self.metadata is None else fitted(images_NCHW, self.metadata)

    @torch.no_grad()
    def look(self, images_NCHW: Tensor, batch_size: int = CHUNK) -> Seen:
        """Features (N, F) float64 and probabilities of images uint8 on the CPU."""
        features: list[Tensor] = []
        handle = self._last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].double()))
        try:
            found = [self._network(self.fit(chunk)) for chunk in images_NCHW.split(batch_size)]
        finally:
            handle.remove()
        probability_NK = None if self.metadata is None else torch.cat(found).double().softmax(1)
        return Seen(torch.cat(features), probability_NK)

    def compare(self, real: Seen, fake: Seen) -> dict[str, float]:
        """Every score of painted images against real ones."""
        lying = overlap(real.features_NF, fake.features_NF)
        scores = {
            self.name: frechet_distance(real.features_NF, fake.features_NF),
            "kernel_distance": kernel_distance(real.features_NF, fake.features_NF),
            "density": lying.density,
            "coverage": lying.coverage,
            "precision": lying.precision,
            "recall": lying.recall,
        }
        return scores | class_scores(fake)


def doubt(judge: Provenance, began: Provenance) -> str:
    """What to say where a classifier may be no stranger to the eye that a discriminator began from; else nothing."""
    if began.unknown:
        return (
            f"The discriminator's eye comes from {' and '.join(began.unknown)}, which cannot be looked at any more: if "
            f"{judge.source} is that, or comes from it, its score flatters."
        )
    if judge.ancestors & began.all:
        return (
            f"{judge.source} and the discriminator's eye come from the same weights: its score may flatter, and a "
            f"classifier that began afresh would tell."
        )
    return ""


def fitted(images_NCHW: Tensor, metadata: ClassifierMetadata) -> Tensor:
    """Pixels uint8 as a classifier expects them: float32, in its colours and size, normalised."""
    x = images_NCHW.float() / 255
    if x.shape[1] != metadata.channels:
        luma = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        x = (x * luma).sum(1, keepdim=True) if x.shape[1] == 3 else x[:, -1:].expand(-1, metadata.channels, -1, -1)
    if tuple(x.shape[2:]) != tuple(metadata.image_size):
        x = F.interpolate(x, metadata.image_size, mode="bilinear", antialias=True, align_corners=False)
    return metadata.normalize(x.clamp(0, 1))


def class_scores(fake: Seen, confidence: float = 0.9) -> dict[str, float]:
    """How painted images fall into classes: share that is sure of its class, and the rarest and commonest class."""
    if fake.probability_NK is None:
        return {}
    best = fake.probability_NK.max(1)
    share_K = torch.bincount(best.indices, minlength=fake.probability_NK.shape[1]).double() / len(best.indices)
    return {
        "confident": float((best.values >= confidence).double().mean()),
        "rarest_class": float(share_K.min()),
        "commonest_class": float(share_K.max()),
    }


def accuracy(fake: Seen, label_N: Tensor) -> float:
    """Share of painted images that the classifier takes for the class that was asked for."""
    assert fake.probability_NK is not None, "only a classifier knows classes"
    return float((fake.probability_NK.argmax(1) == label_N).double().mean())
