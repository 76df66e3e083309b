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

        update_seconds = measure_update(update, world, compiles=compute.compile)
        if compute.compile and config.whitening_bias_epochs:
            # The code is compiled again when the bias of the whitening layer is frozen. It is compiled here, so that
            # the measurement takes this time, and not the training, which uses the same code.
            training.updates = config.whitening_bias_epochs * training.updates_per_epoch
            update()
        subset = images.validation.take(slice(0, 2 * config.eval_batch_size))
        start = time.perf_counter()
        training.score(subset)
        image_seconds = (time.perf_counter() - start) / len(subset)
    validation_seconds = image_seconds * len(images.validation) / world.size
    epoch_seconds = training.updates_per_epoch * update_seconds + validation_seconds + EPOCH_SECONDS
    return lambda epochs: epochs * epoch_seconds


def with_epochs(config: Config, epochs: int) -> Config:
    """Return the config with this number of epochs and a warm-up of at most a fifth of them."""
    warmup_epochs = min(config.warmup_epochs, MAX_WARMUP_FRACTION * epochs)
    return dataclasses.replace(config, epochs=epochs, warmup_epochs=warmup_epochs)
