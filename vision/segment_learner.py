"""What learns to segment: the data of a run, the network with its optimiser, one update, and scores.

Shapes: N images, B batch, b a part of it, C channels, H, W pixels, h, w pixels of a training window, K classes.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core import checkpoint, schedules
from core.backbones import options_of
from core.compute import Compute
from core.config import UserError, program
from core.data import MaskSet, load_masks
from core.data.mask_files import MaskSplit
from core.distributed import World
from core.ema import Ema
from core.optim import make_optimizer
from core.stopwatch import Stopwatch
from core.vitals import is_finite, read_means
from vision.learner import Epochs
from vision.segment_config import Config, sides
from vision.segment_file import SegmenterCard
from vision.segment_losses import median_frequency, pixel_loss
from vision.segment_networks import Segmenter
from vision.segment_scoring import PixelScores, score

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
        if config.train_images > len(train):
            raise UserError(
                f"--train-images {config.train_images} is more than the {len(train):,} that there are: give fewer."
            )
        if config.train_images:
            train = train.take(torch.arange(config.train_images) * len(train) // config.train_images)
        validation = load_split(config, "val", train.classes)
        if validation.shape != train.shape:
            raise UserError(
                f"Training images of {config.data} have {_size(train)} pixels and validation images "
                f"{_size(validation)}: bring all to one size with --image-size, as in "
                f"--image-size {train.shape[1]} {train.shape[2]}."
            )
        pixels = train.images.transpose(0, 1).flatten(1)  # (C, everything)
        counts = torch.stack([torch.bincount(row, minlength=256) for row in pixels]).double()
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean_C = (counts @ levels) / counts.sum(1)
        variance_C = (counts @ levels.square()) / counts.sum(1) - mean_C.square()
        return cls(train, validation, mean_C.float(), variance_C.clamp(min=0).sqrt().clamp(min=1e-3).float())


def load_split(config: Config, split: MaskSplit, classes: Sequence[str] = ()) -> MaskSet:
    """Training, validation or test images; the latter two with the classes of the first."""
    return load_masks(
        config.data,
        split,
        masks=config.masks,
        data_dir=Path(config.data_dir) if config.data_dir else None,
        image_size=sides(config.image_size, "--image-size"),
        grey=config.grey,
        classes=classes or config.classes,
        unlabelled=config.unlabelled,
    )


class Training(Epochs):
    """Everything that a checkpoint holds, and one update over it."""

    config: Config
    data: Data

    def __init__(self, config: Config, images: Data, compute: Compute, world: World) -> None:
        self.config, self.data, self.compute, self.world = config, images, compute, world
        self.card = make_card(config, images)
        torch.manual_seed(config.seed)
        self.network = compute.module(self.card.build())
        world.broadcast(self.network)
        self.optimizer = make_optimizer(
            config.optimizer,
            self.network,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        half_life = config.ema_half_life_updates
        self.ema = Ema(self.network, half_life_steps=half_life) if half_life else None
        self.generator = torch.Generator(compute.torch_device).manual_seed(config.seed * 1_000_003 + world.rank)
        self.augment = config.augment()
        self.images = images.train.images.to(compute.torch_device)
        self.masks = images.train.masks.to(compute.torch_device)
        weight_K = median_frequency(images.train.masks, len(self.card.classes), config.balance)
        self.weight_K = weight_K.to(compute.torch_device)
        self._loss = compute.function(self._forward)

        self.updates = 0
        self.best: dict[str, Any] | None = None  # epoch, mean_iou and weights with the largest validation mean IoU
        self.last_iou: float | None = None  # of the last validation
        self.clock = Stopwatch()
        # Sums since `read_metrics`: loss, share of right pixels, gradient norm, updates. They stay on the device.
        self._sums = torch.zeros(4, device=compute.torch_device)

    @property
    def learning_rate(self) -> float:
        """The step size of the next update."""
        config = self.config
        warmup = round(config.warmup_epochs * self.updates_per_epoch)
        if config.schedule == "constant":
            return config.learning_rate * schedules.linear(self.updates + 1, 0, 1, 0, warmup)
        return config.learning_rate * schedules.warmup_cosine(self.updates + 1, warmup, self.total_updates)

    def update(self, index_B: Tensor) -> None:
        """One gradient step on the images `index_B`, of which this process takes its share."""
        config = self.config
        parts = index_B[self.world.rank :: self.world.size].to(self.compute.torch_device).chunk(config.accumulate)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("lr_factor", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.compute.torch_device)
        for index_b in parts:
            loss, right = self._loss(*self.batch(index_b))
            share = len(index_b) / sum(map(len, parts))  # the last part may be smaller
            (loss * share).backward()
            sums += torch.stack([loss.detach(), right]) * share
        self.world.mean_gradients(self.network.parameters())
        limit = float("inf") if config.max_grad_norm is None else config.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network)
        self._sums += torch.cat([sums, norm.detach()[None], torch.ones_like(norm)[None]])
        self.updates += 1

    def batch(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Training images (b, C, h, w), augmented and normalised, and their masks (b, h, w) int64."""
        pixels = self.images[index_b].float() * (1 / 255)
        x, mask_bhw = self.augment(pixels, self.masks[index_b], self.generator)
        return self.compute.layout(self.card.normalise(x)), mask_bhw

    def _forward(self, x_bChw: Tensor, mask_bhw: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and share of labelled pixels that are right (scalars): the part of an update that is compiled."""
        with self.compute.autocast():
            logits_bKhw = self.network(x_bChw)
        logits_bKhw = logits_bKhw.float()
        labelled_bhw = mask_bhw < len(self.card.classes)
        right = ((logits_bKhw.detach().argmax(1) == mask_bhw) & labelled_bhw).sum() / labelled_bhw.sum().clamp(min=1)
        return pixel_loss(logits_bKhw, mask_bhw, self.weight_K), right

    @property
    def evaluated(self) -> Segmenter:
        """The network that counts: the averaged one where there is an average."""
        return self.network if self.ema is None else self.ema.module

    def score(self, images: MaskSet, keep: Sequence[int] = ()) -> PixelScores:
        """How well the network that counts does on images that it does not learn from."""
        config = self.config
        return score(
            self.evaluated,
            self.card,
            self.compute,
            images,
            views=config.tta_views,
            batch_size=config.eval_batch_size,
            keep=keep,
        )

    def read_metrics(self) -> dict[str, Tensor]:
        """Means since the last call, as tensors on the device."""
        return read_means(self._sums, ("train/loss", "train/accuracy", "train/grad_norm"))

    def is_finite(self) -> bool:
        """Whether every weight is a number. Waits for the device."""
        return is_finite(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": checkpoint.rng_state(),
            "sums": self._sums,
            "updates": self.updates,
            "best": self.best,
            "last_iou": self.last_iou,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.network.load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        checkpoint.set_rng_state(state["rng"])
        self._sums.copy_(state["sums"])
        self.updates, self.best, self.last_iou = state["updates"], state["best"], state["last_iou"]
        self.clock.hours = state["hours"]


def make_card(config: Config, images: Data) -> SegmenterCard:
    """What describes the network that a config asks for, on these images."""
    channels, height, width = images.train.shape
    of_the_data = {"mean": tuple(images.mean_C.tolist()), "std": tuple(images.std_C.tolist())}
    if config.weights and channels != len(IMAGENET["mean"]):
        raise UserError("--weights are for images of three colours: leave --grey out, or start without them.")
    # Presets and defaults say how wide and with which stem; a backbone without that option is what it is.
    has = options_of(config.backbone)
    asked: dict[str, Any] = {name: getattr(config, name) for name in ("width", "stem") if name in has}
    return SegmenterCard(
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
        command=f"{program()} {shlex.join(sys.argv[1:])}".strip(),
        **(IMAGENET if config.weights else of_the_data),
    )


def _size(images: MaskSet) -> str:
    return f"{images.shape[2]}x{images.shape[1]}"
