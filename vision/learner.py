"""What learns: the data of a run, the network with its optimiser, one update, and scores.

Shapes: N images, B batch, b a part of it, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import checkpoint, data, model_file, schedules
from core.classifier import Classifier
from core.compute import Compute
from core.config import UserError, program
from core.data import ImageSet
from core.distributed import World
from core.ema import Ema
from core.optim import make_optimizer
from core.stopwatch import Stopwatch
from core.vitals import is_finite, read_means
from vision.config import Config
from vision.scoring import Scores, score

SPLIT_SEED = 0  # the same validation images whatever the run's seed, so that ensembles have not learnt them either


@dataclass(frozen=True)
class Data:
    """What a run learns from and is chosen on; the test set is not among it."""

    train: ImageSet
    validation: ImageSet
    mean_C: Tensor  # of the training images scaled to [0, 1]
    std_C: Tensor

    @classmethod
    def load(cls, config: Config) -> Data:
        """Read the training set and hold out validation images.

        Raises:
            UserError: data that are not there or broken, or too few to hold any out.
        """
        everything = load_split(config, "train")
        number = config.validation_images or len(everything) // 12
        train, validation = data.hold_out(everything, number, SPLIT_SEED)
        if config.train_images:
            if config.train_images > len(train):
                raise UserError(
                    f"--train-images {config.train_images} is more than the {len(train):,} that there are: give fewer."
                )
            if config.train_images < len(train):
                _, train = data.hold_out(train, config.train_images, config.seed)
        pixels = train.images.transpose(0, 1).flatten(1)  # (C, everything)
        counts = torch.stack([torch.bincount(row, minlength=256) for row in pixels]).double()
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean_C = (counts @ levels) / counts.sum(1)
        variance_C = (counts @ levels.square()) / counts.sum(1) - mean_C.square()
        return cls(train, validation, mean_C.float(), variance_C.sqrt().clamp(min=1e-3).float())


def load_split(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """The training set (with the validation images) or the test set."""
    return data.load(
        config.data,
        split,
        data_dir=Path(config.data_dir) if config.data_dir else None,
        image_size=config.image_size,
        grey=config.grey,
    )


class Lengths(Protocol):
    """What a config says of epochs."""

    @property
    def epochs(self) -> int:
        """Of the run."""

    @property
    def batch_size(self) -> int:
        """Images of an update."""

    @property
    def seed(self) -> int:
        """Of the run's random numbers."""


class HasTrain(Protocol):
    """What a run learns from."""

    @property
    def train(self) -> Sized:
        """The training images."""


