"""Time limit of a classifier's run: the duration of its epochs, measured before the first update."""

from __future__ import annotations

import dataclasses
import time

import torch

from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.time_limit import SecondsOf, measure_update
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data, Training

EPOCH_SECONDS = 1.0  # images, histograms, model.safetensors and a checkpoint
MAX_WARMUP_FRACTION = 0.2  # of the run


def measure_epochs(config: Config, images: Data, compute: Compute, world: World) -> SecondsOf:
    """Measure an update and a part of a validation. Returns the function that gives the seconds of some epochs.

    All processes must call this. The state of the global random number generator is not changed.
    """
    with torch.random.fork_rng():
        training = Training(config, images, compute, world)

        def update() -> None:
            training.update(training.next_batch())
            training.read_metrics()["train/loss"].item()  # waits for the device

        update_seconds = frozen_seconds = measure_update(update, world, compiles=compute.compile)
        if config.whitening_bias_epochs:
            # Updates are faster once the bias of the whitening layer is frozen, and their code is compiled again.
            # It is compiled here, so that the measurement takes this time, and not the training, which uses the same.
            training.updates = config.whitening_bias_epochs * training.updates_per_epoch
            frozen_seconds = measure_update(update, world, compiles=compute.compile)
        subset = images.validation.take(slice(0, 2 * config.eval_batch_size))
        start = time.perf_counter()
        training.score(subset)
        image_seconds = (time.perf_counter() - start) / len(subset)
    validation_seconds = image_seconds * len(images.validation) / world.size

    def seconds_of(epochs: int) -> float:
        before = min(epochs, config.whitening_bias_epochs) if config.whitening_bias_epochs else epochs
        updates_seconds = before * update_seconds + (epochs - before) * frozen_seconds
        return training.updates_per_epoch * updates_seconds + epochs * (validation_seconds + EPOCH_SECONDS)

    return seconds_of


def with_epochs(config: Config, epochs: int) -> Config:
    """Return the config with this number of epochs and a warm-up of at most a fifth of them."""
    warmup_epochs = min(config.warmup_epochs, MAX_WARMUP_FRACTION * epochs)
    return dataclasses.replace(config, epochs=epochs, warmup_epochs=warmup_epochs)
