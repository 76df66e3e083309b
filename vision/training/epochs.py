"""Learning by epochs: the state of a run, and its loop from wherever it stands to its end or to a signal.

    training = Training(config, images, compute, world)  # an Epochs: what learns, and one update over it
    resumed = restore(training, run)
    if go_through(training, run, validate):
        return stopped(training, KIND)

vision.classify, segment, caption and binary go through it; what they learn, and what a validation is, they say.

Shapes: N training images, B of an update.
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
from zerokara.core.divergence import divergence_error, is_finite, read_means
from zerokara.core.ema import Ema
from zerokara.core.probe import HardwareSettings, probe
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.stopwatch import Stopwatch

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class EpochConfig(Protocol):
    """What a config says of a run by epochs."""

    @property
    def data(self) -> str:
        """What is learnt."""

    @property
    def name(self) -> str:
        """Of the run's folder."""

    @property
    def epochs(self) -> int:
        """Of the run."""

    @property
    def batch_size(self) -> int:
        """Images of an update."""

    @property
    def seed(self) -> int:
        """Of the run's random numbers."""

    @property
    def log_every_updates(self) -> int:
        """Updates between lines of metrics."""

    @property
    def checkpoint_every_updates(self) -> int:
        """Updates between checkpoints, beside those after validations."""


class HasTrainingSet(Protocol):
    """What a run learns from."""

    @property
    def train(self) -> Sized:
        """The training images."""


class EpochTraining(ABC, Generic[NetworkT]):
    """Everything that a checkpoint holds, and updates that go through the training images in whole batches, in another
    order in every epoch. A subclass sets the optimiser, perhaps an average of the weights, and does the update.

    Args:
        build: makes the network, by random numbers that are the seed's.
        figures: what an update adds to the sums, by name, for a line of metrics.
    """

    config: EpochConfig
    data: HasTrainingSet
    optimizer: torch.optim.Optimizer
    ema: Ema[NetworkT] | None = None
    """An average of the weights."""

    def __init__(
        self,
        config: EpochConfig,
        data: HasTrainingSet,
        compute: Compute,
        world: World,
        build: Callable[[], NetworkT],
        figures: Sequence[str],
    ) -> None:
        self.config, self.data, self.compute, self.world = config, data, compute, world
        torch.manual_seed(config.seed)
        self.network = compute.module(build())
        world.broadcast(self.network)
        self.generator = torch.Generator(compute.torch_device).manual_seed(config.seed * 1_000_003 + world.rank)
        self.updates = 0  # that are over
        self.last_metric: float | None = None  # figure of the last validation
        self.best: dict[str, Any] | None = None  # epoch, figure, epoch it is known since, perhaps weights
        self.stopwatch = Stopwatch()
        self._figures = tuple(figures)
        # Of the figures, and of updates, since `read_metrics`. They stay on the device.
        self._sums = torch.zeros(len(figures) + 1, device=compute.torch_device)
        self._order: tuple[int, Tensor] | None = None  # an epoch and its order

    # ---- what is learnt when

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

    @property
    def is_validation_epoch(self) -> bool:
        """Whether the epoch that has just ended is followed by a validation."""
        return True

    @property
    def should_stop_early(self) -> bool:
        """Whether the run ends before its time."""
        return False

    def epoch_order(self) -> Tensor:
        """The order (N,) of the training images in this epoch: a function of seed and epoch, so nothing to save."""
        shuffle = torch.Generator().manual_seed(self.config.seed * 7_919 + self.epoch)
        return torch.randperm(len(self.data.train), generator=shuffle)

    def next_batch(self) -> Tensor:
        """The training images (B,) of the next update."""
        epoch, place = divmod(self.updates, self.updates_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.epoch_order()
        size = self.config.batch_size
        return self._order[1][place * size : (place + 1) * size]

    # ---- an update, and what came of it

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The step size of the next update."""

    @abstractmethod
    def update(self, index_B: Tensor) -> None:
        """One gradient step on the images `index_B`, of which this process takes its share."""

    @abstractmethod
    def format_metric(self, figure: float) -> str:
        """The figure of a validation: "error 1.25%"."""

    def set_learning_rates(self) -> None:
        """Give the optimiser's groups the step size of the next update."""
        rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)

    def shard(self, index_B: Tensor) -> Tensor:
        """The images of an update that are this process's, on the device."""
        return index_B[self.world.rank :: self.world.size].to(self.compute.torch_device)

    @property
    def evaluation_network(self) -> NetworkT:
        """The network that counts: the averaged one where there is an average."""
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
        """Put the best weights into the network that counts, where they were kept."""
        if self.best is not None and "weights" in self.best:
            self.evaluation_network.load_state_dict(self.best["weights"])

    def read_metrics(self) -> dict[str, Tensor]:
        """Means since the last call, as tensors on the device."""
        return read_means(self._sums, self._figures)

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
            "last": self.last_metric,
            "best": self.best,
            "hours": self.stopwatch(),
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
        self.updates, self.last_metric, self.best = state["updates"], state["last"], state["best"]
        self.stopwatch.hours = state["hours"]


# ---- a run from its start to its end


def check_batch(config: EpochConfig, world: World, parts: int = 1) -> None:
    """Refuse a batch that processes, and the parts in which each takes its share, cannot share evenly.

    Raises:
        UserError: as said.
    """
    if config.batch_size % (world.size * parts):
        among = f"{world.size} processes" + f" and {flag('accumulation_steps')} {parts} parts" * (parts > 1)
        raise UserError(f"{flag('batch_size')} {config.batch_size} cannot be shared by {among} evenly.")


