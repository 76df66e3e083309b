"""The length of a run by the clock: as many epochs as fit, found by measuring once, before the first update.

Schedules are functions of the update, so the number of epochs must be known when a run begins and stay what it is when
the run goes on; a schedule that followed the clock could not be resumed to the bit.
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
FEWEST_UPDATES = 10
EPOCH_SECONDS = 1.0  # pictures, histograms, model.safetensors and a checkpoint
MARGIN = 0.95
MOST_WARMUP = 0.2  # of a run


def epochs_within(config: Config, images: Data, compute: Compute, world: World) -> int:
    """How many epochs with their validations fit into `config.minutes`, at least one; random numbers are left alone."""
    share = config.batch_size // world.size
    with torch.random.fork_rng():
        training = Training(config, images, compute, World())
        order = training.epoch_order()
        for _ in range(3):  # compiles, and fills caches
            training.update(order[:share])
        training.read_metrics()["train/loss"].item()
        began, updates = time.perf_counter(), 0
        while updates < FEWEST_UPDATES or time.perf_counter() - began < MEASURE_SECONDS:
            place = updates % training.updates_per_epoch * share
            training.update(order[place : place + share])
            training.read_metrics()["train/loss"].item()  # waits for the device
            updates += 1
        update_seconds = (time.perf_counter() - began) / updates
        few = images.validation.take(slice(0, 2 * config.eval_batch_size))
        began = time.perf_counter()
        training.score(few)
        image_seconds = (time.perf_counter() - began) / len(few)
    validation_seconds = image_seconds * len(images.validation)
    epoch_seconds = training.updates_per_epoch * update_seconds + validation_seconds + EPOCH_SECONDS
    return max(1, int(MARGIN * 60 * config.minutes / epoch_seconds))


def with_epochs(config: Config, epochs: int) -> Config:
    """The config of that length, its warm-up no more than a fifth of it."""
    return dataclasses.replace(config, epochs=epochs, warmup_epochs=min(config.warmup_epochs, MOST_WARMUP * epochs))
