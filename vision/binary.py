"""Binary: a network whose weights and activations are +1 or -1 learns to see.

    python -m vision.binary --data mnist

Courbariaux and Hubara et al. 2016, "Binarized Neural Networks", algorithm 1: gradients move latent weights of float32,
of which the network sees only the signs; sign has no gradient worth the name, so on the way back it is taken for
hard-tanh (the straight-through estimator, equation 4); after every step latent weights are clipped to [-1, 1], beyond
which no gradient would reach them. The paper has 0.96% test error on MNIST after 1,000 epochs, with three layers of
4,096 units; docs/experiments.md has what these settings reach, in minutes.

In the end the weights are written with one bit each, read back, and must predict the same, bit for bit.

Shapes: N images, B batch, b a part of it, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core import checkpoint, schedules
from core.augment import Augment
from core.compute import Compute
from core.config import UserError, entry, flag, program, to_dict
from core.configure import configure
from core.data import ImageSet
from core.distributed import World
from core.layers import clip_latent_
from core.probe import probe
from core.run import Run
from core.stopwatch import Stopwatch
from core.vitals import read_means
from vision.binary_config import PRESETS, Config
from vision.binary_network import BinaryNetwork, Card, read_packed, write_packed
from vision.binary_pictures import draw_filters, draw_straight_through, network_table
from vision.experiment import save_figure, stem, write_json
from vision.learner import Data, Epochs, load_split
from vision.pictures import draw_misread, pixels_of
from vision.scoring import Scores

KIND = "binary"
CHANGEABLE = {"resume", "quiet"}


def squared_hinge(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """The mean over images of the sum over classes of max(0, 1 - t y)^2, t being 1 for the label and -1 elsewhere."""
    target_BK = F.one_hot(label_B, logits_BK.shape[1]) * 2 - 1
    return F.relu(1 - target_BK * logits_BK).square().sum(1).mean()


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "squared_hinge": squared_hinge,
}


class Training(Epochs):
    """Everything that a checkpoint holds, and one update over it."""

    config: Config
    data: Data

    def __init__(self, config: Config, images: Data, compute: Compute, world: World) -> None:
        self.config, self.data, self.compute, self.world = config, images, compute, world
        channels, height, width = images.train.shape
        self.card = Card(
            network=config.network,
            units=config.units,
            layers=config.layers,
            width=config.width,
            classes=images.train.classes,
            channels=channels,
            image_size=(height, width),
            data=images.train.source,
            command=f"{program()} {shlex.join(sys.argv[1:])}".strip(),
        )
        torch.manual_seed(config.seed)
        network = self.card.build()
        network.mean_C.copy_(images.mean_C)
        network.std_C.copy_(images.std_C)
        self.network = compute.module(network)
        world.broadcast(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, fused=True)
        self.generator = torch.Generator(compute.torch_device).manual_seed(config.seed * 1_000_003 + world.rank)
        self.augment = Augment(
            rotation_degrees=config.rotation_degrees,
            shift=config.shift,
            scale=config.scale,
            shear_degrees=config.shear_degrees,
            crop_pixels=config.crop_pixels,
            flip=config.flip,
        )
        self.images = images.train.images.to(compute.torch_device)
        self.labels = images.train.labels.to(compute.torch_device)
        self.updates = 0
        self.clock = Stopwatch()
        # Sums since `read_metrics`: loss, right answers, updates. They stay on the device.
        self._sums = torch.zeros(3, device=compute.torch_device)

    @property
    def learning_rate(self) -> float:
        """The step size of the next update."""
        return schedules.cosine(self.updates, self.config.learning_rate, 0.0, 0, self.total_updates)

    def update(self, index_B: Tensor) -> None:
        """Algorithm 1: gradients by way of the signs, a step of the latent weights, and their clipping."""
        index_b = index_B[self.world.rank :: self.world.size].to(self.compute.torch_device)
        pixels, label_b = self.images[index_b].float() * (1 / 255), self.labels[index_b]
        x = self.augment(pixels, self.generator, index_B=index_b, epoch=self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        with self.compute.autocast():
            logits_bK = self.network(x)
        loss = LOSSES[self.config.loss](logits_bK, label_b)
        loss.backward()
        self.world.mean_gradients(self.network.parameters())
        self.optimizer.step()
        clip_latent_(self.network)
        right = (logits_bK.detach().argmax(1) == label_b).float().mean()
        self._sums += torch.stack([loss.detach(), right, torch.ones_like(right)])
        self.updates += 1

    def logits(self, network: BinaryNetwork, images: ImageSet) -> Tensor:
        """What a network says to images (N, K), float32 on the CPU; each apart from its batch-mates."""
        training = network.training
        network.eval()
        batches = images.images.split(self.config.eval_batch_size)
        with torch.no_grad(), self.compute.autocast():
            found = [network(pixels.to(self.compute.torch_device).float() * (1 / 255)) for pixels in batches]
        network.train(training)
        return self.compute.host(torch.cat(found))

    def score(self, images: ImageSet) -> Scores:
        """How well the network does on images that it does not learn from."""
        return Scores(self.logits(self.network, images).softmax(1), images.labels)

    def read_metrics(self) -> dict[str, Tensor]:
        """Means since the last call, as tensors on the device."""
        return read_means(self._sums, ("train/loss", "train/accuracy"))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": checkpoint.rng_state(),
            "sums": self._sums,
            "updates": self.updates,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        checkpoint.set_rng_state(state["rng"])
        self._sums.copy_(state["sums"])
        self.updates, self.clock.hours = state["updates"], state["hours"]


def train(config: Config, run: Run, images: Data, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, a loss that is no number any more.
    """
    training = Training(config, images, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    run.restore(latest, lambda state: training.load_state_dict(state["training"]))
    run.say(
        f"{training.card.data}: {len(images.train):,} images to learn from, {len(images.validation):,} to choose on"
    )
    run.say(network_table(training.network))

    def save() -> None:
        run.save(latest, {"training": training.state_dict()})

    size, error = config.batch_size, float("nan")
    began, first = time.perf_counter(), training.updates
    order = training.epoch_order()
    stop = False
    while training.updates < training.total_updates and not stop:
        place = training.updates % training.updates_per_epoch * size
        if place == 0:
            order = training.epoch_order()
        training.update(order[place : place + size])
        ended = training.updates % training.updates_per_epoch == 0
        if training.updates % config.log_every_updates == 0 or ended:
            rate = (training.updates - first) * size / (time.perf_counter() - began)
            scalars: dict[str, Any] = {
                **training.read_metrics(),
                "speed/images_per_s": rate,
                "speed/hours": training.clock(),
            }
            run.log(training.updates, scalars)
            epoch = training.updates / training.updates_per_epoch
            fields = {"loss": scalars["train/loss"], "accuracy": scalars["train/accuracy"], "val error": error}
            run.progress(
                training.updates, training.total_updates, {"epoch": round(epoch, 1), **fields, "images/s": rate}
            )
            if not bool(torch.as_tensor(scalars["train/loss"]).isfinite()):
                raise UserError(
                    f"The loss is no number any more at update {training.updates:,}: the last good checkpoint stays in "
                    f"{run.folder}; start again with a lower {flag('learning_rate')}."
                )
        if ended:
            error = validate(training, run)
            began, first = time.perf_counter(), training.updates
        if ended or training.updates % config.checkpoint_every_updates == 0:
            save()
        stop = world.any(bool(run.stop_requested), compute.torch_device)
    if stop and training.updates < training.total_updates:
        run.say(f"{run.stop_requested}: saving")
        save()
        return (
            f"{config.data} at update {training.updates:,} of {training.total_updates:,}; go on with: "
            f"python -m vision.binary --name {config.name} --resume"
        )
    return finish(training, run) if world.is_main else ""


def validate(training: Training, run: Run) -> float:
    """Score the validation images, and keep what the latent weights look like. The error."""
    scores = training.score(training.data.validation)
    run.log(training.updates, {"val/error": scores.error, "val/loss": scores.loss})
    for name, layer in training.network.binary_layers().items():
        run.histogram(f"latent/{name}", training.updates, layer.weight)
    return scores.error


def finish(training: Training, run: Run) -> str:
    """Pack, read back and compare; read the test set once; the pictures and result.json. The closing sentence.

    Raises:
        UserError: the file that was read back does not predict the same.
    """
    config, validation = training.config, training.data.validation
    logits_NK = training.logits(training.network, validation)
    figures = {"validation_error": Scores(logits_NK.softmax(1), validation.labels).error}
    result_path = run.path("result.json")
    test = load_split(config.for_data(), "test") if config.test else None
    if test is not None and result_path.exists():
        figures |= json.loads(result_path.read_text())["figures"]  # a finished run does not read the test set again
    elif test is not None:
        scores = training.score(test)
        figures["test_error"] = scores.error
        misread = draw_misread(test, scores, training.card.classes)
        if misread is not None:
            run.image("misread", training.updates, pixels_of(misread))

    path = run.path("packed.safetensors")
    sizes = write_packed(path, training.network, dataclasses.replace(training.card, figures=figures))
    again, _ = read_packed(path)
    same = torch.equal(training.logits(training.compute.module(again), validation), logits_NK)
    if not same:
        raise UserError(f"{path} does not predict what the network does that was written: please report it.")
    few = validation.take(slice(0, 500)).images.to(training.compute.torch_device).float() * (1 / 255)
    save_figure(draw_straight_through(training.network, few), run.path("straight_through.png"))
    save_figure(draw_filters(training.network), run.path("filters.png"))
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in figures.items()})
    content = {
        "figures": figures,
        "bytes": {**dataclasses.asdict(sizes), "ratio": sizes.ratio},
        "protocol": {
            "train_images": len(training.data.train),
            "validation_images": len(validation),
            "seed": config.seed,
            "epochs": config.epochs,
            "hours": training.clock(),
        },
    }
    write_json(result_path, content)
    errors = ", ".join(f"{name.replace('_', ' ')} {value:.2%}" for name, value in figures.items())
    return (
        f"{config.data}: {errors} after {config.epochs} epochs; weights of {sizes.float_bytes:,} bytes packed into "
        f"{sizes.packed_bytes:,} ({sizes.ratio:.1f} times smaller), read back and found to predict the same: {path}"
    )


def choose_compute(config: Config, images: Data, world: World) -> Compute:
    """Measure updates on the first images."""
    first = torch.arange(min(config.batch_size // world.size, len(images.train)))
    few = dataclasses.replace(images, train=images.train.take(first))

    def train_step(candidate: Compute) -> Callable[[], object]:
        training = Training(config, few, candidate, World())
        return lambda: training.update(first)

    return probe(config, world, train_step, compile="off")


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, run, data, compute, loop, closing line."""
    config = configure(
        Config,
        PRESETS,
        argv,
        __doc__ or "",
        kind=KIND,
        default_name=lambda config: f"{KIND}-{stem(config.data)}-{config.network}-{config.seed}",
        changeable=CHANGEABLE,
    )
    world = World.from_env(config.device)
    if config.batch_size % world.size:
        raise UserError(f"{flag('batch_size')} {config.batch_size} cannot be shared by {world.size} processes evenly.")
    images = Data.load(config.for_data())
    with Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run:
        compute = run.compute(lambda: choose_compute(config, images, world), 1)
        with run.signals():
            run.close(train(config, run, images, compute, world))
    world.close()


if __name__ == "__main__":
    entry(main)
