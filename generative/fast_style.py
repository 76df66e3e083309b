"""Train a feed-forward network that applies one style to any image.

    python -m generative.fast_style --style wave.jpg --data photographs.zip
    python -m generative.stylise runs/<name> photo.jpg

Johnson et al. 2016, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution": the loss of
generative.style_transfer is minimized by the weights of a network (generative/style/network.py) instead of by pixels.
It is trained on a folder or zip file of any photographs. docs/style.md has examples and times.

Shapes: N photographs, B batch, H, W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from zerokara.core import schedules
from zerokara.core.compute import Compute, Precision
from zerokara.core.config import Range, UserError, flag, run_main, to_dict
from zerokara.core.data import DATASETS, ImageSet, hold_out
from zerokara.core.data.pictures import resize
from zerokara.core.data.sources import home, locate
from zerokara.core.distributed import World
from zerokara.core.divergence import is_finite
from zerokara.core.media import grid, to_uint8
from zerokara.core.probe import probe
from zerokara.core.programs import command, program_command
from zerokara.core.run import Run
from zerokara.core.run_config import configure
from zerokara.core.stopwatch import Stopwatch
from zerokara.generative.gan.config import Config as DataConfig
from zerokara.generative.gan.data import load_split
from zerokara.generative.style import names, network
from zerokara.generative.style.critic import Losses, PerceptualLoss, Weights
from zerokara.generative.style.network import StyleMetadata, StyleNetwork
from zerokara.generative.style.perceptual import BackboneOptions, LossNetwork, make_loss_network
from zerokara.generative.style.pictures import (
    activation_bytes,
    check_memory,
    fingerprint,
    read_image,
    sizes,
    to_pixels,
)

KIND = "fast_style"
CHANGEABLE = {"resume", "quiet", "threads"}
SPLIT_SEED = 0  # independent of the run's seed, so that all runs hold out the same photographs
NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class Config(BackboneOptions):
    """Configuration of the training of a style network."""

    # Names of older releases, accepted on the command line and in saved configs.
    RENAMED: ClassVar[Mapping[str, str]] = {
        "stylist_width": "style_network_width",
        "show_every_updates": "image_every_updates",
    }
    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_FAST
    REQUIRES: ClassVar = names.REQUIRES_FAST
    GROUPS: ClassVar = names.GROUPS_FAST
    COMMON: ClassVar = names.COMMON_FAST
    PRESET_SUMMARIES: ClassVar = names.PRESET_SUMMARIES_FAST

    preset: str = "fast"
    """Named set of defaults for all other options."""
    style: str = ""
    """Style image."""
    data: str = "flickr8k-1000"
    """Training photographs: a folder or zip file, by path or name. Names are those in --data-dir. The images may have
    any size."""
    data_dir: str = ""
    """Folder of named data sets (none: $ZEROKARA_DATA or ~/.cache/zerokara)."""
    name: str = ""
    """Folder under runs/ (none: made of the style's file name and the seed)."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of all random number generators."""
    image_size: Annotated[int, Range(32, 256)] = 256
    """Resize training photographs to this side, in pixels. The trained network accepts larger images."""
    style_size: Annotated[int, Range(0, 4096)] = 0
    """Longer side of the style image in pixels (0: twice --image-size). Larger values give larger brush strokes."""
    style_network_width: Annotated[float, Range(0.05, 4)] = 1.0
    """Multiplier on the channels of the style network."""
    updates: Count = 2_000
    """Number of updates to train for."""
    batch_size: Count = 4
    """Number of photographs per update."""
    learning_rate: Annotated[float, Range(0, low_open=True)] = 3e-3
    """Initial learning rate of Adam."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate schedule: constant, or cosine decay to a hundredth."""
    content_weight: NotNegative = 1.0
    """Weight of the content loss, the mean over the content layers."""
    style_weight: NotNegative = 50.0
    """Weight of the style loss, the mean over the style layers."""
    variation_weight: NotNegative = 5.0
    """Weight of the total variation loss, which smooths the result."""
    held_out_images: Count = 8
    """Number of photographs held out for evaluation and logged images."""
    resume: bool = False
    """Resume the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print only warnings and the closing message."""
    log_every_updates: Count = 20
    """Updates between logged metrics."""
    image_every_updates: Count = 200
    """Updates between evaluations on held-out photographs. They log images."""
    checkpoint_every_updates: Count = 100
    """Updates between checkpoints."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Precision of both networks. auto: the fastest in a short measurement."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads (0: one per core)."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {},
    # Johnson et al. 2016, section 4.1: layers of VGG-16, Adam 1e-3, batches of 4, two epochs of 80,000 photographs.
    "paper": {
        "pooling": "max",
        "learning_rate": 1e-3,
        "style_weight": 1_000.0,
        "variation_weight": 1.0,
        "content_layers": ("relu2_2",),
        "style_layers": ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        "schedule": "constant",
        "updates": 40_000,
    },
}


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
        style = read_image(Path(config.style).expanduser())
        max_side = config.style_size or 2 * config.image_size
        style = resize(style, sizes(style.shape[0], style.shape[1], max_side, 1)[0])
        folder = home(Path(config.data_dir) if config.data_dir else None)
        source = config.data if config.data in DATASETS else str(locate(config.data, folder) or config.data)
        data_config = DataConfig(
            data=source, data_dir=config.data_dir, image_size=(config.image_size,), grayscale=False
        )
        photographs, messages = load_split(data_config, "train")
        if len(photographs) < config.held_out_images + config.batch_size:
            raise UserError(
                f"{photographs.source} has {len(photographs):,} images, and {config.held_out_images} to hold out plus "
                f"{config.batch_size} for a batch are needed: give more, or lower {flag('held_out_images')}."
            )
        train, held_out = hold_out(photographs, config.held_out_images, SPLIT_SEED)
        return cls(style, train, held_out, tuple(messages))


class Training:
    """State of a training run, which checkpoints hold, and one update."""

    def __init__(self, config: Config, data: Data, loss_network: LossNetwork, compute: Compute, world: World) -> None:
        self.config, self.data, self.compute, self.world = config, data, compute, world
        device = compute.torch_device
        torch.manual_seed(config.seed)
        self.network = compute.module(StyleNetwork(config.style_network_width))
        world.broadcast(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.photographs = data.train.images.to(device)
        style = to_pixels(data.style).to(device)
        loss_network.on(compute).balance([style, self.pixels(data.train.images[: config.batch_size])])
        weights = Weights(content=config.content_weight, style=config.style_weight, variation=config.variation_weight)
        self.criterion = PerceptualLoss(loss_network, weights, style)
        self.updates = 0
        self.held_out_loss = float("nan")
        self.clock = Stopwatch()
        self._order = (-1, torch.empty(0), torch.empty(0))  # epoch, order of photographs, which to flip

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """Move uint8 photographs to the device and scale them to 0 to 1."""
        return images_BCHW.to(self.compute.torch_device).float() / 255

    def batch(self) -> Tensor:
        """Return this process's shard of the next batch (b, 3, H, W), from 0 to 1, with random horizontal flips."""
        size = self.config.batch_size
        epoch, batch = divmod(self.updates, len(self.photographs) // size)
        if self._order[0] != epoch:  # a function of seed and epoch, so it is not saved
            random = torch.Generator().manual_seed(self.config.seed * 7_919 + epoch)
            order = torch.randperm(len(self.photographs), generator=random)
            self._order = epoch, order, torch.rand(len(order), generator=random) < 0.5
        shard = slice(batch * size + self.world.rank, (batch + 1) * size, self.world.size)
        index, flipped = (x[shard].to(self.photographs.device) for x in self._order[1:])
        pixels = self.pixels(self.photographs[index])
        return torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)

    def losses(self, pixels_BCHW: Tensor) -> Losses:
        """Compute the losses of the stylized photographs (pixels from 0 to 1)."""
        with self.compute.autocast():
            stylized = self.network(self.compute.layout(pixels_BCHW)).float()
        return self.criterion.losses(stylized, self.criterion.content_features(pixels_BCHW))

    def update(self) -> Losses:
        """Do one Adam step on the next batch."""
        config = self.config
        if config.schedule == "cosine":
            rate = schedules.cosine(self.updates, config.learning_rate, 0.01 * config.learning_rate, 0, config.updates)
            self.optimizer.param_groups[0]["lr"] = rate
        losses = self.losses(self.batch())
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.world.mean_gradients(self.network.parameters())
        self.optimizer.step()
        self.updates += 1
        return losses

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], np.ndarray]:
        """Return the mean losses on the held-out photographs, and an image grid of photographs and results."""
        sums: dict[str, float] = {}
        grids = []
        for images in self.data.held_out.images.split(self.config.batch_size):
            pixels = self.pixels(images)
            for name, value in self.losses(pixels).scalars("held_out").items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(images) / len(self.data.held_out)
            stylized = network.stylize(self.network, self.compute, pixels)
            pairs = torch.stack([pixels, stylized], 1).flatten(0, 1)
            grids.append(self.compute.to_host(to_uint8(pairs)))
        self.held_out_loss = sums["held_out/loss"]
        return sums, grid(torch.cat(grids)[:16], columns=4)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "held_out_loss": self.held_out_loss,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.held_out_loss = state["updates"], state["held_out_loss"]
        self.clock.hours = state["hours"]


