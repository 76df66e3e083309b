"""Train an image classifier with binary weights and activations (+1 or -1).

    python -m vision.binary --data mnist

Courbariaux and Hubara et al. 2016, "Binarized Neural Networks", algorithm 1: the optimizer updates latent float32
weights, and the forward pass uses their signs. The gradient of the sign function is zero almost everywhere, so the
backward pass uses the gradient of hard tanh (straight-through estimator, equation 4). After every step the latent
weights are clipped to [-1, 1], because no gradient reaches them beyond. The paper reports 0.96% test error on MNIST
after 1,000 epochs with three layers of 4,096 units; docs/experiments.md has the results of these settings.

At the end the weights are written with one bit each, read back, and the predictions must be identical.

Shapes: N images, B batch, b the part of it on this process, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from zerokara.core import schedules
from zerokara.core.command_line import check_command_line
from zerokara.core.config import UserError, format_count, run_main
from zerokara.core.programs import command
from zerokara.vision.binarization.config import KIND, Config, read_config

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.augment import Augment
from zerokara.core.backbones.base import on_meta_device
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.custom_loss import check_loss, load_loss
from zerokara.core.data import ImageSet
from zerokara.core.data_parallel import check_sync_batch_norm
from zerokara.core.distributed import World
from zerokara.core.eager_optim import Adam
from zerokara.core.layers import clip_latent_
from zerokara.core.report import figure_pixels, read_result, write_figure, write_json
from zerokara.core.run import Run
from zerokara.core.run_classes import keep_classes
from zerokara.core.sharding import evaluate_shards
from zerokara.core.training_program import check_batch_norm, check_divisible, choose_compute, images_per_pass, open_run
from zerokara.vision.binarization.network import BinaryMetadata, BinaryNetwork, Sizes, write_packed
from zerokara.vision.binarization.pictures import draw_filters, draw_straight_through, network_table
from zerokara.vision.classification.learner import Data, load_split
from zerokara.vision.classification.pictures import draw_misread
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.training.epochs import (
    EpochTraining,
    probe_update,
    restore,
    run_epochs,
    stopped_message,
    total_updates,
)


def squared_hinge(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """Squared hinge loss: mean over images of the sum over classes of max(0, 1 - t y)^2.

    The target t is 1 for the label and -1 for the other classes.
    """
    target_BK = F.one_hot(label_B, logits_BK.shape[1]) * 2 - 1
    return F.relu(1 - target_BK * logits_BK).square().sum(1).mean()


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "squared_hinge": squared_hinge,
}


def find_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss function of logits (B, K) and labels (B,): a key of `LOSSES`, or one's own by import path.

    Raises:
        UserError: one's own cannot be loaded, or does not return a scalar.
    """
    if name in LOSSES:
        return LOSSES[name]
    loss: Callable[[Tensor, Tensor], Tensor] = load_loss(name)
    check_loss(name, loss, torch.zeros(2, 3), torch.tensor([0, 2]))
    return loss


def make_metadata(config: Config, images: Data) -> BinaryMetadata:
    """Return the metadata of the network that the config describes, for these images."""
    channels, height, width = images.train.shape
    return BinaryMetadata(
        network=config.network,
        units=config.hidden_units,
        layers=config.num_hidden_layers,
        width=config.width_multiplier,
        classes=images.train.classes,
        channels=channels,
        image_size=(height, width),
        data=images.train.source,
        command=command(),
    )


