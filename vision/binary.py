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
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core import schedules
from zerokara.core.augment import Augment
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, run_main, to_dict
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.layers import clip_latent_
from zerokara.core.programs import command
from zerokara.core.report import figure_pixels, write_figure, write_json
from zerokara.core.run import Run
from zerokara.core.run_config import configure, stem
from zerokara.vision.binarization.config import PRESETS, Config
from zerokara.vision.binarization.network import BinaryMetadata, BinaryNetwork, read_packed, write_packed
from zerokara.vision.binarization.pictures import draw_filters, draw_straight_through, network_table
from zerokara.vision.classification.learner import Data, load_split
from zerokara.vision.classification.pictures import draw_misread
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.training.epochs import (
    EpochTraining,
    check_batch,
    probe_updates,
    restore,
    run_epochs,
    stopped_message,
)

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


class Training(EpochTraining[BinaryNetwork]):
    """Everything that a checkpoint holds, and one update over it."""

    config: Config
    data: Data

    def __init__(self, config: Config, images: Data, compute: Compute, world: World) -> None:
        channels, height, width = images.train.shape
        self.metadata = BinaryMetadata(
            network=config.network,
            units=config.units,
            layers=config.layers,
            width=config.width_multiplier,
            classes=images.train.classes,
            channels=channels,
            image_size=(height, width),
            data=images.train.source,
            command=command(),
        )

        def build() -> BinaryNetwork:
            network = self.metadata.build()
            network.mean_C.copy_(images.mean_C)
            network.std_C.copy_(images.std_C)
            return network

        super().__init__(config, images, compute, world, build, ("train/loss", "train/accuracy"))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, fused=True)
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

    @property
    def learning_rate(self) -> float:
        """The step size of the next update."""
        return schedules.cosine(self.updates, self.config.learning_rate, 0.0, 0, self.total_updates)

    def format_metric(self, figure: float) -> str:
        """The error of a validation."""
        return f"error {figure:.2%}"

    def update(self, index_B: Tensor) -> None:
        """Algorithm 1: gradients by way of the signs, a step of the latent weights, and their clipping."""
        index_b = self.shard(index_B)
        pixels, label_b = self.images[index_b].float() * (1 / 255), self.labels[index_b]
        x = self.augment(pixels, self.generator, index_B=index_b, epoch=self.epoch)
        self.set_learning_rates()
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
        return self.compute.to_host(torch.cat(found))

    def score(self, images: ImageSet) -> Scores:
        """How well the network does on images that it does not learn from."""
        return Scores(self.logits(self.network, images).softmax(1), images.labels)


def train(config: Config, run: Run, images: Data, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, weights that are no numbers any more.
    """
    training = Training(config, images, compute, world)
    restore(training, run)
    run.print(
        f"{training.metadata.data}: {len(images.train):,} images to learn from, {len(images.validation):,} to choose on"
    )
    run.print(network_table(training.network))
    if run_epochs(training, run, lambda: validate(training, run)):
        return stopped_message(training, KIND)
    return finish(training, run) if world.is_main else ""


def validate(training: Training, run: Run) -> None:
    """Score the validation images, and keep what the latent weights look like."""
    scores = training.score(training.data.validation)
    training.last_metric = scores.error
    run.log(training.updates, {"val/error": scores.error, "val/loss": scores.loss})
    for name, layer in training.network.binary_layers().items():
        run.histogram(f"latent/{name}", training.updates, layer.weight)


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
        misread = draw_misread(test, scores, training.metadata.classes)
        if misread is not None:
            run.image("misread", training.updates, figure_pixels(misread))

    path = run.path("packed.safetensors")
    sizes = write_packed(path, training.network, dataclasses.replace(training.metadata, figures=figures))
    again, _ = read_packed(path)
    same = torch.equal(training.logits(training.compute.module(again), validation), logits_NK)
    if not same:
        raise UserError(f"{path} does not predict what the network does that was written: please report it.")
    few = validation.take(slice(0, 500)).images.to(training.compute.torch_device).float() * (1 / 255)
    write_figure(run.path("straight_through.png"), draw_straight_through(training.network, few))
    write_figure(run.path("filters.png"), draw_filters(training.network))
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in figures.items()})
    content = {
        "figures": figures,
        "bytes": {**dataclasses.asdict(sizes), "ratio": sizes.ratio},
        "protocol": {
            "train_images": len(training.data.train),
            "validation_images": len(validation),
            "seed": config.seed,
            "epochs": config.epochs,
            "hours": training.stopwatch(),
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
    few = dataclasses.replace(images, train=images.train.take(slice(0, config.batch_size // world.size)))
    return probe_updates(config, world, lambda compute: Training(config, few, compute, World()))


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
    check_batch(config, world)
    images = Data.load(config.for_data())
    with (
        Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run,
        run.signals(),
    ):
        compute = run.compute(lambda: choose_compute(config, images, world), 1)
        run.close(train(config, run, images, compute, world))
    world.close()


if __name__ == "__main__":
    run_main(main)
