"""Feature extractor: a classifier, or a network with random weights, in whose features images are compared.

    extractor = FeatureExtractor.load(Path("runs/classify-mnist"))
    real = extractor.extract(held_out.images)
    scores = extractor.compare(real, extractor.extract(generated))

Shapes: N images, C channels, H, W pixels, F features, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.core.models import model_file
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.run import Run
from zerokara.core.run_inputs import check_origin, resumed_file, save_input
from zerokara.core.zoo import provenance
from zerokara.core.zoo.registry import files as zoo_files
from zerokara.core.zoo.registry import find_file
from zerokara.generative.gan.config import Config
from zerokara.generative.scoring.distances import Features, comparisons, frechet_distance

RANDOM_SEED = 1_511_06434  # fixed, so that all runs use the same random network
CHUNK = 100  # images per forward pass; larger feature maps would not fit in a CPU's cache
CLASSIFIER_FILE = "classifier.safetensors"  # classifier of --classifier in the run folder of a GAN
BIAS = "classifier_bias"  # key of its warning in `extra` of config.json
ALIASES = {"mnist": "digits", "imagenette64": "photographs"}  # data set -> the zoo's classifier of another name


class FeatureSet(Features):
    """Features (N, F) of images, and their class probabilities (N, K); None for a network without classes."""

    def __init__(self, features_NF: Tensor, probability_NK: Tensor | None) -> None:
        """Combine features and probabilities of the same images."""
        super().__init__(features_NF)
        self.probability_NK = probability_NK

    @classmethod
    def concatenate(cls, parts: Sequence[FeatureSet]) -> FeatureSet:
        """Return the features of the images of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        probabilities = [part.probability_NK for part in parts if part.probability_NK is not None]
        return cls(torch.cat([part.features_NF for part in parts]), torch.cat(probabilities) if probabilities else None)


