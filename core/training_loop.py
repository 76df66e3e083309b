"""Training by updates: the state of a run, and the loop from the current update to the last one or to a signal.

    training = Training(config, data, compute, world)  # a subclass of TrainingState
    resumed = run.restore(run.checkpoint_path, training.load_state_dict, training.load_processes)
    stopped = run_updates(training, run, training.update, validate)

Shapes: B images in an update.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from zerokara.core import checkpoint
from zerokara.core.choices import GradientCompression
from zerokara.core.compute import Compute
from zerokara.core.config import Stopped
from zerokara.core.data_parallel import DataParallel, synchronize_batch_norm
from zerokara.core.distributed import Votes, World
from zerokara.core.divergence import check_finite, pop_means
from zerokara.core.optim import load_optimizer_state
from zerokara.core.run import Run
from zerokara.core.stopwatch import LogInterval, Stopwatch

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class UpdateConfig(Protocol):
    """Fields that the config of every run has that is trained by updates."""

    @property
    def name(self) -> str:
        """Name of the run folder under runs/."""

    @property
    def seed(self) -> int:
        """Random seed."""

    @property
    def gradient_compression(self) -> GradientCompression:
        """Compression of the gradients that processes exchange."""

    @property
    def log_every_updates(self) -> int:
        """Updates between lines of metrics."""

    @property
    def checkpoint_every_updates(self) -> int:
        """Updates between checkpoints. Every validation is followed by one as well."""


class TrainingState(ABC, Generic[NetworkT]):
    """State of a run: everything that a checkpoint holds. A subclass sets `optimizer`.

    Args:
        config: config of the run.
        compute: hardware settings.
        world: processes that train together.
        build: creates the network. Its random initialization depends on the seed of the config.
        metric_names: names of the metrics that an update adds to the running sums.
    """

    config: UpdateConfig
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        config: UpdateConfig,
        compute: Compute,
        world: World,
        build: Callable[[], NetworkT],
        metric_names: Sequence[str],
    ) -> None:
        self.config, self.compute, self.world = config, compute, world
        torch.manual_seed(config.seed)
        network = build()
        if getattr(config, "sync_batch_norm", False):
            network = synchronize_batch_norm(network, world)
        self.network = compute.module(network)
        world.broadcast(self.network)
        # Random numbers of this process: augmentation, region sampling.
        self.generator = torch.Generator(compute.torch_device).manual_seed(world.process_seed(config.seed))
        self.updates = 0  # completed updates
        self.validation_pending = False  # True after an interrupted validation; it is repeated after resuming
        self.stopwatch = Stopwatch()
        self._metric_names = tuple(metric_names)
        # Sums of the metrics and the number of updates since the last `read_metrics`. They stay on the device, so that
        # an update does not synchronize.
        self._sums = torch.zeros(len(metric_names) + 1, device=compute.torch_device)

    @functools.cached_property
    def parallel(self) -> DataParallel:
        """Forward and backward passes that average the gradients over the processes."""
        return DataParallel(self.world, self.trained_network, self.config.gradient_compression, self.total_updates)

    @property
    def trained_network(self) -> nn.Module:
        """Part of the network whose parameters the optimizer updates."""
        return self.network

    @property
    @abstractmethod
    def total_updates(self) -> int:
        """Length of the run in updates."""

    @property
    @abstractmethod
    def is_validation_due(self) -> bool:
        """True if a validation follows the update that has just ended."""

    @property
    def trained_hours(self) -> float:
        """Hours of training up to the last checkpoint: with validations, without interruptions of the run.

        The final evaluation does not count, so that they stay the same if a finished run is resumed, which repeats it.
        """
        return self.stopwatch.hours

    @property
    def should_stop_early(self) -> bool:
        """True if the run ends before its last update (early stopping)."""
        return False

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """Learning rate of the next update."""

    def set_learning_rates(self) -> None:
        """Set the learning rate of the next update in every parameter group of the optimizer."""
        rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)

    def end_update(self, *metrics: Tensor) -> None:
        """Count an update, and add its metrics (scalars) to the running sums."""
        self._sums += torch.stack([*(metric.detach() for metric in metrics), torch.ones_like(metrics[0])])
        self.updates += 1

    def read_metrics(self) -> dict[str, Tensor]:
        """Return the means of the metrics since the last call over updates and processes, as tensors on the device."""
        sums = self.world.mean(self._sums)
        self._sums.zero_()
        return pop_means(sums, self._metric_names)

    def check_finite(self, run: Run) -> None:
        """Check that all weights are finite. Synchronizes with the device.

        Raises:
            UserError: training diverged: the weights contain NaN or Inf.
        """
        check_finite(self.network, f"update {self.updates:,}", run.folder)

    def save(self, run: Run) -> None:
        """Write the checkpoint of this process.

        Raises:
            UserError: training diverged (NaN or Inf in the weights; the last checkpoint stays), or the disk is full.
        """
        self.check_finite(run)
        run.save(run.checkpoint_path, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for a checkpoint."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": checkpoint.rng_state(),
            "sums": self._sums,
            "updates": self.updates,
            "validation_pending": self.validation_pending,
            "hours": self.stopwatch(),
        }
        if communication := self.parallel.state_dict():
            state["parallel"] = communication
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        checkpoint.restore_generator(self.generator, state["generator"])
        checkpoint.set_rng_state(state["rng"])
        self._sums.copy_(state["sums"])
        self.updates, self.stopwatch.hours = state["updates"], state["hours"]
        self.validation_pending = self.world.is_main and state.get("validation_pending", False)  # new in 0.2
        self.parallel.load_state_dict(state.get("parallel", {}))

    def load_processes(self, states: Mapping[int, dict[str, Any]]) -> str:
        """Restore the state from checkpoints of other processes, as `Run.restore` describes it.

        Random numbers of images are drawn anew, because a process has other images than the processes that saved.
        """
        with checkpoint.drawn_anew(self.generator, lambda: self.updates):
            self.load_state_dict(states.get(self.world.rank, states[0]))
        return checkpoint.DRAWN_ANEW

    # ---- logging

    @abstractmethod
    def interval_metrics(self, interval: LogInterval) -> dict[str, float]:
        """Return metrics of a log interval besides the means, the learning rate and the hours: epoch, speed."""

    @abstractmethod
    def progress_fields(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the progress bar.

        Args:
            scalars: the last logged metrics; empty at the start.
        """

    def show_progress(self, run: Run, scalars: Mapping[str, Any]) -> None:
        """Update the progress bar, or print a plain line if there is no terminal."""
        run.progress(self.updates, self.total_updates, self.progress_fields(scalars))

    def log_metrics(self, run: Run, interval: LogInterval) -> None:
        """Log one line of metrics and update the progress bar."""
        scalars: dict[str, Any] = {
            **self.read_metrics(),
            "train/learning_rate": self.learning_rate,
            **self.interval_metrics(interval),
            "speed/hours": self.stopwatch(),
        }
        run.log(self.updates, scalars)
        run.flush()
        self.show_progress(run, scalars)


