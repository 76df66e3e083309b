"""Epoch-based training: the order of the images, the best validation, and the loop that the vision programs share.

    training = Training(config, images, compute, world)  # a subclass of EpochTraining
    resumed = restore(training, run)
    if run_epochs(training, run, validate):
        return stopped_message(training, run, KIND)

vision.classify, vision.segment, vision.caption and vision.binary use it. Each of them defines its own update and its
own validation.

Shapes: N training images, B images in an update.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, Protocol

import torch
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.ema import Ema
from zerokara.core.epoch_order import EpochOrder
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.stopwatch import LogInterval
from zerokara.core.training_loop import NetworkT, TrainingState, UpdateConfig, run_updates


class EpochConfig(UpdateConfig, Protocol):
    """Fields that the config of every epoch-based run has."""

    @property
    def data(self) -> str:
        """Name or path of the data set."""

    @property
    def epochs(self) -> int:
        """Length of the run in epochs."""

    @property
    def batch_size(self) -> int:
        """Images in an update, over all processes."""


class HasTrainingSet(Protocol):
    """Data with a training set."""

    @property
    def train(self) -> Sized:
        """Training images."""


class EpochTraining(TrainingState[NetworkT]):
    """Base class for the state of an epoch-based run: everything that a checkpoint holds.

    Updates use whole batches of the training images. Every epoch has a new random order. A subclass sets `optimizer`,
    optionally `ema`, and implements `update`.

    Args:
        build: creates the network. Its random initialization depends on the seed of the config.
        metric_names: names of the metrics that an update adds to the running sums.
    """

    config: EpochConfig
    data: HasTrainingSet
    ema: Ema[NetworkT] | None = None
    """Exponential moving average of the weights; None: not used."""

    def __init__(
        self,
        config: EpochConfig,
        data: HasTrainingSet,
        compute: Compute,
        world: World,
        build: Callable[[], NetworkT],
        metric_names: Sequence[str],
    ) -> None:
        super().__init__(config, compute, world, build, metric_names)
        self.data = data
        self.order = EpochOrder(len(data.train), config.batch_size, config.seed)
        self.last_metric: float | None = None  # metric of the last validation
        # Best validation: "epoch", its metric "figure", "since" (the first epoch with that metric), perhaps "weights".
        self.best: dict[str, Any] | None = None

    # ---- epochs and batches

    @property
    def updates_per_epoch(self) -> int:
        """Number of whole batches in an epoch. The images of an incomplete last batch are left out of that epoch."""
        return self.order.updates_per_epoch

    @property
    def total_updates(self) -> int:
        """Length of the run in updates."""
        return total_updates(self.config, self.data)

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self.updates // self.updates_per_epoch

    @property
    def is_validation_epoch(self) -> bool:
        """True if a validation follows the epoch that has just ended."""
        return True

    @property
    def is_validation_due(self) -> bool:
        """True if a validation follows the update that has just ended."""
        return self.updates % self.updates_per_epoch == 0 and self.is_validation_epoch

    def epoch_order(self) -> Tensor:
        """Order (N,) of the training images in this epoch."""
        return self.order.of_epoch(self.epoch)

    def next_batch(self) -> Tensor:
        """Indices (B,) of the training images of the next update."""
        return self.order.batch(self.updates)

    # ---- updates and metrics

    @abstractmethod
    def update(self, index_B: Tensor) -> None:
        """Do one gradient step on the images `index_B`. Each process computes the gradient of its shard."""

    @abstractmethod
    def format_metric(self, metric: float) -> str:
        """Format the metric of a validation for messages, for example "error 1.25%"."""

    def shard(self, index_B: Tensor) -> Tensor:
        """Return the part of the images `index_B` that this process trains on, as a tensor on the device."""
        return index_B[self.world.batch_shard].to(self.compute.torch_device)

    @property
    def evaluation_network(self) -> NetworkT:
        """Network that is evaluated and saved: the one with averaged weights if `ema` is set, else `network`."""
        return self.network if self.ema is None else self.ema.module

    def record_validation(self, metric: float, *, is_best: bool, save_weights: bool) -> None:
        """Record the metric of a validation and, if it is the best so far, its epoch and optionally the weights.

        Args:
            is_best: the metric is at least as good as `best`. Must be True for the first validation.
            save_weights: keep a copy of the weights of `evaluation_network`.
        """
        self.last_metric = metric
        if is_best:
            before = self.best or {"figure": None}
            since = before["since"] if metric == before["figure"] else self.epoch
            self.best = {"epoch": self.epoch, "figure": metric, "since": since}
            if save_weights:
                state = self.evaluation_network.state_dict()
                self.best["weights"] = {name: tensor.detach().clone() for name, tensor in state.items()}

    def load_best_weights(self) -> None:
        """Load the best weights into `evaluation_network`, if they were saved."""
        if self.best is not None and "weights" in self.best:
            self.evaluation_network.load_state_dict(self.best["weights"])

    def interval_metrics(self, interval: LogInterval) -> dict[str, float]:
        """Return the epochs so far and the images per second."""
        return {
            "train/epoch": self.updates / self.updates_per_epoch,
            "speed/images_per_s": interval.per_second(self.updates) * self.config.batch_size,
        }

    def progress_fields(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Return epoch, loss, accuracy (if there is one), the last and the best validation metric, and the speed."""
        metrics = {"validation": self.last_metric, "best": None if self.best is None else self.best["figure"]}
        return {
            "epoch": round(self.updates / self.updates_per_epoch, 1),
            "loss": scalars.get("train/loss", float("nan")),
            **({"accuracy": scalars["train/accuracy"]} if "train/accuracy" in scalars else {}),
            **{label: self.format_metric(metric) for label, metric in metrics.items() if metric is not None},
            "images/s": scalars.get("speed/images_per_s", float("nan")),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for a checkpoint."""
        ema = None if self.ema is None else self.ema.state_dict()
        return {**super().state_dict(), "ema": ema, "last": self.last_metric, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.last_metric, self.best = state["last"], state["best"]


def total_updates(config: EpochConfig, data: HasTrainingSet) -> int:
    """Return the length of a run in updates."""
    return config.epochs * EpochOrder(len(data.train), config.batch_size, config.seed).updates_per_epoch


def probe_update(
    make: Callable[[Any, Any, Compute, World], EpochTraining[Any]],
    config: EpochConfig,
    data: Any,
    compute: Compute,
    batch_size: int,
    *,
    only_first_images: bool = True,
) -> Callable[[], object]:
    """Return an update to be timed for `core.training_program.choose_compute`.

    It trains on the first images. It is always the first update of a run:
    airbench's code is compiled again when its first bias is frozen, and there is one update per epoch here.

    Args:
        make: class of the training state.
        config: config of the run.
        data: data of the run, a dataclass with the field `train`.
        compute: candidate.
        batch_size: number of images.
        only_first_images: give `make` only these images, so that not all images are on the device for each candidate.
    """
    if only_first_images:
        data = dataclasses.replace(data, train=data.train.take(slice(0, batch_size)))
    training = make(config, data, compute, World())
    first = torch.arange(min(batch_size, len(data.train)))

    def update() -> None:
        training.updates = 0
        training.update(first)

    return update


def restore(
    training: EpochTraining[NetworkT],
    run: Run,
    load_weights: Callable[[NetworkT], Sequence[str]] = lambda network: (),
) -> bool:
    """Restore the run from its checkpoint if it has one, else load its initial weights. Return True if it was restored.

    Args:
        load_weights: loads pretrained weights into the network and returns messages about what was and was not loaded.

    Raises:
        UserError: the checkpoint cannot be read, or `load_weights` raises it.
    """
    if run.restore(run.checkpoint_path, training.load_state_dict, training.load_processes):
        return True
    for report in load_weights(training.network):
        run.print(report)
    if training.ema is not None:
        training.ema.restart(training.network)
    return False


def run_epochs(training: EpochTraining[Any], run: Run, validate: Callable[[], None]) -> bool:
    """Train from the current update to the end of the run, as `core.training_loop.run_updates`.

    Args:
        training: state of the run.
        run: run folder.
        validate: evaluates the network, in all processes; in the main process it calls
            `EpochTraining.record_validation` and logs the result.
    """
    return run_updates(training, run, lambda: training.update(training.next_batch()), validate)


def stopped_message(training: EpochTraining[Any], run: Run, kind: str) -> str:
    """Return the closing message of a run that was stopped, with the command that resumes it.

    Args:
        training: state of the run.
        run: run folder.
        kind: the program is vision.<kind>.
    """
    config, metric = training.config, training.last_metric
    result = "not validated yet" if metric is None else f"validation {training.format_metric(metric)}"
    return (
        f"{config.data}: stopped at epoch {training.epoch} of {config.epochs}, {result}; resume with: "
        f"{run.resume_command(program_command(f'vision.{kind}'))}"
    )
