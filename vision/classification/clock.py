"""Time limit of a run: the number of epochs that fit is measured once, before the first update.

The learning rate schedule is a function of the update, so the number of epochs must be known at the start and must not
change when the run is resumed. A schedule that depends on wall-clock time could not be resumed exactly.
"""

from __future__ import annotations

import dataclasses
import time

import torch

from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data, Training

MEASURE_SECONDS = 5.0
MIN_UPDATES = 10
MAX_SECONDS = 15.0  # of the measurement, with fewer updates if they are long
WARMUP_UPDATES = 3
EPOCH_SECONDS = 1.0  # images, histograms, model.safetensors and a checkpoint
TIME_FRACTION = 0.95  # the rest is a safety margin
MAX_WARMUP_FRACTION = 0.2  # of the run


def epochs_in_time_limit(config: Config, images: Data, compute: Compute, world: World) -> int:
    """Measure how many epochs with their validations fit into `config.minutes`, at least 1.

    The state of the global random number generator is not changed.
    """
    shard_size = config.batch_size // world.size
    with torch.random.fork_rng():
        training = Training(config, images, compute, World())
        order = training.epoch_order()
        start = time.perf_counter()
        for _ in range(WARMUP_UPDATES):  # compile and fill caches
            training.update(order[:shard_size])
            if not compute.compile and time.perf_counter() - start > MEASURE_SECONDS:
                break
        training.read_metrics()["train/loss"].item()
        start, updates, seconds = time.perf_counter(), 0, 0.0
        while seconds < MEASURE_SECONDS or (updates < MIN_UPDATES and seconds < MAX_SECONDS):
            first = updates % training.updates_per_epoch * shard_size
            training.update(order[first : first + shard_size])
            training.read_metrics()["train/loss"].item()  # synchronizes with the device
            updates += 1
            seconds = time.perf_counter() - start
        update_seconds = seconds / updates
        subset = images.validation.take(slice(0, 2 * config.eval_batch_size))
        start = time.perf_counter()
        training.score(subset)
        image_seconds = (time.perf_counter() - start) / len(subset)
    validation_seconds = image_seconds * len(images.validation)
    epoch_seconds = training.updates_per_epoch * update_seconds + validation_seconds + EPOCH_SECONDS
    return max(1, int(TIME_FRACTION * 60 * config.minutes / epoch_seconds))


def with_epochs(config: Config, epochs: int) -> Config:
    """Return the config with this number of epochs and a warm-up of at most a fifth of them."""
    warmup_epochs = min(config.warmup_epochs, MAX_WARMUP_FRACTION * epochs)
    return dataclasses.replace(config, epochs=epochs, warmup_epochs=warmup_epochs)
