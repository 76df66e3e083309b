"""Training state of an image classifier: data, network, loss and evaluation.

Shapes: N images, B batch, b a part of it, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core import data
from zerokara.core.backbones.airbench import Whitening
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.data.moments import channel_moments
from zerokara.core.data.reading_rules import rules_of
from zerokara.core.data.types import check_enough
from zerokara.core.distributed import World
from zerokara.core.models.classifier import Classifier, ClassifierMetadata
from zerokara.core.models.normalization import expected_moments
from zerokara.core.optim import GroupSettings
from zerokara.core.programs import command
from zerokara.core.progress import loading
from zerokara.core.run import Run
from zerokara.core.sharding import evaluate_shards
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.scoring import Scores, score
from zerokara.vision.training.supervised import SupervisedTraining

# All runs hold out the same validation images, so that no member of an ensemble has been trained on them.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Data:
    """Training and validation images of a run, without the test set."""

    train: ImageSet
    validation: ImageSet
    mean_C: Tensor  # of the training images, scaled to [0, 1]
    std_C: Tensor  # likewise

    @classmethod
    def load(cls, config: Config) -> Data:
        """Read the training set and hold out the validation images.

        Raises:
            UserError: the data are missing or damaged, or there are too few images to hold any out.
        """
        all_images = load_split(config, "train")
        number = config.validation_images or len(all_images) // 12
        train, validation = data.hold_out(all_images, number, SPLIT_SEED)
        if config.train_images:
            check_enough(config.train_images, len(train))
            if config.train_images < len(train):
                _, train = data.hold_out(train, config.train_images, config.seed)
        return cls(train, validation, *channel_moments(train.images))


def load_split(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Read the training set (including the validation images) or the test set."""
    with loading(config.quiet) as progress, rules_of(config):
        return data.load(
            config.data,
            split,
            data_dir=Path(config.data_dir) if config.data_dir else None,
            image_size=config.image_size,
            grayscale=config.grayscale,
            background=config.background,
            progress=progress,
        )


class Training(SupervisedTraining[Classifier]):
    """Training state of a classifier and its update."""

    config: Config
    data: Data
    metadata: ClassifierMetadata

    def __init__(self, config: Config, images: Data, compute: Compute, world: World) -> None:
        self.metadata = make_metadata(config, images)
        super().__init__(config, images, compute, world, lambda: build(self.metadata, images))
        self._whitening = [layer for layer in self.network.modules() if isinstance(layer, Whitening)]
        self.augment = config.augment()
        self.images = images.train.images.to(compute.torch_device)
        self.labels = images.train.labels.to(compute.torch_device)
        classes, smoothing = len(self.metadata.classes), config.label_smoothing
        smoothed_KK = torch.eye(classes) * (1 - smoothing) + smoothing / classes
        self._targets_KK = smoothed_KK.to(compute.torch_device)  # row k: smoothed target of class k
        self._loss = compute.function(self._forward)

    def output_weights(self) -> list[Tensor]:
        """Return the weights of the layers that compute logits."""
        return self.network.output_weights()

    def group_settings(self) -> GroupSettings:
        """Return the learning rates of output layers and biases and the momentum of SGD, beside Muon."""
        config = self.config
        return {
            "output_learning_rate": config.output_learning_rate,
            "bias_learning_rate": config.bias_learning_rate,
            "sgd_momentum": config.sgd_momentum,
        }

    def update(self, index_B: Tensor) -> None:
        """Do one gradient step on the images `index_B`, with or without the bias of the whitening layer."""
        epochs = self.config.whitening_bias_epochs
        for layer in self._whitening:
            layer.trains_bias = not epochs or self.updates < epochs * self.updates_per_epoch
        super().update(index_B)

    def frozen_parameters(self) -> Sequence[Tensor]:
        """Return the bias of the whitening layer in the epochs that do not train it."""
        return [layer.bias for layer in self._whitening if not layer.trains_bias]

    @property
    def should_stop_early(self) -> bool:
        """True if the validation error has not decreased for `patience_epochs` epochs."""
        patience, best = self.config.patience_epochs, self.best
        return patience > 0 and best is not None and self.epoch - int(best["since"]) >= patience

    def format_metric(self, metric: float) -> str:
        """Format a validation error."""
        return f"error {metric:.2%}"

    def losses(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy (scalars) of training images."""
        x, target_bK = self.batch(index_b)
        return self.parallel.forward(self._loss, x, target_bK, self.labels[index_b])

    def batch(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented and normalized training images (b, C, H, W) and their smoothed and mixed targets (b, K)."""
        pixels = self.images[index_b].float() * (1 / 255)
        x = self.augment(pixels, self.generator, index_B=index_b, epoch=self.epoch)
        x, target_bK = self.augment.mix(x, self._targets_KK[self.labels[index_b]], self.generator)
        return self.compute.layout(self.metadata.normalize(x)), target_bK

    def _forward(self, x_bCHW: Tensor, target_bK: Tensor, label_b: Tensor) -> tuple[Tensor, Tensor]:
        """Compute loss and accuracy (scalars). This part of the update is compiled."""
        with self.compute.autocast():
            logits_bK, weighted_auxiliaries = self.network.logits_and_auxiliaries(x_bCHW)
        loss = F.cross_entropy(logits_bK.float(), target_bK)
        for weight, auxiliary_bK in weighted_auxiliaries:
            loss = loss + weight * F.cross_entropy(auxiliary_bK.float(), target_bK)
        return loss, (logits_bK.detach().argmax(1) == label_b).float().mean()

    def score(self, images: ImageSet, *, views: int = 1) -> Scores:
        """Evaluate `evaluation_network` on images, averaging probabilities over `views` views of each."""
        batch_size = self.config.eval_batch_size
        return score(self.evaluation_network, self.metadata, self.compute, images, views=views, batch_size=batch_size)

    def score_in_processes(self, run: Run, images: ImageSet, *, views: int = 1) -> Scores:
        """Evaluate the main process's `evaluation_network` like `score`, each process on its shard of the images.

        Raises:
            Stopped: a signal interrupted the evaluation in one of the processes.
        """

        def evaluate(shard: slice) -> Tensor:
            return self.score(images.take(shard), views=views).probability_NK

        self.world.broadcast(self.evaluation_network)
        return Scores(torch.cat(evaluate_shards(self.world, run, len(images), evaluate)), images.labels)


def build(metadata: ClassifierMetadata, images: Data) -> Classifier:
    """Create the network, with the weights that depend on the training images."""
    classifier = metadata.build()
    classifier.backbone.initialize_from_images(images.train.images, metadata.normalize_uint8)
    return classifier


def make_metadata(config: Config, images: Data) -> ClassifierMetadata:
    """Return the metadata of the network that the config describes, for these images."""
    channels, height, width = images.train.shape
    mean, std = tuple(images.mean_C.tolist()), tuple(images.std_C.tolist())
    if config.published_normalization:
        mean, std = expected_moments(config)
    defaults = {"width": 1.0, "stem": "paper", "output_dropout": 0.0}  # default values are not stored
    options = {"width": config.width_multiplier, "stem": config.stem, "output_dropout": config.output_dropout}
    return ClassifierMetadata(
        backbone=config.backbone,
        head=config.head,
        classes=images.train.classes,
        channels=channels,
        image_size=(height, width),
        mean=mean,
        std=std,
        options={name: value for name, value in options.items() if value != defaults[name]},
        dropout=config.dropout,
        background=config.background,
        data=images.train.source,
        command=command(),
    )
