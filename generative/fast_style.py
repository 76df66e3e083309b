"""Fast style: a network learns to paint in one style, and then does it at a glance.

    python -m generative.fast_style --style wave.jpg --data photographs.zip
    python -m generative.stylise runs/<name> photo.jpg

Johnson et al. 2016, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution": the loss of
generative.style_transfer, of whatever the network makes of a photograph, teaches the network
(generative/style/network.py) in the place of pixels. It learns from a folder or zip of photographs of any kind.
docs/style.md has pictures and times.

Shapes: N photographs, B batch, H, W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from zerokara.core import schedules
from zerokara.core.compute import Compute, Precision
from zerokara.core.config import Range, UserError, flag, run_main, to_dict
from zerokara.core.data import DATASETS, ImageSet, hold_out
from zerokara.core.data.sources import home, locate
from zerokara.core.distributed import World
from zerokara.core.divergence import is_finite
from zerokara.core.media import grid
from zerokara.core.probe import probe
from zerokara.core.programs import command, program_command
from zerokara.core.run import Run
from zerokara.core.run_config import configure
from zerokara.core.stopwatch import Stopwatch
from zerokara.generative.gan.config import Config as DataConfig
from zerokara.generative.gan.data import load_split
from zerokara.generative.style import network
from zerokara.generative.style.critic import Critic, Losses, Weights
from zerokara.generative.style.network import MODEL_FILE, StyleMetadata, StyleNetwork
from zerokara.generative.style.perceptual import BackboneOptions, Eye, make_eye
from zerokara.generative.style.pictures import (
    check_memory,
    fingerprint,
    kept_bytes,
    read_picture,
    resized,
    sizes,
    to_pixels,
)

KIND = "fast_style"
CHANGEABLE = {"resume", "quiet", "threads"}
SPLIT_SEED = 0  # the same photographs are held out whatever the run's seed
NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]


@dataclass(frozen=True, kw_only=True)
class Config(BackboneOptions):
    """A network that learns one style."""

    preset: str = "fast"
    """Named set of defaults for all that follows."""
    style: str = ""
    """The picture whose style is learnt."""
    data: str = "flickr8k-1000"
    """Photographs to learn from: a folder or zip of pictures of any size, or the name of one in --data-dir."""
    data_dir: str = ""
    """Where named data lie; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    name: str = ""
    """Folder under runs/; empty: made of the style and the seed."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of everything that is random."""
    image_size: Annotated[int, Range(32, 256)] = 256
    """Side to which photographs are brought, in pixels; larger ones can be painted afterwards."""
    style_size: Annotated[int, Range(0, 4096)] = 0
    """Longer side of the style picture in pixels; 0: twice --image-size. Larger makes larger strokes."""
    style_network_width: Annotated[float, Range(0.05, 4)] = 1.0
    """Factor on the channels of the network that learns."""
    updates: Count = 2_000
    """Length of the run."""
    batch_size: Count = 4
    """Photographs in an update."""
    learning_rate: Annotated[float, Range(0, low_open=True)] = 3e-3
    """Step size of Adam at the start."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the step size goes on: as it is, or down to a hundredth."""
    content_weight: NotNegative = 1.0
    """Weight of the content layers' mean loss."""
    style_weight: NotNegative = 50.0
    """Weight of the style layers' mean loss."""
    variation_weight: NotNegative = 5.0
    """Weight of total variation, which smooths."""
    held_out_images: Count = 8
    """Photographs that are not learnt from, and are shown."""
    resume: bool = False
    """Go on with the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print nothing but warnings and the closing line."""
    log_every_updates: Count = 20
    """Updates between lines of metrics."""
    image_every_updates: Count = 200
    """Updates between looks at the held-out photographs."""
    checkpoint_every_updates: Count = 100
    """Updates between checkpoints."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of both networks; auto: what a short measurement finds fastest."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {},
    # Section 4.1: VGG-16, its layers, Adam 1e-3, batches of 4, two passes over 80,000 photographs.
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
    """The style picture (H, W, 3) uint8, photographs to learn from, and photographs to look at."""

    style: np.ndarray
    train: ImageSet
    held_out: ImageSet
    messages: tuple[str, ...]

    @classmethod
    def load(cls, config: Config) -> Data:
        """Read all pictures.

        Raises:
            UserError: no style was named, data that are not there, or too few.
        """
        if not config.style:
            raise UserError("No style was named: give its picture, as in --style wave.jpg.")
        style = read_picture(Path(config.style).expanduser())
        longest = config.style_size or 2 * config.image_size
        style = resized(style, sizes(style.shape[0], style.shape[1], longest, 1)[0])
        folder = home(Path(config.data_dir) if config.data_dir else None)
        place = config.data if config.data in DATASETS else str(locate(config.data, folder) or config.data)
        asked = DataConfig(data=place, data_dir=config.data_dir, image_size=(config.image_size,), grayscale=False)
        photographs, messages = load_split(asked, "train")
        if len(photographs) < config.held_out_images + config.batch_size:
            raise UserError(
                f"{photographs.source} has {len(photographs):,} pictures, and {config.held_out_images} to hold out and "
                f"{config.batch_size} for a batch are needed: give more, or lower {flag('held_out_images')}."
            )
        train, held_out = hold_out(photographs, config.held_out_images, SPLIT_SEED)
        return cls(style, train, held_out, tuple(messages))


class Training:
    """Everything that a checkpoint holds, and one update over it."""

    def __init__(self, config: Config, data: Data, eye: Eye, compute: Compute, world: World) -> None:
        self.config, self.data, self.compute, self.world = config, data, compute, world
        device = compute.torch_device
        torch.manual_seed(config.seed)
        self.network = compute.module(StyleNetwork(config.style_network_width))
        world.broadcast(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.photographs = data.train.images.to(device)
        style = to_pixels(data.style).to(device)
        eye.on(compute).balance([style, self.pixels(data.train.images[: config.batch_size])])
        weights = Weights(content=config.content_weight, style=config.style_weight, variation=config.variation_weight)
        self.critic = Critic(eye, weights, style)
        self.updates = 0
        self.held_out_loss = float("nan")
        self.clock = Stopwatch()
        self._order = (-1, torch.empty(0), torch.empty(0))  # epoch, its order of photographs, which ones are mirrored

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """Photographs uint8 as numbers of 0 to 1 on the device."""
        return images_BCHW.to(self.compute.torch_device).float() / 255

    def batch(self) -> Tensor:
        """This process's share of the next photographs (b, 3, H, W) of 0 to 1, every other one mirrored by chance."""
        size = self.config.batch_size
        epoch, place = divmod(self.updates, len(self.photographs) // size)
        if self._order[0] != epoch:  # a function of seed and epoch, so there is nothing to save
            random = torch.Generator().manual_seed(self.config.seed * 7_919 + epoch)
            order = torch.randperm(len(self.photographs), generator=random)
            self._order = epoch, order, torch.rand(len(order), generator=random) < 0.5
        mine = slice(place * size + self.world.rank, (place + 1) * size, self.world.size)
        index, mirrored = (x[mine].to(self.photographs.device) for x in self._order[1:])
        pixels = self.pixels(self.photographs[index])
        return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)

    def judged(self, pixels_BCHW: Tensor) -> Losses:
        """The loss of what the network makes of photographs of 0 to 1."""
        with self.compute.autocast():
            painted = self.network(self.compute.layout(pixels_BCHW)).float()
        return self.critic.judge(painted, self.critic.content_of(pixels_BCHW))

    def update(self) -> Losses:
        """One step of Adam on the next photographs."""
        config = self.config
        if config.schedule == "cosine":
            rate = schedules.cosine(self.updates, config.learning_rate, 0.01 * config.learning_rate, 0, config.updates)
            self.optimizer.param_groups[0]["lr"] = rate
        losses = self.judged(self.batch())
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.world.mean_gradients(self.network.parameters())
        self.optimizer.step()
        self.updates += 1
        return losses

    @torch.no_grad()
    def look(self) -> tuple[dict[str, float], np.ndarray]:
        """The mean losses of the held-out photographs, and these beside what is made of them."""
        sums: dict[str, float] = {}
        shown = []
        for images in self.data.held_out.images.split(self.config.batch_size):
            pixels = self.pixels(images)
            for name, value in self.judged(pixels).scalars("held_out").items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(images) / len(self.data.held_out)
            painted = network.paint(self.network, self.compute, pixels)
            both = torch.stack([pixels, painted], 1).flatten(0, 1)
            shown.append(self.compute.to_host((both * 255).round().to(torch.uint8)))
        self.held_out_loss = sums["held_out/loss"]
        return sums, grid(torch.cat(shown)[:16], columns=4)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "held_out_loss": self.held_out_loss,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.held_out_loss = state["updates"], state["held_out_loss"]
        self.clock.hours = state["hours"]


