"""What learns to segment: the data of a run, the network with its optimiser, one update, and scores.

Shapes: N images, B batch, b a part of it, C channels, H, W pixels, h, w pixels of a training window, K classes.
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
from zerokara.core.data.mask_files import MaskSplit
from zerokara.core.data.moments import channel_moments
from zerokara.core.data.types import check_enough
from zerokara.core.distributed import World
from zerokara.core.programs import command
from zerokara.core.progress import loading
from zerokara.vision.segmentation.config import Config, sides
from zerokara.vision.segmentation.losses import median_frequency, pixel_loss
from zerokara.vision.segmentation.model_file import SegmenterMetadata
from zerokara.vision.segmentation.networks import Segmenter
from zerokara.vision.segmentation.scoring import PixelScores, score
from zerokara.vision.training.supervised import SupervisedTraining

# What torchvision's weights were trained with.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Data:
    """What a run learns from and is chosen on; the test set is not among it."""

    train: MaskSet
    validation: MaskSet
    mean_C: Tensor  # of the training images scaled to [0, 1]
    std_C: Tensor

    @classmethod
    def load(cls, config: Config) -> Data:
        """Read training and validation images.

        Raises:
            UserError: data that are not there or broken, or fewer images than were asked for.
        """
        train = load_split(config, "train")
        check_enough(config.train_images, len(train))
        if config.train_images:
            train = train.take(torch.arange(config.train_images) * len(train) // config.train_images)
        validation = load_split(config, "val", train.classes)
        if validation.shape != train.shape:
            raise UserError(
                f"Training images of {config.data} have {_size(train)} pixels and validation images "
                f"{_size(validation)}: bring all to one size with --image-size, as in "
                f"--image-size {train.shape[1]} {train.shape[2]}."
            )
        return cls(train, validation, *channel_moments(train.images))


def load_split(config: Config, split: MaskSplit, classes: Sequence[str] = ()) -> MaskSet:
    """Training, validation or test images; the latter two with the classes of the first."""
    with loading(config.quiet) as progress:
        return load_masks(
            config.data,
            split,
            masks=config.masks,
            data_dir=Path(config.data_dir) if config.data_dir else None,
            image_size=sides(config.image_size, "--image-size"),
            grayscale=config.grayscale,
            classes=classes or config.classes,
            unlabelled=config.unlabelled,
            progress=progress,
        )


class Training(SupervisedTraining[Segmenter]):
    """Everything that a checkpoint holds, and one update over it."""

    config: Config
    data: Data

    def __init__(self, config: Config, images: Data, compute: Compute, world: World) -> None:
        self.metadata = make_metadata(config, images)
        super().__init__(config, images, compute, world, self.metadata.build)
        self.augment = config.augment()
        self.images = images.train.images.to(compute.torch_device)
        self.masks = images.train.masks.to(compute.torch_device)
        weight_K = median_frequency(images.train.masks, len(self.metadata.classes), config.balance)
        self.weight_K = weight_K.to(compute.torch_device)
        self._loss = compute.function(self._forward)

    @property
    def is_validation_epoch(self) -> bool:
        """Whether the epoch that has just ended is followed by a validation."""
        return self.epoch % self.config.validate_every_epochs == 0 or self.updates >= self.total_updates

    def format_metric(self, figure: float) -> str:
        """The mean IoU of a validation."""
        return f"mean IoU {figure:.1%}"

    def losses(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and share of right pixels (scalars) of training images."""
        return self._loss(*self.batch(index_b))

    def batch(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Training images (b, C, h, w), augmented and normalised, and their masks (b, h, w) int64."""
        pixels = self.images[index_b].float() * (1 / 255)
        x, mask_bhw = self.augment(pixels, self.masks[index_b], self.generator)
        return self.compute.layout(self.metadata.normalize(x)), mask_bhw

    def _forward(self, x_bChw: Tensor, mask_bhw: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and share of labelled pixels that are right (scalars): the part of an update that is compiled."""
        with self.compute.autocast():
            logits_bKhw = self.network(x_bChw)
        logits_bKhw = logits_bKhw.float()
        labelled_bhw = mask_bhw < len(self.metadata.classes)
        right = ((logits_bKhw.detach().argmax(1) == mask_bhw) & labelled_bhw).sum() / labelled_bhw.sum().clamp(min=1)
        return pixel_loss(logits_bKhw, mask_bhw, self.weight_K), right

    def score(self, images: MaskSet, keep: Sequence[int] = ()) -> PixelScores:
        """How well the network that counts does on images that it does not learn from."""
        config = self.config
        return score(
            self.evaluation_network,
            self.metadata,
            self.compute,
            images,
            views=config.tta_views,
            batch_size=config.eval_batch_size,
            keep=keep,
        )


def make_metadata(config: Config, images: Data) -> SegmenterMetadata:
    """What describes the network that a config asks for, on these images."""
    channels, height, width = images.train.shape
    of_the_data = {"mean": tuple(images.mean_C.tolist()), "std": tuple(images.std_C.tolist())}
    if config.weights and channels != len(IMAGENET["mean"]):
        raise UserError("--weights are for images of three colours: leave --grayscale out, or start without them.")
    # Presets and defaults say how wide and with which stem; a backbone without that option is what it is.
    has = option_names(config.backbone)
    values = {"width": config.width_multiplier, "stem": config.stem}
    asked: dict[str, Any] = {name: value for name, value in values.items() if name in has}
    return SegmenterMetadata(
        network=config.network,
        backbone=config.backbone,
        classes=images.train.classes,
        channels=channels,
        image_size=(height, width),
        options=asked,
        hidden_units=config.hidden_units,
        dropout=config.dropout,
        decoder_channels=config.decoder_channels,
        data=images.train.source,
        command=command(),
        **(IMAGENET if config.weights else of_the_data),
    )


def _size(images: MaskSet) -> str:
    return f"{images.shape[2]}x{images.shape[1]}"