def train(config: Config, run: Run, data: Data, loss_network: LossNetwork, compute: Compute, world: World) -> str:
    """Train from the current update to the end of the run. Returns the closing message.

    Raises:
        UserError: an unreadable checkpoint, or divergence (NaN or Inf).
    """
    training = Training(config, data, loss_network, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    if not run.restore(latest, training.load_state_dict):
        run.image("style", 0, data.style)

    def save() -> None:
        if not is_finite(training.network):
            raise UserError(
                f"Training diverged at update {training.updates:,}: the weights contain NaN or Inf. The last good "
                f"checkpoint stays in {run.folder}: start a new run with a lower --learning-rate."
            )
        run.save(latest, training.state_dict())
        if world.is_main:
            metadata = StyleMetadata(
                style=Path(config.style).name,
                width=config.style_network_width,
                update=training.updates,
                data=data.train.source,
                command=command(),
            )
            metadata.save(run.path(StyleMetadata.FILE), training.network.state_dict())

    def due(every: int) -> bool:
        return training.updates % every == 0

    stopping = False
    while training.updates < config.updates and not stopping:
        losses = training.update()
        ended = training.updates == config.updates
        if due(config.log_every_updates):
            run.log(training.updates, {**losses.scalars("train"), "speed/hours": training.clock()})
            run.flush()
        fields = {"loss": losses.total.detach(), "style": losses.style.detach(), "held out": training.held_out_loss}
        run.progress(training.updates, config.updates, fields)
        if (due(config.image_every_updates) or ended) and world.is_main:
            held_out_losses, image = training.evaluate()
            run.log(training.updates, held_out_losses)
            run.image("held_out", training.updates, image)
        if due(config.checkpoint_every_updates) or ended:
            save()
        stopping = world.any(bool(run.stop_requested), compute.torch_device)
    if stopping and training.updates < config.updates:
        save()
        return (
            f"{run.stop_requested}: saved at update {training.updates:,} of {config.updates:,}; resume with: "
            f"{program_command('generative.fast_style')} --name {config.name} --resume"
        )
    run.hparams(to_dict(config), {"hparam/held_out_loss": training.held_out_loss})
    return (
        f"{Path(config.style).name}: trained for {training.updates:,} updates, held-out loss "
        f"{training.held_out_loss:.4g}; apply it with: {program_command('generative.stylise')} {run.folder} photo.jpg"
    )


def choose_compute(config: Config, data: Data, world: World) -> Compute:
    """Choose device and precision by measuring updates."""

    def train_step(candidate: Compute) -> Callable[[], object]:
        return Training(config, data, make_loss_network(config, config.seed), candidate, World()).update

    return probe(config, world, train_step, compile="off")


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


def default_name(config: Config) -> str:
    """Return the default run name: fast_style-wave-1 for wave.jpg, seed 1."""
    return f"{KIND}-{re.sub(r'[^A-Za-z0-9_.+=-]+', '_', Path(config.style).stem)}-{config.seed}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read config and images, check memory, train, print the closing message."""
    config = configure(
        Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE
    )
    world = World.from_env(config.device)
    if config.batch_size % world.size:
        raise UserError(f"{flag('batch_size')} {config.batch_size} is not divisible by {world.size} processes.")
    data = Data.load(config)
    loss_network = make_loss_network(config, config.seed)
    memory = check_fit(config, loss_network, world)
    with Run(
        config,
        kind=KIND,
        name=config.name,
        resume=config.resume,
        quiet=config.quiet,
        extra={"style": fingerprint(data.style)},
        world=world,
    ) as run:
        if run.extra["style"] != fingerprint(data.style):
            raise UserError(
                f"{config.style} is not the image that {run.folder} was started with: restore the old one, or start a "
                f"new run with another --name."
            )
        for message in (*data.messages, f"loss network: {loss_network.description}", memory):
            run.print(message)
        with run.signals():
            compute = run.compute(lambda: choose_compute(config, data, world), config.updates)
            run.close(train(config, run, data, loss_network, compute, world))
    world.close()


if __name__ == "__main__":
    run_main(main)