class FeatureExtractor:
    """A network in evaluation mode whose features are used to compare images.

    Attributes:
        metadata: of the classifier; None for a random network.
        fingerprint: hash of the classifier's file.
        protocol: description of the features, printed with every metric.
        name: of the Fréchet distance in its features: "fcd", or "random_fd", which does not measure quality.
        bias_warning: warning that its scores may be biased, because classifier and discriminator may be related. Empty
            if they are not.
    """

    def __init__(
        self, network: nn.Module, last: nn.Module, metadata: ClassifierMetadata | None, fingerprint: str
    ) -> None:
        """Create an extractor of the inputs of the layer `last`."""
        self.metadata, self.fingerprint = metadata, fingerprint
        # In this memory layout forward passes on a CPU, where features are computed, take less time. Changes `network`.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network, self._last = network.eval().requires_grad_(False), last
        self.name = "random_fd" if metadata is None else "fcd"
        self.bias_warning = ""

    @classmethod
    def load(cls, path: Path) -> FeatureExtractor:
        """Load the classifier of a run's folder or of a file.

        Raises:
            UserError: no such classifier, a damaged one, or one without a linear layer.
        """
        file = ClassifierMetadata.find(path)
        classifier, metadata = ClassifierMetadata.load(file)
        linears = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise UserError(f"The classifier in {path} has no linear layer, whose inputs are the features.")
        return cls(classifier, linears[-1], metadata, model_file.fingerprint(file))

    @classmethod
    def random(cls, shape: tuple[int, int, int]) -> FeatureExtractor:
        """Create a network with random weights for images (C, H, W), as a control or where there is no classifier."""
        with torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            backbone = make_backbone("dcgan", shape[0], shape[1:], norm="none")
            for module in backbone.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, a=0.2)
        pooled = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity())
        return cls(pooled, pooled[-1], None, "")

    @classmethod
    def choose(
        cls, config: Config, shape: tuple[int, int, int], extra: Mapping[str, Any] = MappingProxyType({})
    ) -> FeatureExtractor:
        """Choose the classifier that a config names, else the zoo's classifier for its data, else a random network.

        Args:
            shape: (C, H, W) of the images.
            extra: `extra` of the run's config.json, which records the origin of the pretrained backbone.

        Raises:
            UserError: the discriminator's backbone was initialized from this classifier, or the other way round.
        """
        name = config.classifier or ALIASES.get(config.data, config.data)
        if not config.classifier and name not in zoo_files():
            return cls.random(shape)
        path = find_file(name)
        extractor = cls.load(path)
        origin = provenance.initial_provenance(extra, config.pretrained_backbone)
        if origin:
            classifier = provenance.trace(path)
            if classifier[0] in origin:
                raise UserError(
                    f"--classifier {path} has the weights that the discriminator's backbone was initialized from, or "
                    f"those it was trained from, so its score would be biased: choose another classifier, or remove "
                    f"--pretrained-backbone."
                )
            extractor.bias_warning = bias_warning(str(path), classifier, origin)
        return extractor

    @classmethod
    def of_run(cls, config: Config, shape: tuple[int, int, int], run: Run) -> FeatureExtractor:
        """Choose as `choose`, and save the classifier of --classifier in the run folder for a resumed run.

        A resumed run that was started when the zoo had no classifier for its data keeps the random network, since the
        distances of its best checkpoint are in that network's features. All processes must call this.

        Raises:
            UserError: as `choose`; or the classifier is gone, and an older release started the run.
        """
        if BIAS in run.extra and (copy := resumed_file(config, CLASSIFIER_FILE)):
            extractor = cls.load(copy)
            extractor.bias_warning = run.extra[BIAS]
            return extractor
        check_origin(config, config.classifier)
        keeps_random = config.resume and not config.classifier and _has_random_distances(run.folder / "metrics.jsonl")
        if run.world.broadcast_value(keeps_random):
            return cls.random(shape)
        extractor = cls.choose(config, shape, run.extra)
        if config.classifier:
            save_input(run, CLASSIFIER_FILE, ClassifierMetadata.find(find_file(config.classifier)).read_bytes())
            run.save_extra(**{BIAS: extractor.bias_warning})
        return extractor

    @functools.cached_property
    def protocol(self) -> str:
        """Description of the network and the layer."""
        if self.metadata is None:
            return "features: a random network, its last feature map averaged; this shows differences but not quality"
        figures = (
            ", ".join(f"{name} {value:.4g}" for name, value in self.metadata.figures.items()) or "accuracy unknown"
        )
        size = "x".join(map(str, self.metadata.image_size))
        return (
            f"features: classifier {self.metadata.backbone} {self.fingerprint} on {self.metadata.data} ({figures}), "
            f"inputs of its last layer ({self._last.in_features} numbers), images at {size}"
        )

    def preprocess(self, images_NCHW: Tensor) -> Tensor:
        """Convert uint8 pixels to the network's input: float32, with its channels and size, normalized."""
        return images_NCHW.float() / 255 * 2 - 1 if self.metadata is None else preprocess(images_NCHW, self.metadata)

    @torch.no_grad()
    def extract(self, images_NCHW: Tensor, batch_size: int = CHUNK) -> FeatureSet:
        """Extract features (N, F) float64 and probabilities (N, K) of uint8 images on the CPU."""
        features: list[Tensor] = []
        handle = self._last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].double()))
        try:
            outputs = [self._network(self.preprocess(chunk)) for chunk in images_NCHW.split(batch_size)]
        finally:
            handle.remove()
        probability_NK = None if self.metadata is None else torch.cat(outputs).double().softmax(1)
        return FeatureSet(torch.cat(features), probability_NK)

    def compare(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """Compute all metrics of generated images against real ones."""
        return {name: value for compute in self.comparisons(real, fake) for name, value in compute().items()}

    def comparisons(self, real: FeatureSet, fake: FeatureSet) -> list[Callable[[], dict[str, float]]]:
        """Return functions that together compute the metrics of `compare`; several processes can divide them."""
        return [
            lambda: {self.name: frechet_distance(real, fake)},
            *comparisons(real, fake),
            lambda: class_scores(fake),
        ]


def _has_random_distances(metrics: Path) -> bool:
    """Return True if evaluations of a run were made in the features of a random network."""
    return metrics.is_file() and b'"eval/random_fd"' in metrics.read_bytes()


def bias_warning(path: str, classifier: list[str], origin: list[str]) -> str:
    """Return a warning if a classifier and a pretrained backbone may be related, else an empty string.

    Args:
        path: of the classifier.
        classifier: provenance of the classifier.
        origin: provenance of the backbone.
    """
    if unknown := provenance.unknown_ancestors(origin):
        return (
            f"The discriminator's backbone was initialized from {' and '.join(unknown)}, which no "
            f"longer exists here: if {path} is that, or was trained from it, its score is biased."
        )
    if set(classifier) & set(origin):
        return (
            f"{path} and the discriminator's backbone were trained from the same weights, so its score "
            f"may be biased: a classifier that was trained from scratch would tell."
        )
    return ""


def preprocess(images_NCHW: Tensor, metadata: ClassifierMetadata) -> Tensor:
    """Convert uint8 pixels to a classifier's input: float32, with its channels and size, normalized."""
    x = images_NCHW.float() / 255
    if x.shape[1] != metadata.channels:
        luma = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        x = (x * luma).sum(1, keepdim=True) if x.shape[1] == 3 else x[:, -1:].expand(-1, metadata.channels, -1, -1)
    if tuple(x.shape[2:]) != tuple(metadata.image_size):
        x = F.interpolate(x, metadata.image_size, mode="bilinear", antialias=True, align_corners=False)
    return metadata.normalize(x.clamp(0, 1))


def class_scores(fake: FeatureSet, confidence: float = 0.9) -> dict[str, float]:
    """Return the fractions of confidently classified images and of images in the rarest and the most common class."""
    if fake.probability_NK is None:
        return {}
    best = fake.probability_NK.max(1)
    fraction_K = torch.bincount(best.indices, minlength=fake.probability_NK.shape[1]).double() / len(best.indices)
    return {
        "confident": float((best.values >= confidence).double().mean()),
        "rarest_class": float(fraction_K.min()),
        "commonest_class": float(fraction_K.max()),
    }


def label_accuracy(images: FeatureSet, label_N: Tensor) -> float:
    """Return the fraction of images that the classifier assigns to their label, or the one they were generated for."""
    assert images.probability_NK is not None, "a random network has no classes"
    return float((images.probability_NK.argmax(1) == label_N).double().mean())
