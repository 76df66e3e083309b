"""Frame of a training program: number of processes, run folder with signal handlers, hardware settings.

world = World.from_env(config.device)
check_divisible(config, world, "batch_size")
with open_run(config, KIND, world) as run:
    timed = TrainStep(partial(probe_step, config), config.batch_size // world.size)
    compute = run.compute(lambda: choose_compute(config, world, timed, config.updates), config.updates)
    run.close(train(config, run, compute, world))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from zerokara.core.compute import Compute, TrainStep
from zerokara.core.config import Stopped, UserError, flag, format_count
from zerokara.core.distributed import World
from zerokara.core.programs import program
from zerokara.core.run import Run
from zerokara.core.run_options import FolderOptions, RunOptions


def check_divisible(config: Any, world: World, *fields: str, parts: int = 1) -> None:
    """Check that settings can be divided evenly among the processes.

    Args:
        config: has the fields.
        world: processes.
        fields: names of fields, such as "batch_size".
        parts: gradient accumulation steps; each process divides its share once more among them.

    Raises:
        UserError: a field is not a multiple of processes x parts.
    """
    divisor = format_count(world.size, "process") + f" x {flag('accumulation_steps')} {parts}" * (parts > 1)
    for field in fields:
        if (value := getattr(config, field)) % (world.size * parts):
            raise UserError(
                f"{flag(field)} {value} cannot be divided evenly among {divisor}: "
                f"give a multiple of {world.size * parts}."
            )


def images_per_pass(batch_size: int, images: int, world: World, parts: int = 1) -> int:
    """Return the smallest number of images in a forward pass of training.

    Args:
        batch_size: of all processes.
        images: training images; if they are fewer than a batch, they are the batch.
        world: processes, which divide the images of a batch.
        parts: gradient accumulation steps, for which a process divides its images with `Tensor.chunk`.
    """
    batch = min(batch_size, images)
    shards = {batch // world.size, -(-batch // world.size)}
    return min(len(part) for shard in shards for part in torch.arange(shard).chunk(parts))


def check_batch_norm(network: nn.Module, shape: tuple[int, ...], smallest: int) -> None:
    """Check that BatchNorm layers get more than one value per channel in training.

    Args:
        network: on the meta device.
        shape: of an input, without the batch.
        smallest: number of images in the smallest forward pass, see `images_per_pass`.

    Raises:
        UserError: they do not, because a single image has shrunk to one pixel before such a layer; or a process has no
            image.
    """
    if smallest > 1:
        return
    if smallest == 0:
        raise UserError("There are more processes than training images: start fewer, or give more images.")
    try:
        network.train()(torch.empty(smallest, *shape, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "A forward pass over a single image leaves BatchNorm one value per channel, which has no variance: give a "
            "larger --batch-size, more images, or fewer accumulation steps or processes."
        ) from None


@contextlib.contextmanager
def open_run(
    config: FolderOptions,
    kind: str,
    world: World = World(),  # noqa: B008  (frozen)
    extra: Mapping[str, Any] | None = None,
) -> Iterator[Run]:
    """Open the run folder that a config names, with SIGINT and SIGTERM as requests to stop; close it at the end.

    The block is interruptible (`Run.interruptible`). A training loop turns this off, and ends when it has saved.

    Args:
        config: config of the run.
        kind: name of the program ("dqn").
        world: processes that train together; they leave the process group at the end.
        extra: as in `core.run.Run`.

    Raises:
        UserError: as in `core.run.Run`.
        Stopped: a signal stopped the run; its closing line is printed.
    """
    with (
        Run(
            config, kind=kind, name=config.name, resume=config.resume, quiet=config.quiet, extra=extra, world=world
        ) as run,
        run.signals(),
    ):
        try:
            with run.interruptible():
                yield run
        except Stopped:
            line = f"{run.stop_requested}: stopped; resume with: {run.resume_command(program())}"
            run.close(line, "KILLED")
            if not run.stopped:
                raise
        if run.stopped:  # all processes have left the loop; torchrun kills those that are not ready when one has ended
            world.barrier()
    world.close()
    if run.stopped:
        raise Stopped


def choose_compute(config: RunOptions, world: World, train_step: TrainStep, updates: int | None = None) -> Compute:
    """Choose the settings that the config leaves at "auto" by timing updates (`Compute.choose`).

    torch's random generators are restored afterwards. A config without the field `compile` is not compiled; one with
    `minutes` above 0 limits the run in time.

    Args:
        config: device, precision, threads, and perhaps compile.
        world: processes of this run, among which the CPU cores are divided.
        train_step: an update of one process, as if there were no others.
        updates: updates in the run, which limit the time that the measurement may take; None: unknown.

    Raises:
        UserError: as `Compute.choose`.
    """
    with torch.random.fork_rng():
        return Compute.choose(
            device=config.device,
            precision=config.precision,
            compile=getattr(config, "compile", "off"),
            threads=config.threads,
            train_step=train_step,
            local_world_size=world.local_size,
            updates=updates,
            minutes=getattr(config, "minutes", 0.0),
        )
