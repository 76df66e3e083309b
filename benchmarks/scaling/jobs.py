"""The training programs whose scaling is measured: one iteration of each, as the program does it.

    work = JOBS["dqn"].make(arguments, compute, world, 1)
    work.update()

Every process has the same number of images or environments, however many there are (weak scaling).
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zerokara.agents import dqn, pqn
from zerokara.agents.configs.dqn import Config as DqnConfig
from zerokara.agents.configs.pqn import Config as PqnConfig
from zerokara.agents.training.session import Session
from zerokara.agents.training.start import Resources, make_env
from zerokara.core.choices import GradientCompression
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.generative import dcgan
from zerokara.generative.gan.config import Config as GanConfig
from zerokara.vision.classification.config import Config as ClassifyConfig
from zerokara.vision.classification.learner import Data, Training

BATCHES = 4  # of each process, used in turn
CLASSES = tuple("0123456789")
NEVER = 10**9


@dataclass
class Work:
    """Training of one job in one process."""

    update: Callable[[], object]
    """One iteration of the training loop."""
    items: int
    """Images or agent steps of this process in an iteration."""
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    """Networks whose gradients are averaged during the backward pass."""
    close: Callable[[], object] = lambda: None
    """Free what is not memory: emulators, the run folder."""


@dataclass(frozen=True)
class Job:
    """Training program."""

    make: Callable[[argparse.Namespace, Compute, World, int], Work]
    """Create the training: arguments, hardware settings, processes, and how many processes' items each has."""
    unit: str
    """Unit of `Work.items`."""
    overlaps: bool = False
    """Gradients are averaged during the backward pass."""


def images(number: int, side: int) -> ImageSet:
    """Return random images, with a label each."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (number, 3, side, side), dtype=torch.uint8, generator=random)
    return ImageSet(pixels, torch.arange(number) % len(CLASSES), CLASSES, "noise")


def make_classify(arguments: argparse.Namespace, compute: Compute, world: World, copies: int) -> Work:
    """Create the update of a ResNet-18."""
    compression: GradientCompression = arguments.gradient_compression
    items = arguments.batch_size * copies
    config = ClassifyConfig(
        backbone="resnet18",
        stem="medium",
        width_multiplier=arguments.width,
        batch_size=items * world.size,
        gradient_compression=compression,
    )
    train = images(BATCHES * config.batch_size, arguments.image_size)
    moments = torch.full((3,), 0.5), torch.full((3,), 0.25)
    training = Training(config, Data(train, train, *moments), compute, world)
    return Work(lambda: training.update(training.next_batch()), items, {"network": training.network})


def make_gan(arguments: argparse.Namespace, compute: Compute, world: World, copies: int) -> Work:
    """Create the update of both networks of a DCGAN."""
    compression: GradientCompression = arguments.gradient_compression
    items, side = arguments.batch_size * copies, arguments.image_size
    config = GanConfig(
        batch_size=items * world.size,
        generator_width=arguments.width,
        discriminator_width=arguments.width,
        gradient_compression=compression,
    )
    learner = dcgan.make_learner(config, (3, side, side), len(CLASSES), compute, world)
    train = images(BATCHES * items, side)
    batches: list[tuple[Tensor, Tensor]] = list(zip(train.images.split(items), train.labels.split(items), strict=True))
    return Work(
        lambda: dcgan.update(learner, *batches[learner.updates % BATCHES]),
        items,
        {"discriminator": learner.discriminator, "generator": learner.generator},
    )


def agent_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what both agents have in common: no evaluation, no log entries, no video."""
    return {
        "env": arguments.env,
        "width_multiplier": arguments.width,
        "total_steps": NEVER,
        "log_every_steps": NEVER,
        "eval_every_steps": 0,
        "capture_video": False,
    }


def make_dqn(arguments: argparse.Namespace, compute: Compute, world: World, copies: int) -> Work:
    """Create an iteration of DQN with its defaults: a step in 16 environments, and 4 updates of 64 transitions."""
    number, default = world.size * copies, DqnConfig()
    config = DqnConfig(
        num_envs=(arguments.num_envs or default.num_envs) * number,
        batch_size=default.batch_size * number,
        train_every_steps=default.train_every_steps * number,
        learning_starts=1_000 * number,
        replay_capacity=20_000 * number,
        checkpoint_every_steps=default.checkpoint_every_steps * number,
        save_replay=False,
        **agent_options(arguments),
    )
    return make_agent(dqn.Training, config, arguments, compute, world)


def make_pqn(
    average_every: Literal["minibatch", "rollout"],
    arguments: argparse.Namespace,
    compute: Compute,
    world: World,
    copies: int,
) -> Work:
    """Create an iteration of PQN with its defaults: 32 steps in 128 environments, and 64 updates of 128 steps."""
    number, default = world.size * copies, PqnConfig()
    config = PqnConfig(
        num_envs=(arguments.num_envs or default.num_envs) * number,
        checkpoint_every_steps=default.checkpoint_every_steps * number,
        average_every=average_every,
        **agent_options(arguments),
    )
    return make_agent(pqn.Training, config, arguments, compute, world)


def make_agent(
    make: Callable[..., Session], config: Any, arguments: argparse.Namespace, compute: Compute, world: World
) -> Work:
    """Create the training of an agent in `arguments.folder`, which has done its first updates."""
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(contextlib.closing(make_env(config, world)))
        run = stack.enter_context(
            Run(config, kind="run", name="run", resume=False, quiet=True, root=Path(arguments.folder), world=world)
        )
        training = make(config, run, Resources(env, compute, world))
        training.start()
        iterations = stack.enter_context(contextlib.closing(training.iterations()))  # type: ignore[type-var]
        next(iterations)
        before = training.step

        def update() -> None:
            training.iterate()  # type: ignore[attr-defined]
            next(iterations)

        while not training.updates:
            before = training.step
            update()
        return Work(update, (training.step - before) // world.size, {}, stack.pop_all().close)
    raise AssertionError("the block returns")


JOBS: dict[str, Job] = {
    "classify": Job(make_classify, "images", overlaps=True),
    "dcgan": Job(make_gan, "images", overlaps=True),
    "pqn-minibatch": Job(partial(make_pqn, "minibatch"), "agent steps"),
    "pqn-rollout": Job(partial(make_pqn, "rollout"), "agent steps"),
    "dqn": Job(make_dqn, "agent steps"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that the jobs read, besides `folder`."""
    parser.add_argument("--batch-size", type=int, default=64, help="images per update and process")
    parser.add_argument("--image-size", type=int, default=64, help="side of the images, in pixels")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels of the networks")
    parser.add_argument("--env", default="ALE/Pong-v5", help="environment of the agents")
    parser.add_argument("--num-envs", type=int, default=0, help="environments per process; 0: default of the program")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the arithmetic")
    parser.add_argument("--compile", action="store_true", help="compile the updates")
    parser.add_argument(
        "--gradient-compression", choices=("none", "bfloat16", "powersgd"), default="none", help="as in training"
    )


def make_compute(arguments: argparse.Namespace, threads: int) -> Compute:
    """Return the hardware settings of a process, which are applied."""
    compute = Compute(precision=arguments.precision, compile=arguments.compile, channels_last=True, threads=threads)
    compute.apply()
    return compute
