"""Training state of a segmentation network: data, network, loss and evaluation.

Shapes: N images, B batch, b a part of it, C channels, H, W pixels, h, w pixels of a training crop, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerokara.core.backbones.registry import option_names
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data import MaskSet, load_masks
from zerokara.core.data.moments import channel_moments
from zerokara.core.data.reading_rules import rules_of
from zerokara.core.data.splits import AnySplit
from zerokara.core.data.types import check_enough
from zerokara.core.distributed import World
from zerokara.core.models.normalization import expected_moments
from zerokara.core.programs import command
from zerokara.core.progress import loading
from zerokara.core.run import Run
from zerokara.core.sharding import evaluate_shards
from zerokara.vision.segmentation.config import Config, height_width, width_of
from zerokara.vision.segmentation.losses import median_frequency_weights, pixel_loss, total_weight
from zerokara.vision.segmentation.networks import Segmenter, SegmenterMetadata
from zerokara.vision.segmentation.scoring import PixelCounts, PixelScores, count, pixel_scores
from zerokara.vision.training.supervised import SupervisedTraining


@dataclass(frozen=True)
class Data:
    """Training and validation images of a run, without the test set."""

    train: MaskSet
    validation: MaskSet
    mean_C: Tensor  # of the training images, scaled to [0, 1]
    std_C: Tensor  # likewise

    @classmethod
    def load(cls, config: Config) -> Data:
        """Read training and validation images.

        Raises:
            UserError: the data are missing or damaged, there are fewer images than --train-images, or training and
                validation images have different sizes.
        """
        train = load_split(config, "train")
        check_enough(config.train_images, len(train))
        if config.train_images:
            train = train.take(torch.arange(config.train_images) * len(train) // config.train_images)
        validation = load_split(config, "val", train.classes)
        if validation.shape != train.shape:
            raise UserError(
                f"Training images of {config.data} have {_format_size(train)} pixels and validation images "
                f"{_format_size(validation)}: resize all of them with --image-size, as in "
                f"--image-size {train.shape[1]} {train.shape[2]}."
            )
        return cls(train, validation, *channel_moments(train.images))


def load_split(config: Config, split: AnySplit, classes: Sequence[str] = ()) -> MaskSet:
    """Read the training, validation or test images.

    Args:
        config: names the data set.
        split: train, val or test.
        classes: names of the classes of the training images, for val and test; empty: those of the config.
    """
    with loading(config.quiet) as progress, rules_of(config):
        return load_masks(
            config.data,
            split,
            masks=config.masks,
            data_dir=Path(config.data_dir) if config.data_dir else None,
            image_size=height_width(config.image_size, "--image-size"),
            grayscale=config.grayscale,
            classes=classes or config.classes,
            unlabeled=config.unlabeled,
            mask_values=config.mask_values,
            background=config.background,
            progress=progress,
        )


class Training(SupervisedTraining[Segmenter]):
    """Training state of a segmentation network and its update."""

    config: Config
    data: Data
    metadata: SegmenterMetadata

    def __init__(self, config: Config, images: Data, compute: Compute, world: World) -> None:
        self.metadata = make_metadata(config, images)
        super().__init__(config, images, compute, world, self.metadata.build)
        self.augment = config.augment()
        self.images = images.train.images.to(compute.torch_device)
        self.masks = images.train.masks.to(compute.torch_device)
        weight_K = median_frequency_weights(images.train.masks, len(self.metadata.classes), config.balance)
        self.weight_K = weight_K.to(compute.torch_device)
        self._loss = compute.function(self._forward)

    @property
    def is_validation_epoch(self) -> bool:
        """True if a validation follows the epoch that has just ended."""
        return self.epoch % self.config.validate_every_epochs == 0 or self.updates >= self.total_updates

    def format_metric(self, metric: float) -> str:
        """Format a validation mean IoU."""
        return f"mean IoU {metric:.1%}"

    def losses(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy (scalars) over the labeled pixels of training images."""
        x, mask_bhw = self.batch(index_b)
        loss, accuracy = self.parallel.forward(self._loss, x, mask_bhw)
        if self.world.size == 1 or len(self.images) < self.config.batch_size:
            return loss, accuracy
        # Both are means over the labeled pixels of this process: weighted, their means over the processes are those
        # over the labeled pixels of all.
        labeled = (mask_bhw < len(self.metadata.classes)).sum()
        weights = torch.stack([total_weight(mask_bhw, self.weight_K), labeled])
        weights = weights / self.world.mean(weights).clamp(min=torch.finfo(weights.dtype).tiny)
        return loss * weights[0], accuracy * weights[1]

    def batch(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented and normalized training images (b, C, h, w) and their masks (b, h, w) int64."""
        pixels = self.images[index_b].float() * (1 / 255)
        x, mask_bhw = self.augment(pixels, self.masks[index_b], self.generator)
        return self.compute.layout(self.metadata.normalize(x)), mask_bhw

    def _forward(self, x_bChw: Tensor, mask_bhw: Tensor) -> tuple[Tensor, Tensor]:
        """Compute loss and accuracy (scalars) over labeled pixels. This part of the update is compiled."""
        with self.compute.autocast():
            logits_bKhw = self.network(x_bChw)
        logits_bKhw = logits_bKhw.float()
        labeled_bhw = mask_bhw < len(self.metadata.classes)
        correct_bhw = (logits_bKhw.detach().argmax(1) == mask_bhw) & labeled_bhw
        accuracy = correct_bhw.sum() / labeled_bhw.sum().clamp(min=1)
        return pixel_loss(logits_bKhw, mask_bhw, self.weight_K), accuracy

    def score_in_processes(self, run: Run, images: MaskSet, prediction_indices: Sequence[int] = ()) -> PixelScores:
        """Evaluate the main process's `evaluation_network`, each process on its shard of the images.

        Args:
            run: its signals interrupt the evaluation.
            images: data set.
            prediction_indices: indices of the images whose predictions are returned too, in increasing order.

        Raises:
            Stopped: a signal interrupted the evaluation in one of the processes.
        """
        config = self.config

        def evaluate(shard: slice) -> PixelCounts:
            return count(
                self.evaluation_network,
                self.metadata,
                self.compute,
                images.take(shard),
                views=config.tta_views,
                batch_size=config.eval_batch_size,
                prediction_indices=[i - shard.start for i in prediction_indices if shard.start <= i < shard.stop],
            )

        self.world.broadcast(self.evaluation_network)
        return pixel_scores(evaluate_shards(self.world, run, len(images), evaluate), images)


def make_metadata(config: Config, images: Data) -> SegmenterMetadata:
    """Return the metadata of the network that the config describes, for these images.

    Raises:
        UserError: --weights is combined with grayscale images.
    """
    channels, height, width = images.train.shape
    if config.weights and channels != 3:
        raise UserError(
            "--weights requires images with three color channels: leave out --grayscale, or leave out --weights."
        )
    mean, std = tuple(images.mean_C.tolist()), tuple(images.std_C.tolist())
    # In runs of older releases it is None, and only --weights had a normalization of their own.
    if config.published_normalization or (config.published_normalization is None and config.weights):
        mean, std = expected_moments(config)
    # The defaults of the config set a width and a stem, but not every backbone has these options.
    available = option_names(config.backbone)
    values = {"width": width_of(config), "stem": config.stem}
    options: dict[str, Any] = {name: value for name, value in values.items() if name in available}
    return SegmenterMetadata(
        network=config.network,
        backbone=config.backbone,
        classes=images.train.classes,
        channels=channels,
        image_size=(height, width),
        mean=mean,
        std=std,
        options=options,
        hidden_units=config.hidden_units,
        dropout=config.dropout,
        decoder_channels=config.decoder_channels,
        background=config.background,
        data=images.train.source,
        command=command(),
    )


def _format_size(images: MaskSet) -> str:
    return f"{images.shape[2]}x{images.shape[1]}"
