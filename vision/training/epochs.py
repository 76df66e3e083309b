"""Epoch-based training: the state of a run, and the loop from the current update to the end of the run or to a signal.

    training = Training(config, images, compute, world)  # a subclass of EpochTraining
    resumed = restore(training, run)
    if run_epochs(training, run, validate):
        return stopped_message(training, KIND)

vision.classify, vision.segment, vision.caption and vision.binary use this loop. Each of them defines its own update and
its own validation.

Shapes: N training images, B images in an update.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from zerokara.core import checkpoint
from zerokara.core.compute import Compute, Switch
from zerokara.core.config import UserError, flag
from zerokara.core.distributed import World
from zerokara.core.divergence import divergence_error, has_finite_weights, pop_means
from zerokara.core.ema import Ema
from zerokara.core.probe import HardwareSettings, probe
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.stopwatch import Stopwatch

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class EpochConfig(Protocol):
    """Fields that the config of every epoch-based run has."""

    @property
    def data(self) -> str:
        """Name or path of the data set."""

    @property
    def name(self) -> str:
        """Name of the run folder under runs/."""

    @property
    def epochs(self) -> int:
        """Length of the run in epochs."""

    @property
    def batch_size(self) -> int:
        """Images in an update, over all processes."""

    @property
    def seed(self) -> int:
        """Random seed."""

    @property
    def log_every_updates(self) -> int:
        """Updates between lines of metrics."""

    @property
    def checkpoint_every_updates(self) -> int:
        """Updates between checkpoints. Every validation is followed by one as well."""


class HasTrainingSet(Protocol):
    """Data with a training set."""

    @property
    def train(self) -> Sized:
        """Training images."""


class EpochTraining(ABC, Generic[NetworkT]):
    """Base class for the state of an epoch-based run: everything that a checkpoint holds.

    Updates use whole batches of the training images. Every epoch has a new random order. A subclass sets `optimizer`,
    optionally `ema`, and implements `update`.

    Args:
        build: creates the network. Its random initialization depends on the seed of the config.
        metric_names: names of the metrics that an update adds to the running sums.
    """

    config: EpochConfig
    data: HasTrainingSet
    optimizer: torch.optim.Optimizer
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
        self.config, self.data, self.compute, self.world = config, data, compute, world
        torch.manual_seed(config.seed)
        self.network = compute.module(build())
        world.broadcast(self.network)
        self.generator = torch.Generator(compute.torch_device).manual_seed(config.seed * 1_000_003 + world.rank)
        self.updates = 0  # completed updates
        self.last_metric: float | None = None  # metric of the last validation
        # Best validation: "epoch", its metric "figure", "since" (the first epoch with that metric), perhaps "weights".
        self.best: dict[str, Any] | None = None
        self.stopwatch = Stopwatch()
        self._metric_names = tuple(metric_names)
        # Sums of the metrics and the number of updates since the last `read_metrics`. They stay on the device, so that
        # an update does not synchronize.
        self._sums = torch.zeros(len(metric_names) + 1, device=compute.torch_device)
        self._order: tuple[int, Tensor] | None = None  # the current epoch and the order of its images

    # ---- epochs and batches

    @property
    def updates_per_epoch(self) -> int:
        """Number of whole batches in an epoch. The images of an incomplete last batch are left out of that epoch."""
        return max(1, len(self.data.train) // self.config.batch_size)

    @property
    def total_updates(self) -> int:
        """Length of the run in updates."""
        return self.config.epochs * self.updates_per_epoch

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self.updates // self.updates_per_epoch

    @property
    def is_validation_epoch(self) -> bool:
        """True if a validation follows the epoch that has just ended."""
        return True

    @property
    def should_stop_early(self) -> bool:
        """True if the run ends before its last epoch (early stopping)."""
        return False

    def epoch_order(self) -> Tensor:
        """Order (N,) of the training images in this epoch.

        It depends only on the seed and the epoch, so a checkpoint does not need to hold it.
        """
        shuffle = torch.Generator().manual_seed(self.config.seed * 7_919 + self.epoch)
        return torch.randperm(len(self.data.train), generator=shuffle)

    def next_batch(self) -> Tensor:
        """Indices (B,) of the training images of the next update."""
        epoch, batch = divmod(self.updates, self.updates_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.epoch_order()
        size = self.config.batch_size
        return self._order[1][batch * size : (batch + 1) * size]

    # ---- updates and metrics

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """Learning rate of the next update."""

    @abstractmethod
    def update(self, index_B: Tensor) -> None:
        """Do one gradient step on the images `index_B`. Each process computes the gradient of its shard."""

    @abstractmethod
    def format_metric(self, metric: float) -> str:
        """Format the metric of a validation for messages, for example "error 1.25%"."""

    def set_learning_rates(self) -> None:
        """Set the learning rate of the next update in every parameter group of the optimizer."""
        rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)

    def shard(self, index_B: Tensor) -> Tensor:
        """Return the part of the images `index_B` that this process trains on, as a tensor on the device."""
        return index_B[self.world.rank :: self.world.size].to(self.compute.torch_device)

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

    def read_metrics(self) -> dict[str, Tensor]:
        """Return the means of the metrics since the last call, as tensors on the device."""
        return pop_means(self._sums, self._metric_names)

    def has_finite_weights(self) -> bool:
        """Return True if all weights are finite. Synchronizes with the device."""
        return has_finite_weights(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": checkpoint.rng_state(),
            "sums": self._sums,
            "updates": self.updates,
            "last": self.last_metric,
            "best": self.best,
            "hours": self.stopwatch(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        checkpoint.set_rng_state(state["rng"])
        self._sums.copy_(state["sums"])
        self.updates, self.last_metric, self.best = state["updates"], state["last"], state["best"]
        self.stopwatch.hours = state["hours"]


# ---- the training loop


def check_batch(config: EpochConfig, world: World, parts: int = 1) -> None:
    """Check that the batch can be divided evenly among the processes and their gradient accumulation steps.

    Args:
        parts: gradient accumulation steps.

    Raises:
        UserError: the batch size is not a multiple of processes x parts.
    """
    if config.batch_size % (world.size * parts):
        divisor = f"{world.size} processes" + f" x {flag('accumulation_steps')} {parts}" * (parts > 1)
        raise UserError(
            f"{flag('batch_size')} {config.batch_size} cannot be divided evenly among {divisor}: "
            f"give a multiple of {world.size * parts}."
        )


def probe_updates(
    config: HardwareSettings, world: World, make: Callable[[Compute], EpochTraining[Any]], *, compile: Switch = "off"
) -> Compute:
    """Choose the hardware settings by timing updates with each candidate (`core.probe.probe`).

    The updates use the first training images, as many as one process gets of a batch.

    Args:
        make: creates the training state for a candidate, as if there were one process.
    """

    def train_step(candidate: Compute) -> Callable[[], object]:
        training = make(candidate)
        first = torch.arange(min(training.config.batch_size // world.size, len(training.data.train)))
        return lambda: training.update(first)

    return probe(config, world, train_step, compile=compile)


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
    if run.restore(_latest(run), training.load_state_dict):
        return True
    for report in load_weights(training.network):
        run.print(report)
    if training.ema is not None:
        training.ema.restart(training.network)
    return False


def run_epochs(training: EpochTraining[Any], run: Run, validate: Callable[[], None]) -> bool:
    """Train from the current update to the end of the run, with metrics, validations and checkpoints.

    Args:
        validate: evaluates the network, calls `EpochTraining.record_validation` and logs the result. Only the main
            process calls it.

    Returns:
        True if a signal stopped the run before its end.

    Raises:
        UserError: training diverged (NaN or Inf in the weights; earlier checkpoints stay as they are), or the disk is
            full.
    """
    config, world, device = training.config, training.world, training.compute.torch_device
    interval = LogInterval(training)
    _show_progress(training, run, {})
    # All processes vote, so that they leave the loop together. A run that stopped early also stops when it is resumed.
    stop_early = world.any(training.should_stop_early, device)
    stopping = False
    while training.updates < training.total_updates and not stop_early and not stopping:
        training.update(training.next_batch())
        if training.updates % config.log_every_updates == 0:
            log_metrics(training, run, interval)
            interval = LogInterval(training)
        validates = training.updates % training.updates_per_epoch == 0 and training.is_validation_epoch
        saves = validates or training.updates % config.checkpoint_every_updates == 0
        if saves:
            _check_finite(training, run)  # before non-finite weights overwrite a good checkpoint
        if validates:
            if world.is_main:
                validate()
            stop_early = world.any(training.should_stop_early, device)
            interval = LogInterval(training)
        if saves:
            run.save(_latest(run), training.state_dict())
        stopping = world.any(bool(run.stop_requested), device)
    if stopping:
        run.print(f"{run.stop_requested}: saving")
        save(training, run)
    return stopping


def stopped_message(training: EpochTraining[Any], kind: str) -> str:
    """Return the closing message of a run that was stopped, with the command that resumes it.

    Args:
        kind: the program is vision.<kind>.
    """
    config, metric = training.config, training.last_metric
    result = "not validated yet" if metric is None else f"validation {training.format_metric(metric)}"
    return (
        f"{config.data}: stopped at epoch {training.epoch} of {config.epochs}, {result}; resume with: "
        f"{program_command(f'vision.{kind}')} --name {config.name} --resume"
    )


def save(training: EpochTraining[Any], run: Run) -> None:
    """Write the checkpoint of this process.

    Raises:
        UserError: the weights contain NaN or Inf, or the disk is full.
    """
    _check_finite(training, run)
    run.save(_latest(run), training.state_dict())


def _latest(run: Run) -> Path:
    return run.path(f"checkpoint-{run.world.rank}.pt")


def _check_finite(training: EpochTraining[Any], run: Run) -> None:
    if not training.has_finite_weights():
        raise divergence_error(f"update {training.updates:,}", run.folder)


class LogInterval:
    """Start of the interval that the next line of metrics covers: update and wall-clock time in seconds."""

    def __init__(self, training: EpochTraining[Any]) -> None:
        self.updates, self.start_time = training.updates, time.perf_counter()


def log_metrics(training: EpochTraining[Any], run: Run, interval: LogInterval) -> None:
    """Log one line of metrics and update the progress bar."""
    images = (training.updates - interval.updates) * training.config.batch_size
    scalars: dict[str, Any] = {
        **training.read_metrics(),
        "train/learning_rate": training.learning_rate,
        "train/epoch": training.updates / training.updates_per_epoch,
        "speed/images_per_s": images / (time.perf_counter() - interval.start_time),
        "speed/hours": training.stopwatch(),
    }
    run.log(training.updates, scalars)
    run.flush()
    _show_progress(training, run, scalars)


def _show_progress(training: EpochTraining[Any], run: Run, scalars: dict[str, Any]) -> None:
    """Update the progress bar, or print a plain line if there is no terminal."""
    metrics = {"validation": training.last_metric, "best": None if training.best is None else training.best["figure"]}
    fields = {
        "epoch": round(training.updates / training.updates_per_epoch, 1),
        "loss": scalars.get("train/loss", float("nan")),
        **({"accuracy": scalars["train/accuracy"]} if "train/accuracy" in scalars else {}),
        **{label: training.format_metric(metric) for label, metric in metrics.items() if metric is not None},
        "images/s": scalars.get("speed/images_per_s", float("nan")),
    }
    run.progress(training.updates, training.total_updates, fields)
