"""Compare zerokara's DCGAN with PyTorch's tutorial (pytorch/examples, dcgan), reimplemented here. Prints JSON.

    python -m benchmarks.dcgan_against_tutorial speed
    python -m benchmarks.dcgan_against_tutorial quality --data mnist --classifier runs/<classifier> --updates 8000

The tutorial uses eager float32, channels first, sigmoid and BCELoss, and Adam with learning rate 2e-4 and beta1 .5.
Real and generated images pass through the discriminator separately, each with its own backward pass. The generator's
step also computes gradients of the discriminator, which are discarded. Three losses are read at every batch.

`speed`: images/s of one step of each network, for 64x64 RGB with 3,576,704 and 2,765,568 parameters, batches of 64, on
random images. Both sides are timed alternately, and the medians are compared. zerokara uses the preset `fast` with
latent vectors of size 100 and the tutorial's channels; its time includes the averaging of weights.

`quality`: both train for the same number of updates with batches of 64 on the same images at 32x32, with several seeds,
and generate 10,000 images. The result is the Fréchet classifier distance (FCD) to the test set. The tutorial samples in
training mode; here also in evaluation mode, and the smaller distance counts. Runs are saved in runs/ and resumed if
interrupted. Unknown arguments are passed to generative.dcgan: --preset, --loss, --precision and others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.result import print_result
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.compute import TrainStep
from zerokara.core.config import UserError, run_main
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.training_program import choose_compute
from zerokara.generative.dcgan import make_learner, probe_step, update
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.data import Data, load_split
from zerokara.generative.gan.own_defaults import is_own
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.distances import frechet_distance
from zerokara.generative.scoring.feature_extractor import FeatureExtractor

BATCH = 64
LATENT = 100
SAVE_EVERY_UPDATES = 500
KIND = "tutorial"
SAMPLE_SEED = 0
FOUND = (
    "ratio_last",
    "ratio_best",
    "last_over_best",
)  # to the tutorial's smaller distance; to our best evaluation


# ---- the tutorial


def init_weights(module: nn.Module) -> None:
    """Initialize weights from N(0, .02) and BatchNorm gains from N(1, .02), as the tutorial does."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def tutorial_generator(channels: int, side: int) -> nn.Sequential:
    """Generator that doubles 4x4 feature maps up to `side`, 32 or 64 pixels."""
    widths = [64 * 2**place for place in range(side.bit_length() - 3)][::-1]
    layers: list[nn.Module] = [nn.ConvTranspose2d(LATENT, widths[0], 4, 1, 0, bias=False)]
    for into, out in itertools.pairwise(widths):
        layers += [nn.BatchNorm2d(into), nn.ReLU(True), nn.ConvTranspose2d(into, out, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(64), nn.ReLU(True), nn.ConvTranspose2d(64, channels, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers)


def tutorial_discriminator(channels: int, side: int) -> nn.Sequential:
    """Discriminator that halves `side` pixels down to 4x4. Returns a probability (B, 1, 1, 1)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    width = 64
    for _ in range(side.bit_length() - 4):
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, True)]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 0, bias=False), nn.Sigmoid())


class Tutorial:
    """Both networks of the tutorial and one iteration of its loop, for images (C, side, side)."""

    def __init__(self, channels: int, side: int, seed: int) -> None:
        """Initialize the weights.

        Raises:
            UserError: another side than 32 or 64.
        """
        if side not in (32, 64):
            raise UserError(f"the tutorial's networks support sides of 32 or 64, got {side}: give --image-size 32.")
        torch.manual_seed(seed)
        self.generator = tutorial_generator(channels, side).apply(init_weights)
        self.discriminator = tutorial_discriminator(channels, side).apply(init_weights)
        self.criterion = nn.BCELoss()
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.random = torch.Generator().manual_seed(seed)
        self.updates = 0
        self.losses = (0.0, 0.0, 0.0)
        self.seconds = 0.0  # of training, counted by `train_tutorial`

    def update(self, pixels_BCHW: Tensor) -> None:
        """Update the discriminator and the generator with real images uint8."""
        real = pixels_BCHW.float() / 127.5 - 1
        self.discriminator.zero_grad()
        label_B = torch.ones(len(real))
        real_loss = self.criterion(self.discriminator(real).view(-1), label_B)
        real_loss.backward()
        noise = torch.randn(len(real), LATENT, 1, 1, generator=self.random)
        fake = self.generator(noise)
        label_B.fill_(0.0)
        fake_loss = self.criterion(self.discriminator(fake.detach()).view(-1), label_B)
        fake_loss.backward()
        self.discriminator_optimizer.step()
        self.generator.zero_grad()
        label_B.fill_(1.0)
        loss = self.criterion(self.discriminator(fake).view(-1), label_B)
        loss.backward()
        self.generator_optimizer.step()
        self.losses = real_loss.item(), fake_loss.item(), loss.item()
        self.updates += 1

    @torch.no_grad()
    def sample(self, number: int, *, training: bool) -> Tensor:
        """Generate images (number, C, side, side) uint8 from fixed latent vectors, in batches of 64."""
        z_NZ = torch.randn(number, LATENT, 1, 1, generator=torch.Generator().manual_seed(SAMPLE_SEED))
        buffers = {name: buffer.clone() for name, buffer in self.generator.named_buffers()}
        self.generator.train(training)
        images = [((self.generator(z) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for z in z_NZ.split(BATCH)]
        self.generator.train()
        self.generator.load_state_dict(buffers, strict=False)  # sampling must not change BatchNorm's running statistics
        return torch.cat(images)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        parts = ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer")
        states = {name: getattr(self, name).state_dict() for name in parts}
        return {**states, "random": self.random.get_state(), "updates": self.updates, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        for name in ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.random.set_state(state["random"])
        self.updates, self.seconds = state["updates"], state.get("seconds", 0.0)


# ---- speed


def speed(arguments: argparse.Namespace, extra_args: list[str]) -> dict[str, Any]:
    """Measure images/s of both sides alternately."""
    alike = [
        "--latent-dim",
        str(LATENT),
        "--batch-size",
        str(BATCH),
        "--generator-width",
        "1",
        "--discriminator-width",
        "1",
    ]
    config = parse(Config, PRESETS, [*alike, *extra_args], __doc__ or "")
    side = arguments.image_size
    pixels = torch.randint(0, 256, (10 * BATCH, 3, side, side), dtype=torch.uint8)
    images = ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), ("any",), "random pixels")
    data = Data(images, images.take(slice(0, 100)), ())
    compute = choose_compute(config, World(), TrainStep(partial(probe_step, config, data), BATCH))
    compute.apply()
    learner = make_learner(config, images.shape, 1, compute, World())
    tutorial = Tutorial(3, side, seed=1)
    label_B = torch.zeros(BATCH, dtype=torch.int64)
    on_device = pixels.to(compute.torch_device)

    def batch(of: Tensor, number: int) -> Tensor:
        return of[number % 10 * BATCH :][:BATCH]

    sides: dict[str, Callable[[int], None]] = {
        "ours": lambda number: update(learner, batch(on_device, number), label_B.to(compute.torch_device)),
        "tutorial": lambda number: tutorial.update(batch(pixels, number)),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for iteration in range(arguments.repeats + 1):
        for name, train_step in sides.items():
            began = time.perf_counter()
            for number in range(arguments.updates):
                train_step(number)
            if name == "ours":
                learner.read_metrics()["train/d_loss"].item()  # synchronizes with the device
            if iteration:  # the first iteration is a warm-up
                rates[name].append(arguments.updates * BATCH / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "what": f"images/s at {side}x{side}, batches of {BATCH}, a step of each network for each batch",
        "parameters": {
            name: [sum(p.numel() for p in network.parameters()) for network in networks]
            for name, networks in {
                "ours": (learner.generator, learner.discriminator),
                "tutorial": (tutorial.generator, tutorial.discriminator),
            }.items()
        },
        "threads": torch.get_num_threads(),
        "compute": compute.reason,
        "images_per_s": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "median": {name: round(value, 1) for name, value in medians.items()},
        "ratio": round(medians["ours"] / medians["tutorial"], 2),
    }


# ---- quality


def quality(arguments: argparse.Namespace, extra_args: list[str]) -> dict[str, Any]:
    """Measure the FCD of both sides after the same number of images, for every seed."""
    common = ["--data", arguments.data, "--image-size", str(arguments.image_size), "--updates", str(arguments.updates)]
    common += ["--batch-size", str(BATCH), *(["--classifier", arguments.classifier] if arguments.classifier else [])]
    config = parse(Config, PRESETS, [*common, *extra_args], __doc__ or "")
    refuse_own_files(config)
    data = Data.load(config)
    extractor = FeatureExtractor.choose(config, data.train.shape)
    if extractor.metadata is None:
        raise UserError(f"no classifier is known for {arguments.data}: add --classifier runs/<classifier>.")
    test = load_split(config, "test")[0].images[: arguments.images]
    real = extractor.extract(test)

    def fcd(images: Tensor) -> float:
        return frechet_distance(real, extractor.extract(images))

    results = []
    for seed in arguments.seeds:
        ours = run_ours(f"quality-{Path(arguments.data).stem}-ours-{seed}", [*common, "--seed", str(seed), *extra_args])
        theirs = train_tutorial(f"quality-{Path(arguments.data).stem}-tutorial-{seed}", data, arguments.updates, seed)
        found: dict[str, Any] = {"seed": seed}
        for which in ("last", "best"):
            sampler = Sampler.load(ours, which)
            z_NZ, label_N = sampler.latents(arguments.images, SAMPLE_SEED), sampler.labels(arguments.images)
            found[f"ours_{which}"] = fcd(sampler.generate(z_NZ, label_N))
        for mode, training in (("training", True), ("evaluation", False)):
            found[f"tutorial_in_{mode}_mode"] = fcd(theirs.sample(arguments.images, training=training))
        minimum = min(found["tutorial_in_training_mode"], found["tutorial_in_evaluation_mode"])
        found |= {"ratio_last": found["ours_last"] / minimum, "ratio_best": found["ours_best"] / minimum}
        found["last_over_best"] = found["ours_last"] / found["ours_best"]
        results.append(found)
        print(json.dumps(found), file=sys.stderr)
    return {
        "what": f"FCD of {arguments.images:,} generated images to {len(test):,} test images",
        "features": extractor.protocol,
        "floor": fcd(data.train.take(order(len(data.train), 0)[: arguments.images]).images),
        "images_seen": arguments.updates * BATCH,
        "training_images": len(data.train),
        "words": extra_args,
        "seeds": results,
        "median": {name: statistics.median(one[name] for one in results) for name in FOUND},
    }


def refuse_own_files(config: Config) -> None:
    """Refuse pictures of one's own, if a run would choose a setting of its own, such as the image size.

    The tutorial, and the real images of the comparison, would be without these choices.

    Raises:
        UserError: --data is the path of a folder, a zip file or an LSUN database, and a setting is left to choose.
    """
    if not is_own(config):
        return
    chosen = {
        "--image-size": not config.image_size,
        "--grayscale or --no-grayscale": config.grayscale is None,
        "--background": config.background == "auto",
        "--held-out-images": not config.held_out_images,
        "--no-augment-few-images": config.augment_few_images and not (config.diffaugment or config.ada),
    }
    if missing := [option for option, is_chosen in chosen.items() if is_chosen]:
        raise UserError(
            f"--data {config.data} is a path, and a run on pictures of one's own chooses settings that the tutorial "
            f"would not have: give {', '.join(missing)}."
        )


def run_ours(name: str, extra_args: list[str]) -> Path:
    """Start a run from the command line, or resume it. Returns its folder."""
    folder = Path("runs") / name
    resume_args = ["--resume"] if (folder / "config.json").exists() else []
    command = [sys.executable, "-m", "zerokara.generative.dcgan", "--name", name, *extra_args, *resume_args]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def make_tutorial(shape: tuple[int, int, int], seed: int) -> Tutorial:
    """Create the tutorial's networks for images (C, H, W).

    Raises:
        UserError: its networks do not support images of this size.
    """
    channels, side, width = shape
    if side != width:
        raise UserError(f"the tutorial's networks require square images, got {side}x{width}: give --image-size 32.")
    return Tutorial(channels, side, seed)


def train_tutorial(name: str, data: Data, updates: float, seed: int, seconds: float = math.inf) -> Tutorial:
    """Train the tutorial up to this number of updates or of seconds, resuming from an earlier checkpoint.

    Loading data and saving checkpoints do not count, so that the tutorial has at least the time that it is given.
    """
    path = Path("runs") / name / "checkpoint-0.pt"
    tutorial = make_tutorial(data.train.shape, seed)
    if path.exists():
        tutorial.load_state_dict(checkpoint.load(path, KIND))
    per_epoch = len(data.train) // BATCH
    epoch, order_N = -1, torch.empty(0, dtype=torch.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    while tutorial.updates < updates and tutorial.seconds < seconds:
        began = time.perf_counter()
        now, place = divmod(tutorial.updates, per_epoch)
        if now != epoch:
            epoch, order_N = now, order(len(data.train), seed * 7_919 + now)
        tutorial.update(data.train.images[order_N[place * BATCH :][:BATCH]])
        tutorial.seconds += time.perf_counter() - began
        finished = tutorial.updates >= updates or tutorial.seconds >= seconds
        if tutorial.updates % SAVE_EVERY_UPDATES == 0 or finished:
            checkpoint.save(path, tutorial.state_dict(), KIND)
            losses = ", ".join(f"{loss:.3f}" for loss in tutorial.losses)
            print(f"{name}: {tutorial.updates:,} updates, {tutorial.seconds:,.0f} s, losses {losses}", file=sys.stderr)
    return tutorial


def order(number: int, seed: int) -> Tensor:
    """Return a random permutation of the numbers below `number`, determined by the seed."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, run the measurement, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    fast = kinds.add_parser("speed", help="measure images/s")
    fast.add_argument("--image-size", type=int, default=64, help="side in pixels")
    fast.add_argument("--updates", type=int, default=20, help="updates per timed interval")
    fast.add_argument("--repeats", type=int, default=5, help="timed intervals per side")
    good = kinds.add_parser("quality", help="measure the FCD after the same number of updates")
    good.add_argument("--data", default="mnist", help="data set, as in generative.dcgan")
    good.add_argument("--image-size", type=int, default=32, help="side in pixels")
    good.add_argument("--classifier", default="", help="classifier for the FCD: run folder, file, or zoo name")
    good.add_argument("--updates", type=int, default=8_000, help=f"updates with batches of {BATCH}")
    good.add_argument("--images", type=int, default=10_000, help="generated images")
    good.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments, extra_args = parser.parse_known_args(argv)
    measure = speed if arguments.what == "speed" else quality
    print_result(measure(arguments, extra_args))


if __name__ == "__main__":
    run_main(main)