class Epochs:
    """Updates that go through the training images in whole batches, in another order in every epoch."""

    config: Lengths
    data: HasTrain
    updates: int
    """That are over."""

    @property
    def updates_per_epoch(self) -> int:
        """Whole batches; what is left over waits for another shuffle."""
        return max(1, len(self.data.train) // self.config.batch_size)

    @property
    def total_updates(self) -> int:
        """The length of the run."""
        return self.config.epochs * self.updates_per_epoch

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self.updates // self.updates_per_epoch

    def epoch_order(self) -> Tensor:
        """The order (N,) of the training images in this epoch: a function of seed and epoch, so nothing to save."""
        shuffle = torch.Generator().manual_seed(self.config.seed * 7_919 + self.epoch)
        return torch.randperm(len(self.data.train), generator=shuffle)


class Training(Epochs):
    """Everything that a checkpoint holds, and one update over it."""

    config: Config
    data: Data

    def __init__(self, config: Config, images: Data, compute: Compute, world: World) -> None:
        self.config, self.data, self.compute, self.world = config, images, compute, world
        self.card = make_card(config, images)
        torch.manual_seed(config.seed)
        self.classifier = compute.module(self.card.build())
        world.broadcast(self.classifier)
        self.optimizer = make_optimizer(
            config.optimizer,
            self.classifier,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        half_life = config.ema_half_life_updates
        self.ema = Ema(self.classifier, half_life_steps=half_life) if half_life else None
        self.generator = torch.Generator(compute.torch_device).manual_seed(config.seed * 1_000_003 + world.rank)
        self.augment = config.augment()
        self.images = images.train.images.to(compute.torch_device)
        self.labels = images.train.labels.to(compute.torch_device)
        self._loss = compute.function(self._forward)

        self.updates = 0
        self.best: dict[str, Any] | None = None  # epoch, error and weights with the least validation error
        self.last_error: float | None = None  # of the last validation
        self.clock = Stopwatch()
        # Sums since `read_metrics`: loss, right answers, gradient norm, updates. They stay on the device.
        self._sums = torch.zeros(4, device=compute.torch_device)

    @property
    def is_enough(self) -> bool:
        """Whether the validation error has not become less for as long as patience lasts."""
        patience, best = self.config.patience_epochs, self.best
        return patience > 0 and best is not None and self.epoch - int(best["epoch"]) >= patience

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
            x, target_bK = self.batch(index_b)
            loss, right = self._loss(x, target_bK, self.labels[index_b])
            share = len(index_b) / sum(map(len, parts))  # the last part may be smaller
            (loss * share).backward()
            sums += torch.stack([loss.detach(), right]) * share
        self.world.mean_gradients(self.classifier.parameters())
        limit = float("inf") if config.max_grad_norm is None else config.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.classifier.parameters(), limit)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.classifier)
        self._sums += torch.cat([sums, norm.detach()[None], torch.ones_like(norm)[None]])
        self.updates += 1

    def batch(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Training images (b, C, H, W), augmented and normalised, and their smoothed and mixed labels (b, K)."""
        classes = len(self.card.classes)
        pixels = self.images[index_b].float() * (1 / 255)
        x = self.augment(pixels, self.generator, index_B=index_b, epoch=self.epoch)
        smoothing = self.config.label_smoothing
        target_bK = F.one_hot(self.labels[index_b], classes).float() * (1 - smoothing) + smoothing / classes
        x, target_bK = self.augment.mix(x, target_bK, self.generator)
        return self.compute.layout(self.card.normalise(x)), target_bK

    def _forward(self, x_bCHW: Tensor, target_bK: Tensor, label_b: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and share of right answers (scalars): the part of an update that is compiled."""
        with self.compute.autocast():
            logits_bK, weighted_auxiliaries = self.classifier.logits_and_auxiliaries(x_bCHW)
        loss = F.cross_entropy(logits_bK.float(), target_bK)
        for weight, auxiliary_bK in weighted_auxiliaries:
            loss = loss + weight * F.cross_entropy(auxiliary_bK.float(), target_bK)
        return loss, (logits_bK.detach().argmax(1) == label_b).float().mean()

    @property
    def evaluated(self) -> Classifier:
        """The network that counts: the averaged one where there is an average."""
        return self.classifier if self.ema is None else self.ema.module

    def score(self, images: ImageSet) -> Scores:
        """How well the network that counts does on images that it does not learn from."""
        config = self.config
        return score(
            self.evaluated, self.card, self.compute, images, views=config.tta_views, batch_size=config.eval_batch_size
        )

    def read_metrics(self) -> dict[str, Tensor]:
        """Means since the last call, as tensors on the device."""
        return read_means(self._sums, ("train/loss", "train/accuracy", "train/grad_norm"))

    def is_finite(self) -> bool:
        """Whether every weight is a number. Waits for the device."""
        return is_finite(self.classifier)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "classifier": self.classifier.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": checkpoint.rng_state(),
            "sums": self._sums,
            "updates": self.updates,
            "best": self.best,
            "last_error": self.last_error,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.classifier.load_state_dict(state["classifier"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        checkpoint.set_rng_state(state["rng"])
        self._sums.copy_(state["sums"])
        self.updates, self.best, self.last_error = state["updates"], state["best"], state["last_error"]
        self.clock.hours = state["hours"]


def make_card(config: Config, images: Data) -> model_file.Card:
    """What describes the network that a config asks for, on these images."""
    channels, height, width = images.train.shape
    usual = {"width": 1.0, "stem": "paper", "output_dropout": 0.0}  # what need not be said
    asked = {name: getattr(config, name) for name in usual}
    return model_file.Card(
        backbone=config.backbone,
        head=config.head,
        classes=images.train.classes,
        channels=channels,
        image_size=(height, width),
        mean=tuple(images.mean_C.tolist()),
        std=tuple(images.std_C.tolist()),
        options={name: value for name, value in asked.items() if value != usual[name]},
        dropout=config.dropout,
        data=images.train.source,
        command=f"{program()} {shlex.join(sys.argv[1:])}".strip(),
    )
