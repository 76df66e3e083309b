"""Train a feed-forward network that applies one style to any image.

    python -m generative.fast_style --style wave.jpg --data photographs.zip
    python -m generative.stylise runs/<name> photo.jpg

Johnson et al. 2016, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution": the loss of
generative.style_transfer is minimized by the weights of a network (generative/style/network.py) instead of by pixels.
It is trained on a folder or zip file of any photographs. docs/style.md has examples and times.

Shapes: N photographs, B batch, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zerokara.core import schedules
from zerokara.core.command_line import check_command_line
from zerokara.core.config import UserError, flag, format_count, run_main, to_dict
from zerokara.core.programs import command, program_command
from zerokara.core.stopwatch import LogInterval
from zerokara.generative.gan.config import Config as DataConfig
from zerokara.generative.style.fast_config import KIND, Config, read_config

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor

from zerokara.core import checkpoint
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data import DATASETS, ImageSet, hold_out
from zerokara.core.data.image_files import resize
from zerokara.core.data.sources import data_folder, find_data
from zerokara.core.distributed import World
from zerokara.core.eager_optim import Adam
from zerokara.core.epoch_order import epoch_generator
from zerokara.core.media import grid, png_bytes, to_uint8
from zerokara.core.models.normalization import decide_normalization
from zerokara.core.run import Run
from zerokara.core.run_inputs import save_input
from zerokara.core.sharding import evaluate_shards
from zerokara.core.training_loop import TrainingState, run_updates
from zerokara.core.training_program import check_divisible, choose_compute, open_run
from zerokara.generative.gan.data import load_split
from zerokara.generative.style import network
from zerokara.generative.style.critic import Losses, PerceptualLoss, Weights
from zerokara.generative.style.images import (
    activation_bytes,
    check_memory,
    fingerprint,
    read_input,
    sizes,
    to_pixels,
)
from zerokara.generative.style.network import StyleMetadata, StyleNetwork
from zerokara.generative.style.perceptual import LossNetwork, loss_network_of, save_loss_network

SPLIT_SEED = 0  # independent of the run's seed, so that all runs hold out the same photographs
STYLE_FILE = "style.png"  # copy of the style image in the run folder, resized
SHOWN = 16  # images in the grid of photographs and results


@dataclass(frozen=True)
class Data:
    """Style image (H, W, 3) uint8, training photographs and held-out photographs."""

    style: np.ndarray
    train: ImageSet
    held_out: ImageSet
    messages: tuple[str, ...]

    @classmethod
    def load(cls, config: Config) -> Data:
        """Read all images.

        Raises:
            UserError: no style was named, no such data, or too few images.
        """
        if not config.style:
            raise UserError("No style was named: give its image, as in --style wave.jpg.")
        style = read_input(config, config.style, STYLE_FILE)
        max_side = config.style_size or 2 * config.image_size
        style = resize(style, sizes(style.shape[0], style.shape[1], max_side, 1)[0])
        folder = data_folder(Path(config.data_dir) if config.data_dir else None)
        source = config.data if config.data in DATASETS else str(find_data(config.data, folder) or config.data)
        data_config = DataConfig(
            data=source,
            data_dir=config.data_dir,
            image_size=(config.image_size,),
            grayscale=False,
            name=config.name,
            resume=config.resume,
        )
        photographs, messages = load_split(data_config, "train")
        if len(photographs) < config.held_out_images + config.batch_size:
            raise UserError(
                f"{photographs.source} has {format_count(len(photographs), 'image')}, and {config.held_out_images} to "
                f"hold out plus {config.batch_size} for a batch are needed: give more, or lower "
                f"{flag('held_out_images')}."
            )
        train, held_out = hold_out(photographs, config.held_out_images, SPLIT_SEED)
        return cls(style, train, held_out, tuple(messages))


class Training(TrainingState[StyleNetwork]):
    """Training state of a style network and its update."""

    config: Config

    def __init__(self, config: Config, data: Data, loss_network: LossNetwork, compute: Compute, world: World) -> None:
        layers = [f"style_{layer}" for layer in loss_network.selected.style]
        names = [f"train/{name}" for name in ("loss", "content", "style", "variation", *layers)]
        super().__init__(config, compute, world, lambda: StyleNetwork(config.style_network_width), names)
        self.data = data
        self.optimizer = Adam(self.network.parameters(), lr=config.learning_rate)
        self.photographs = data.train.images.to(compute.torch_device)
        style = to_pixels(data.style).to(compute.torch_device)
        loss_network.on(compute).balance([style, self.pixels(data.train.images[: config.batch_size])])
        weights = Weights(content=config.content_weight, style=config.style_weight, variation=config.variation_weight)
        self.criterion = PerceptualLoss(loss_network, weights, style)
        self.held_out_loss = float("nan")
        self._order = (-1, torch.empty(0), torch.empty(0))  # epoch, order of photographs, which to flip

    @property
    def total_updates(self) -> int:
        """Length of the run in updates."""
        return self.config.updates

    @property
    def is_validation_due(self) -> bool:
        """True if an evaluation of the held-out photographs follows the update that has just ended."""
        return self.updates % self.config.image_every_updates == 0 or self.updates == self.config.updates

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        config = self.config
        if config.schedule == "constant":
            return config.learning_rate
        return schedules.cosine(self.updates, config.learning_rate, 0.01 * config.learning_rate, 0, config.updates)

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """Move uint8 photographs to the device and scale them to 0 to 1."""
        return images_BCHW.to(self.compute.torch_device).float() / 255

    def batch(self) -> Tensor:
        """Return this process's shard of the next batch (b, 3, H, W), from 0 to 1, with random horizontal flips."""
        size = self.config.batch_size
        epoch, batch = divmod(self.updates, len(self.photographs) // size)
        if self._order[0] != epoch:  # a function of seed and epoch, so it is not saved; the flips are drawn after it
            random = epoch_generator(self.config.seed, epoch)
            order = torch.randperm(len(self.photographs), generator=random)
            self._order = epoch, order, torch.rand(len(order), generator=random) < 0.5
        rows, shard = slice(batch * size, (batch + 1) * size), self.world.batch_shard
        index, flipped = (x[rows][shard].to(self.photographs.device) for x in self._order[1:])
        pixels = self.pixels(self.photographs[index])
        return torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)

    def losses(self, pixels_BCHW: Tensor) -> Losses:
        """Compute the losses of the stylized photographs (pixels from 0 to 1)."""
        with self.compute.autocast():
            stylized = self.network(self.compute.layout(pixels_BCHW)).float()
        return self.criterion.losses(stylized, self.criterion.content_features(pixels_BCHW))

    def update(self) -> None:
        """Do one Adam step on the next batch."""
        self.set_learning_rates()
        losses = self.parallel.forward(self.losses, self.batch())
        self.optimizer.zero_grad(set_to_none=True)
        self.parallel.backward(losses.total)
        self.optimizer.step()
        self.end_update(*losses.scalars("train").values())

    def evaluate(self, run: Run) -> tuple[dict[str, float], np.ndarray]:
        """Return the mean losses on the held-out photographs, and an image grid of photographs and results.

        The processes divide the photographs.

        Raises:
            Stopped: a signal interrupted the evaluation in one of the processes.
        """
        number = len(self.data.held_out)
        parts = evaluate_shards(self.world, run, number, self._evaluate)
        sums = {name: sum(losses[name] for losses, _ in parts) for name in parts[0][0]}
        self.held_out_loss = sums["held_out/loss"]
        return sums, grid(torch.cat([pairs for _, pairs in parts])[:SHOWN], columns=4)

    @torch.no_grad()
    def _evaluate(self, shard: slice) -> tuple[dict[str, float], Tensor]:
        """Return the part of the mean losses that some held-out photographs have, and pairs of photograph and result.

        The pairs (2n, 3, H, W) are uint8; there are no more than are shown.
        """
        sums: dict[str, float] = {}
        grids = []
        for images in self.data.held_out.images[shard].split(self.config.batch_size):
            pixels = self.pixels(images)
            for name, value in self.losses(pixels).scalars("held_out").items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(images) / len(self.data.held_out)
            stylized = network.stylize(self.network, self.compute, pixels)
            pairs = torch.stack([pixels, stylized], 1).flatten(0, 1)
            grids.append(self.compute.to_host(to_uint8(pairs)))
        return sums, torch.cat(grids)[:SHOWN]

    def interval_metrics(self, interval: LogInterval) -> dict[str, float]:
        """Return the photographs per second."""
        return {"speed/images_per_s": interval.per_second(self.updates) * self.config.batch_size}

    def progress_fields(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Return total loss, style loss, the last loss on held-out photographs, and the speed."""
        return {
            "loss": scalars.get("train/loss", float("nan")),
            "style": scalars.get("train/style", float("nan")),
            "held out": self.held_out_loss,
            "images/s": scalars.get("speed/images_per_s", float("nan")),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for a checkpoint."""
        return {**super().state_dict(), "held_out_loss": self.held_out_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`. Random numbers and sums of metrics are missing in checkpoints of older releases."""
        own = {"generator": self.generator.get_state(), "rng": checkpoint.rng_state(), "sums": self._sums}
        super().load_state_dict({**own, **state})
        self.held_out_loss = state["held_out_loss"]

    def save(self, run: Run) -> None:
        """Write the checkpoint, and in the main process the model file."""
        super().save(run)
        if self.world.is_main:
            metadata = StyleMetadata(
                style=Path(self.config.style).name,
                width=self.config.style_network_width,
                update=self.updates,
                data=self.data.train.source,
                command=command(),
            )
            metadata.save(run.path(StyleMetadata.FILE), self.network.state_dict())


def train(config: Config, run: Run, data: Data, loss_network: LossNetwork, compute: Compute, world: World) -> str:
    """Train from the current update to the end of the run. Returns the closing message.

    Raises:
        UserError: an unreadable checkpoint, or divergence (NaN or Inf).
    """
    training = Training(config, data, loss_network, compute, world)
    if not run.restore(run.checkpoint_path, training.load_state_dict, training.load_processes):
        run.image("style", 0, data.style)

    def validate() -> None:
        held_out_losses, image = training.evaluate(run)
        run.log(training.updates, held_out_losses)
        run.image("held_out", training.updates, image)

    if run_updates(training, run, training.update, validate):
        return (
            f"{run.stop_requested}: saved at update {training.updates:,} of {config.updates:,}; resume with: "
            f"{run.resume_command(program_command('generative.fast_style'))}"
        )
    run.hparams(to_dict(config), ["held_out/loss"])
    return (
        f"{Path(config.style).name}: trained for {training.updates:,} updates, held-out loss "
        f"{training.held_out_loss:.4g}; apply it with: {program_command('generative.stylise')} {run.folder} photo.jpg"
    )


def probe_step(config: Config, data: Data, compute: Compute, batch_size: int) -> Callable[[], object]:
    """Return an update, which is timed to choose device and precision."""
    config = replace(config, batch_size=batch_size)
    return Training(config, data, loss_network_of(config), compute, World()).update


def check_fit(config: Config, loss_network: LossNetwork, world: World) -> str:
    """Check that an update fits into memory. Returns a message about it.

    Raises:
        UserError: it does not fit.
    """
    side = config.image_size
    shape = (config.batch_size // world.size, 3, side, side)
    needed = {
        f"activations of {loss_network.backbone.name}": activation_bytes(loss_network, shape),
        "the style network": activation_bytes(StyleNetwork(config.style_network_width), shape),
    }
    instead = f"lower {flag('batch_size')}, or {flag('image_size')} to {{side}}"
    return check_memory(needed, config.device, (side, side), instead)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read config and images, check memory, train, print the closing message."""
    config = read_config(argv, __doc__ or "")
    config = decide_normalization(config, channels=3)
    world = World.from_env(config.device)
    check_divisible(config, world, "batch_size")
    data = Data.load(config)
    loss_network = loss_network_of(config)
    memory = check_fit(config, loss_network, world)
    with open_run(config, KIND, world, extra={"style": fingerprint(data.style)}) as run:
        if run.extra["style"] != fingerprint(data.style):
            raise UserError(
                f"{config.style} is not the image that {run.folder} was started with: restore the old one, or start a "
                f"new run with another --name."
            )
        save_input(run, STYLE_FILE, png_bytes(data.style))
        save_loss_network(run, config, loss_network)
        for message in (*data.messages, f"loss network: {loss_network.description}", memory):
            run.print(message)
        timed = TrainStep(partial(probe_step, config, data), config.batch_size // world.size)
        compute = run.compute(lambda: choose_compute(config, world, timed, config.updates), config.updates)
        run.close(train(config, run, data, loss_network, compute, world))


if __name__ == "__main__":
    run_main(main)