def start_updates(
    updates: int,
    is_pending: Callable[[], bool],
    evaluate: Callable[[], object],
    save: Callable[[], object],
    world: World,
    device: torch.device,
) -> bool:
    """Do what precedes the first update of a new or resumed run. All processes must call this.

    An evaluation that a signal interrupted before the run was resumed is repeated. Several processes save before update
    1, so that they have a common checkpoint if the next save is interrupted.

    Args:
        updates: completed updates.
        is_pending: returns True in a process whose evaluation was interrupted.
        evaluate: evaluates in all processes, and leaves `is_pending` True if a signal interrupts it again.
        save: saves a checkpoint.
        world: processes of the run.
        device: of the votes.

    Returns:
        True if the evaluation was interrupted again, so that the run stops.
    """
    repeats = world.any(is_pending(), device)
    if repeats:
        evaluate()
    stopping = world.any(is_pending(), device)
    if (repeats and not stopping) or (updates == 0 and world.size > 1):
        save()
    return stopping


def run_updates(
    training: TrainingState[Any], run: Run, update: Callable[[], object], validate: Callable[[], object]
) -> bool:
    """Train from the current update to the last one, with metrics, validations and checkpoints.

    Args:
        training: state of the run.
        run: run folder.
        update: does one update.
        validate: evaluates the network (`core.sharding.evaluate_shards`); in the main process it logs the result. All
            processes call it.

    Returns:
        True if a signal stopped the run before its end.

    Raises:
        UserError: training diverged (NaN or Inf in the weights; earlier checkpoints stay as they are), or the disk is
            full.
    """
    with run.interruptible(on=False):
        return _run_updates(training, run, update, validate)


def _run_updates(
    training: TrainingState[Any], run: Run, update: Callable[[], object], validate: Callable[[], object]
) -> bool:
    config, world, device = training.config, training.world, training.compute.torch_device
    interval = LogInterval(training.updates)
    training.show_progress(run, {})
    stopping = start_updates(
        training.updates,
        lambda: training.validation_pending,
        lambda: _validate(training, validate),
        lambda: training.save(run),
        world,
        device,
    )
    # All processes vote, so that they leave the loop together. A run that stopped early also stops when it is resumed.
    stop_early = world.any(training.should_stop_early, device)
    votes = Votes(world, device)
    while training.updates < training.total_updates and not stop_early and not stopping:
        update()
        run.record_position(training.updates, training.total_updates)
        if training.updates % config.log_every_updates == 0:
            training.log_metrics(run, interval)
            interval = LogInterval(training.updates)
        validates, ended = training.is_validation_due, training.updates == training.total_updates
        saves = validates or ended or training.updates % config.checkpoint_every_updates == 0
        if validates:
            training.check_finite(run)  # before a model file with non-finite weights overwrites a good one
            _validate(training, validate)
            stop_early = world.any(training.should_stop_early, device)
            interval = LogInterval(training.updates)
        if saves:
            training.save(run)
        (stopping,) = votes(bool(run.stop_requested), now=saves)
    if stopping:
        run.print_stop()
        training.save(run)
    return stopping


def _validate(training: TrainingState[Any], validate: Callable[[], object]) -> None:
    """Validate, or record that a signal interrupted the validation: the run is then saved, and repeats it later."""
    training.validation_pending = True
    with contextlib.suppress(Stopped):
        validate()
        training.validation_pending = False