def probe_updates(
    config: HardwareSettings, world: World, make: Callable[[Compute], EpochTraining[Any]], *, compile: Switch = "off"
) -> Compute:
    """`core.probe.probe` by updates on the first training images, this process's share of a batch.

    Args:
        make: what learns, with a candidate, as if there were one process.
    """

    def train_step(candidate: Compute) -> Callable[[], object]:
        training = make(candidate)
        first = torch.arange(min(training.config.batch_size // world.size, len(training.data.train)))
        return lambda: training.update(first)

    return probe(config, world, train_step, compile=compile)


def restore(
    training: EpochTraining[NetworkT], run: Run, fill: Callable[[NetworkT], Sequence[str]] = lambda network: ()
) -> bool:
    """Go on from the run's checkpoint, or begin. Whether it goes on.

    Args:
        fill: puts in weights to begin with, and reports what was loaded and what not, in words.

    Raises:
        UserError: a checkpoint that cannot be read, or weights as `fill` says.
    """
    if run.restore(_latest(run), training.load_state_dict):
        return True
    for report in fill(training.network):
        run.print(report)
    if training.ema is not None:
        training.ema.restart(training.network)
    return False


def run_epochs(training: EpochTraining[Any], run: Run, validate: Callable[[], None]) -> bool:
    """All updates that are left, with metrics, validations and checkpoints. Whether it was asked to stop.

    Args:
        validate: scores what was learnt, takes it down by `Epochs.note`, and shows it; only the main process calls it.

    Raises:
        UserError: weights that are no numbers any more; what was kept before stays. A disk that is full.
    """
    config, world, device = training.config, training.world, training.compute.torch_device
    window = LogInterval(training)
    _show(training, run, {})
    # Votes, so that all processes leave together; a run that ended early has also ended when it is resumed.
    enough = world.any(training.should_stop_early, device)
    stopping = False
    while training.updates < training.total_updates and not enough and not stopping:
        training.update(training.next_batch())
        if training.updates % config.log_every_updates == 0:
            log_metrics(training, run, window)
            window = LogInterval(training)
        validates = training.updates % training.updates_per_epoch == 0 and training.is_validation_epoch
        saves = validates or training.updates % config.checkpoint_every_updates == 0
        if saves:
            _check(training, run)  # before weights that are no numbers replace good ones
        if validates:
            if world.is_main:
                validate()
            enough = world.any(training.should_stop_early, device)
            window = LogInterval(training)
        if saves:
            run.save(_latest(run), training.state_dict())
        stopping = world.any(bool(run.stop_requested), device)
    if stopping:
        run.print(f"{run.stop_requested}: saving")
        save(training, run)
    return stopping


def stopped_message(training: EpochTraining[Any], kind: str) -> str:
    """The closing sentence of a run that was asked to stop: vision.<kind> goes on with it."""
    config, last = training.config, training.last_metric
    known = "not validated yet" if last is None else f"validation {training.format_metric(last)}"
    return (
        f"{config.data} at epoch {training.epoch} of {config.epochs}: {known}; go on with: "
        f"{program_command(f'vision.{kind}')} --name {config.name} --resume"
    )


def save(training: EpochTraining[Any], run: Run) -> None:
    """Write the checkpoint of this process.

    Raises:
        UserError: as `go_through`.
    """
    _check(training, run)
    run.save(_latest(run), training.state_dict())


def _latest(run: Run) -> Path:
    return run.path(f"checkpoint-{run.world.rank}.pt")


def _check(training: EpochTraining[Any], run: Run) -> None:
    if not training.is_finite():
        raise divergence_error(f"update {training.updates:,}", run.folder)


class LogInterval:
    """What the clock said when the stretch began that a line of metrics is about."""

    def __init__(self, training: EpochTraining[Any]) -> None:
        self.updates, self.began = training.updates, time.perf_counter()


def log_metrics(training: EpochTraining[Any], run: Run, window: LogInterval) -> None:
    """One line of metrics, and the progress bar."""
    images = (training.updates - window.updates) * training.config.batch_size
    scalars: dict[str, Any] = {
        **training.read_metrics(),
        "train/learning_rate": training.learning_rate,
        "train/epoch": training.updates / training.updates_per_epoch,
        "speed/images_per_s": images / (time.perf_counter() - window.began),
        "speed/hours": training.stopwatch(),
    }
    run.log(training.updates, scalars)
    run.flush()
    _show(training, run, scalars)


def _show(training: EpochTraining[Any], run: Run, scalars: dict[str, Any]) -> None:
    """The progress bar, or a plain line where there is no terminal."""
    figures = {"validation": training.last_metric, "best": None if training.best is None else training.best["figure"]}
    fields = {
        "epoch": round(training.updates / training.updates_per_epoch, 1),
        "loss": scalars.get("train/loss", float("nan")),
        **({"accuracy": scalars["train/accuracy"]} if "train/accuracy" in scalars else {}),
        **{label: training.format_metric(figure) for label, figure in figures.items() if figure is not None},
        "images/s": scalars.get("speed/images_per_s", float("nan")),
    }
    run.progress(training.updates, training.total_updates, fields)