def train(config: Config, run: Run, data: Data, eye: Eye, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, weights that are no numbers any more.
    """
    training = Training(config, data, eye, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    if not run.restore(latest, training.load_state_dict):
        run.image("style", 0, data.style)

    def save() -> None:
        if not is_finite(training.network):
            raise UserError(
                f"The weights are no numbers any more at update {training.updates:,}; the last good checkpoint stays "
                f"in {run.folder}: start again with a lower --learning-rate."
            )
        run.save(latest, training.state_dict())
        if world.is_main:
            metadata = StyleMetadata(
                style=Path(config.style).name,
                width=config.style_network_width,
                update=training.updates,
                command=command(),
            )
            network.save(run.path(MODEL_FILE), training.network, metadata)

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
            found, picture = training.look()
            run.log(training.updates, found)
            run.image("held_out", training.updates, picture)
        if due(config.checkpoint_every_updates) or ended:
            save()
        stopping = world.any(bool(run.stop_requested), compute.torch_device)
    if stopping and training.updates < config.updates:
        save()
        return (
            f"{run.stop_requested}: saved at update {training.updates:,} of {config.updates:,}; go on with: "
            f"{program_command('generative.fast_style')} --name {config.name} --resume"
        )
    run.hparams(to_dict(config), {"hparam/held_out_loss": training.held_out_loss})
    return (
        f"{Path(config.style).name} learnt in {training.updates:,} updates: held-out loss "
        f"{training.held_out_loss:.4g}; paint with: {program_command('generative.stylise')} {run.folder} photo.jpg"
    )


def choose_compute(config: Config, data: Data, world: World) -> Compute:
    """Measure updates."""

    def train_step(candidate: Compute) -> Callable[[], object]:
        return Training(config, data, make_eye(config, config.seed), candidate, World()).update

    return probe(config, world, train_step, compile="off")


def check_fit(config: Config, eye: Eye, world: World) -> str:
    """What memory an update takes, in words.

    Raises:
        UserError: more than there is.
    """
    side = config.image_size
    shape = (config.batch_size // world.size, 3, side, side)
    needed = {
        f"what {eye.backbone.name} sees": kept_bytes(eye, shape),
        "the network that learns": kept_bytes(StyleNetwork(config.style_network_width), shape),
    }
    instead = f"lower {flag('batch_size')}, or {flag('image_size')} to {{side}}"
    return check_memory(needed, config.device, (side, side), instead)


def default_name(config: Config) -> str:
    """fast_style-wave-1 for wave.jpg, seed 1."""
    return f"{KIND}-{re.sub(r'[^A-Za-z0-9_.+=-]+', '_', Path(config.style).stem)}-{config.seed}"


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, pictures, eye, memory, run, compute, updates, closing line."""
    config = configure(
        Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE
    )
    world = World.from_env(config.device)
    if config.batch_size % world.size:
        raise UserError(f"{flag('batch_size')} {config.batch_size} cannot be shared by {world.size} processes evenly.")
    data = Data.load(config)
    eye = make_eye(config, config.seed)
    memory = check_fit(config, eye, world)
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
                f"{config.style} is another picture than when {run.folder} began: put the old one back, or start "
                f"afresh with another --name."
            )
        for remark in (*data.messages, f"eye: {eye.words}", memory):
            run.print(remark)
        with run.signals():
            compute = run.compute(lambda: choose_compute(config, data, world), config.updates)
            run.close(train(config, run, data, eye, compute, world))
    world.close()


if __name__ == "__main__":
    run_main(main)