class Training(EpochTraining[BinaryNetwork]):
    """Training state of a binary network and its update."""

    config: Config
    data: Data

    def __init__(self, config: Config, images: Data, compute: Compute, world: World) -> None:
        self.metadata = make_metadata(config, images)

        def build() -> BinaryNetwork:
            network = self.metadata.build()
            network.mean_C.copy_(images.mean_C)
            network.std_C.copy_(images.std_C)
            return network

        super().__init__(config, images, compute, world, build, ("train/loss", "train/accuracy"))
        self.loss = find_loss(config.loss)
        self.optimizer = Adam(self.network.parameters(), lr=config.learning_rate, fused=True)
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
        """Learning rate of the next update."""
        return schedules.cosine(self.updates, self.config.learning_rate, 0.0, 0, self.total_updates)

    def format_metric(self, metric: float) -> str:
        """Format a validation error."""
        return f"error {metric:.2%}"

    def update(self, index_B: Tensor) -> None:
        """Do one step of algorithm 1: gradients of the binary network, update and clipping of the latent weights."""
        index_b = self.shard(index_B)
        pixels, label_b = self.images[index_b].float() * (1 / 255), self.labels[index_b]
        x = self.augment(pixels, self.generator, index_B=index_b, epoch=self.epoch)
        self.set_learning_rates()
        self.optimizer.zero_grad(set_to_none=True)
        loss, logits_bK = self.parallel.forward(self._forward, x, label_b)
        fraction = len(index_b) * self.world.size / len(index_B)  # the shard of a process may be smaller
        self.parallel.backward(loss * fraction)
        self.optimizer.step()
        clip_latent_(self.network)
        accuracy = (logits_bK.detach().argmax(1) == label_b).float().mean()
        self.end_update(loss * fraction, accuracy * fraction)

    def _forward(self, x_bCHW: Tensor, label_b: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss (scalar) and the logits (b, K)."""
        with self.compute.autocast():
            logits_bK = self.network(x_bCHW)
        return self.loss(logits_bK, label_b), logits_bK

    def logits(self, network: BinaryNetwork, images: ImageSet) -> Tensor:
        """Compute logits (N, K) of images in evaluation mode. Returns float32 on the CPU."""
        training = network.training
        network.eval()
        batches = images.images.split(self.config.eval_batch_size)
        with torch.no_grad(), self.compute.autocast():
            logits = [network(pixels.to(self.compute.torch_device).float() * (1 / 255)) for pixels in batches]
        network.train(training)
        return self.compute.to_host(torch.cat(logits))

    def logits_in_processes(self, run: Run, images: ImageSet) -> Tensor:
        """Compute logits (N, K) of the main process's network like `logits`, each process those of its shard.

        Raises:
            Stopped: a signal interrupted the evaluation in one of the processes.
        """
        self.world.broadcast(self.network)
        shards = evaluate_shards(
            self.world, run, len(images), lambda shard: self.logits(self.network, images.take(shard))
        )
        return torch.cat(shards)

    def score_in_processes(self, run: Run, images: ImageSet) -> Scores:
        """Evaluate the main process's network, each process on its shard of the images."""
        return Scores(self.logits_in_processes(run, images).softmax(1), images.labels)


def train(config: Config, run: Run, images: Data, compute: Compute, world: World) -> str:
    """Train from the current update to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, or training diverged.
    """
    training = Training(config, images, compute, world)
    restore(training, run)
    run.print(
        f"{training.metadata.data}: {format_count(len(images.train), 'training image')}, "
        f"{format_count(len(images.validation), 'validation image')}"
    )
    for message in images.train.messages:
        run.print(message)
    run.print(network_table(training.network))
    if run_epochs(training, run, lambda: validate(training, run)):
        return stopped_message(training, run, KIND)
    with run.interruptible(on=world.size == 1):  # several processes stop together, during an evaluation
        return finish(training, run)


def validate(training: Training, run: Run) -> None:
    """Evaluate the validation images, and log histograms of the latent weights.

    The processes divide the images; the main process does the rest.
    """
    scores = training.score_in_processes(run, training.data.validation)
    if not run.world.is_main:
        return
    training.last_metric = scores.error
    run.log(training.updates, {"val/error": scores.error, "val/loss": scores.loss})
    for name, layer in training.network.binary_layers().items():
        # TensorBoard sorts tags by name: under "weights/" they come after the curves of "train/" and "val/".
        run.histogram(f"weights/latent/{name}", training.updates, layer.weight)


def finish(training: Training, run: Run) -> str:
    """Evaluate the test set once, pack the weights and verify the file, write the figures and result.json.

    The processes divide the images; the main process does the rest.

    Returns:
        The closing message.

    Raises:
        UserError: the network that was read back does not give the same predictions.
    """
    config, validation, world = training.config, training.data.validation, training.world
    logits_NK = training.logits_in_processes(run, validation)
    result_path = run.path("result.json")
    has_result = world.broadcast_value(result_path.exists())
    test = scores = None
    if config.test and not has_result:  # a finished run that is resumed does not evaluate the test set again
        test = load_split(config.for_data(), "test")
        scores = training.score_in_processes(run, test)
    metrics = {"validation_error": Scores(logits_NK.softmax(1), validation.labels).error}
    if config.test and has_result:
        metrics |= read_result(result_path)["figures"]
    elif test is not None and scores is not None:
        for line in test.messages:
            run.print(f"test images: {line}")
        metrics["test_error"] = scores.error

    path = run.path(BinaryMetadata.FILE)
    sizes: Sizes | None = None
    if world.is_main:
        sizes = write_packed(path, training.network, dataclasses.replace(training.metadata, figures=metrics))
    world.barrier()

    def is_same(shard: slice) -> bool:
        again, _ = BinaryMetadata.load(path)
        return torch.equal(training.logits(training.compute.module(again), validation.take(shard)), logits_NK[shard])

    same = all(evaluate_shards(world, run, len(validation), is_same))
    if sizes is None:
        return ""
    if not same:
        raise UserError(f"{path} does not give the same predictions as the trained network: please report it.")
    if test is not None and scores is not None:
        misread = draw_misread(test, scores, training.metadata.classes)
        if misread is not None:
            run.image("misread", training.updates, figure_pixels(misread))
    subset = validation.take(slice(0, 500)).images.to(training.compute.torch_device).float() * (1 / 255)
    write_figure(run.path("straight_through.png"), draw_straight_through(training.network, subset))
    write_figure(run.path("filters.png"), draw_filters(training.network))
    run.log_results(training.updates, config, metrics)
    content = {
        "figures": metrics,
        "bytes": {**dataclasses.asdict(sizes), "ratio": sizes.ratio},
        "protocol": {
            "train_images": len(training.data.train),
            "validation_images": len(validation),
            "seed": config.seed,
            "epochs": config.epochs,
            "hours": training.trained_hours,
        },
    }
    write_json(result_path, content)
    errors = ", ".join(f"{name.replace('_', ' ')} {value:.2%}" for name, value in metrics.items())
    return (
        f"{config.data}: {errors} after {format_count(config.epochs, 'epoch')}; weights of "
        f"{sizes.float_bytes:,} bytes packed into {sizes.packed_bytes:,} ({sizes.ratio:.1f} times smaller), read "
        f"back with identical predictions: {path}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: config, data, run folder, hardware, training, closing message."""
    config = read_config(argv, __doc__ or "")
    find_loss(config.loss)  # a mistake in a loss of one's own is reported before a run folder is created
    world = World.from_env(config.device)
    check_divisible(config, world, "batch_size")
    check_sync_batch_norm(config, world)
    images = Data.load(config.for_data())
    with on_meta_device():
        network = make_metadata(config, images).build()
    check_batch_norm(network, images.train.shape, images_per_pass(config.batch_size, len(images.train), world))
    updates = total_updates(config, images)
    batch_size = min(config.batch_size, len(images.train)) // world.size
    timed = TrainStep(partial(probe_update, Training, config, images), batch_size)
    with open_run(config, KIND, world) as run:
        keep_classes(run, images.train, resume=config.resume, model_file=BinaryMetadata.FILE)
        compute = run.compute(lambda: choose_compute(config, world, timed, updates), 1)
        run.close(train(config, run, images, compute, world))


if __name__ == "__main__":
    run_main(main)
