"""Measure what two processes that train together reach of the speed of two independent ones. Prints JSON.

    python -m benchmarks.scaling_local                     # a classifier (ResNet-18) and a DCGAN, at 64x64
    python -m benchmarks.scaling_local --jobs classify --gradient-compression bfloat16

Each process has one thread and the same number of images per update. The processes that train together have the
environment variables of torchrun, and average their gradients by Gloo; the independent ones do not communicate. Both
pairs are measured in turns, in the same call. The ratio of their images per second is the efficiency of the
communication on this machine, with the limits of memory and caches that both pairs share.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import alternating
from zerokara.core.choices import GradientCompression
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.generative import dcgan
from zerokara.generative.gan.config import Config as GanConfig
from zerokara.vision.classification.config import Config as ClassifyConfig
from zerokara.vision.classification.learner import Data, Training

PROCESSES = 2
BATCHES = 4  # of each process, used in turn
CLASSES = tuple("0123456789")


def images(number: int, side: int) -> ImageSet:
    """Return random images, with a label each."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (number, 3, side, side), dtype=torch.uint8, generator=random)
    return ImageSet(pixels, torch.arange(number) % len(CLASSES), CLASSES, "noise")


def classify(arguments: argparse.Namespace, compute: Compute, world: World) -> Callable[[], object]:
    """Return the update of a ResNet-18."""
    compression: GradientCompression = arguments.gradient_compression
    batch_size = arguments.batch_size * world.size
    config = ClassifyConfig(
        backbone="resnet18",
        stem="medium",
        width_multiplier=arguments.width,
        batch_size=batch_size,
        gradient_compression=compression,
    )
    train = images(BATCHES * batch_size, arguments.image_size)
    moments = torch.full((3,), 0.5), torch.full((3,), 0.25)
    training = Training(config, Data(train, train, *moments), compute, world)
    return lambda: training.update(training.next_batch())


def gan(arguments: argparse.Namespace, compute: Compute, world: World) -> Callable[[], object]:
    """Return the update of both networks of a DCGAN."""
    compression: GradientCompression = arguments.gradient_compression
    config = GanConfig(
        batch_size=arguments.batch_size * world.size,
        generator_width=arguments.width,
        discriminator_width=arguments.width,
        gradient_compression=compression,
    )
    side = arguments.image_size
    learner = dcgan.make_learner(config, (3, side, side), len(CLASSES), compute, world)
    train = images(BATCHES * arguments.batch_size, side)
    batches: list[tuple[Tensor, Tensor]] = list(
        zip(train.images.split(arguments.batch_size), train.labels.split(arguments.batch_size), strict=True)
    )
    return lambda: dcgan.update(learner, *batches[learner.updates % BATCHES])


JOBS = {"classify": classify, "dcgan": gan}


def process(job: str, port: int | None, rank: int, arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    """Create the updates of one process; with a port, it trains together with the others."""
    if port is not None:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        os.environ |= dict(zip(names, map(str, (rank, rank, PROCESSES, "127.0.0.1", port)), strict=True))
    compute = Compute(
        precision=arguments.precision, compile=arguments.compile, channels_last=True, threads=arguments.threads
    )
    compute.apply()
    world = World.from_env("cpu")
    update = JOBS[job](arguments, compute, world)

    def run_steps(steps: int) -> None:
        for _ in range(steps):
            update()

    return run_steps, f"{compute.settings}, process {world.rank + 1} of {world.size}"


def free_port() -> int:
    """Return a port that no program uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), help="what to measure")
    alternating.add_arguments(parser, learn_first=3, steps=10, threads=1, unit="updates")
    parser.add_argument("--batch-size", type=int, default=64, help="images per update and process")
    parser.add_argument("--image-size", type=int, default=64, help="side of the images, in pixels")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels of the networks")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the arithmetic")
    parser.add_argument("--compile", action="store_true", help="compile the updates")
    parser.add_argument(
        "--gradient-compression", choices=("none", "bfloat16", "powersgd"), default="none", help="as in training"
    )
    arguments = parser.parse_args(argv)
    figures: dict[str, Any] = {}
    for job in arguments.jobs:
        sides = {
            name: [partial(process, job, port, rank) for rank in range(PROCESSES)]
            for name, port in (("together", free_port()), ("independent", None))
        }
        figures[job] = alternating.alternate(sides, arguments)
        factor = arguments.batch_size
        figures[job]["images_per_s"] = {name: round(rate * factor, 1) for name, rate in figures[job]["median"].items()}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
