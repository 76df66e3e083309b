"""Classify: the core deep CNN learns to see.

    python -m vision.classify --data mnist

The network is that of *Deep Learning from Scratch*, chapter 8: 3x3 filters in pairs of 16, 32 and 64 channels, a pool
after each pair, 50 fully connected units with dropout, He initialisation; any other backbone goes by --backbone.
Without arguments it learns digits that are drawn here. docs/classify.md has the figures.

Validation images are held out of the training set, the same ones in every run, and everything is chosen on them. The
test set is read once, when training is over. All images lie on the device as uint8; a batch is augmented there.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from core import checkpoint, model_file
from core.classifier import Classifier
from core.compute import Compute
from core.config import UserError, entry, flag, to_dict
from core.configure import configure
from core.distributed import World
from core.probe import probe
from core.run import Run
from core.weights import init_backbone
from vision.clock import epochs_within, with_epochs
from vision.config import PRESETS, Config
from vision.learner import Data, Training, load_split, make_card
from vision.pictures import log_confusion, log_misread, log_start

KIND = "classify"
CHANGEABLE = {"resume", "quiet"}


def train(config: Config, run: Run, images: Data, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, weights that are no numbers any more.
    """
    training = Training(config, images, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    going_on = run.restore(latest, training.load_state_dict)
    if not going_on:
        for report in load_weights(config, training.classifier):
            run.say(report)
        if training.ema is not None:
            training.ema.restart(training.classifier)

    def check() -> None:
        if not training.is_finite():
            raise UserError(
                f"The loss is no number any more at update {training.updates:,}: the weights have left the range of "
                f"floats; the last good checkpoint stays in {run.folder}; start again with a lower --learning-rate."
            )

    def save() -> None:
        check()
        run.save(latest, training.state_dict())

    run.say(
        f"{training.card.data}: {len(images.train):,} images to learn from, {len(images.validation):,} to choose on"
    )
    if not going_on:
        log_start(training.classifier, training.card, training.batch(torch.arange(min(32, len(images.train)))), run)
        save()
    window = Window(training)
    show_progress(training, run, {})
    # Votes, so that all processes leave together; a run that ended early has also ended when it is resumed.
    enough = world.any(training.is_enough, compute.torch_device)
    stopping = False
    while training.updates < training.total_updates and not enough and not stopping:
        order = training.epoch_order()
        while not stopping:
            place = training.updates % training.updates_per_epoch * config.batch_size
            training.update(order[place : place + config.batch_size])
            if training.updates % config.log_every_updates == 0:
                log_metrics(training, run, window)
                window = Window(training)
            ended = training.updates % training.updates_per_epoch == 0
            if ended:
                check()  # before weights that are no numbers replace the good ones in model.safetensors
                if world.is_main:
                    validate(training, run)
                enough = world.any(training.is_enough, compute.torch_device)
                window = Window(training)
            if ended or training.updates % config.checkpoint_every_updates == 0:
                save()
            stopping = world.any(bool(run.stop_requested), compute.torch_device)
            if ended:
                break
    if stopping:
        run.say(f"{run.stop_requested}: saving")
        save()
        error = "not validated yet" if training.last_error is None else f"validation error {training.last_error:.2%}"
        return (
            f"{config.data} at epoch {training.epoch} of {config.epochs}: {error}; go on with: "
            f"python -m vision.classify --name {config.name} --resume"
        )
    return finish(training, run) if world.is_main else ""


def load_weights(config: Config, classifier: Classifier) -> list[str]:
    """Put in the weights that a fresh run begins with; what was loaded and what not, in words.

    Raises:
        UserError: no such file, a damaged one, or nothing in it that fits.
    """
    reports = []
    if config.weights:
        reports.append(str(classifier.load_published(Path(config.weights))))
    if config.init_backbone:
        reports.append(str(init_backbone(classifier.backbone, Path(config.init_backbone))))
    return reports


class Window:
    """What the clock said when the stretch began that a line of metrics is about."""

    def __init__(self, training: Training) -> None:
        self.updates, self.began = training.updates, time.perf_counter()


def log_metrics(training: Training, run: Run, window: Window) -> None:
    """One line of metrics."""
    images = (training.updates - window.updates) * training.config.batch_size
    scalars: dict[str, Any] = {
        **training.read_metrics(),
        "train/learning_rate": training.learning_rate,
        "train/epoch": training.updates / training.updates_per_epoch,
        "speed/images_per_s": images / (time.perf_counter() - window.began),
        "speed/hours": training.clock(),
    }
    run.log(training.updates, scalars)
    run.flush()
    show_progress(training, run, scalars)


def show_progress(training: Training, run: Run, scalars: dict[str, Any]) -> None:
    """The progress bar, or a plain line where there is no terminal."""
    fields: dict[str, Any] = {
        "epoch": round(training.updates / training.updates_per_epoch, 1),
        "loss": scalars.get("train/loss", float("nan")),
        "accuracy": scalars.get("train/accuracy", float("nan")),
        "val error": float("nan") if training.last_error is None else training.last_error,
        "images/s": scalars.get("speed/images_per_s", float("nan")),
    }
    run.progress(training.updates, training.total_updates, fields)


def validate(training: Training, run: Run) -> None:
    """Score the validation images, keep the best weights, show what is misread."""
    config = training.config
    scores = training.score(training.data.validation)
    training.last_error = scores.error
    run.log(training.updates, {"val/error": scores.error, "val/loss": scores.loss, "speed/hours": training.clock()})
    if training.best is None or scores.error <= training.best["error"]:
        training.best = {"epoch": training.epoch, "error": scores.error}
        if config.select == "best":
            weights = training.evaluated.state_dict()
            training.best["weights"] = {name: tensor.detach().clone() for name, tensor in weights.items()}
    log_misread(training.data.validation, scores, training.card.classes, run, training.updates)
    for name, parameter in training.classifier.named_parameters():
        run.histogram(f"weights/{name}", training.updates, parameter)
    model_file.save(run.path("model.safetensors"), training.evaluated.state_dict(), training.card)


def finish(training: Training, run: Run) -> str:
    """Choose the weights, read the test set once, write model.safetensors and result.json. The closing sentence."""
    config = training.config
    if config.select == "best" and training.best is not None:
        training.evaluated.load_state_dict(training.best["weights"])
    validation = training.score(training.data.validation)
    figures = {"validation_error": validation.error}
    sentence = f"{config.data}: validation error {validation.error:.2%}"
    result_path = run.path("result.json")
    if config.test and result_path.exists():
        figures |= json.loads(result_path.read_text())["figures"]  # a finished run does not read the test set again
    elif config.test:
        test = load_split(config, "test")
        scores = training.score(test)
        figures |= {"test_error": scores.error, "test_loss": scores.loss}
        log_confusion(scores, training.card.classes, run, training.updates)
        log_misread(test, scores, training.card.classes, run, training.updates, tag="test_misread")
    if "test_error" in figures:
        sentence += f", test error {figures['test_error']:.2%}"
    run.log(training.updates, {f"final/{name}": value for name, value in figures.items()})
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in figures.items()})
    card = dataclasses.replace(training.card, figures=figures)
    model_file.save(run.path("model.safetensors"), training.evaluated.state_dict(), card)
    protocol = {
        "train_images": len(training.data.train),
        "validation_images": len(training.data.validation),
        "seed": config.seed,
        "epochs": training.epoch,
        "weights": "averaged" if training.ema is not None else config.select,
        "views": config.tta_views,
        "hours": training.clock(),
    }
    text = json.dumps({"figures": figures, "protocol": protocol}, indent=2) + "\n"
    checkpoint.write_atomically(result_path, lambda file: file.write(text.encode()))
    return f"{sentence} after {training.epoch} epochs; try it with: python -m vision.predict runs/{config.name} <image>"


def choose_compute(config: Config, images: Data, world: World) -> Compute:
    """Measure updates on the first images."""
    first = torch.arange(min(config.batch_size // world.size, len(images.train)))
    few = Data(images.train.take(first), images.validation, images.mean_C, images.std_C)

    def train_step(candidate: Compute) -> Callable[[], object]:
        training = Training(config, few, candidate, World())
        return lambda: training.update(first)

    return probe(config, world, train_step, compile=config.compile)


def default_name(config: Config) -> str:
    """classify-mnist-deep_cnn-fast-1 for --data mnist, seed 1."""
    source = Path(config.data).stem.replace(" ", "_")
    return f"{KIND}-{source}-{config.backbone}-{config.preset}-{config.seed}"


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, run, data, compute, loop, closing line."""
    config = configure(
        Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE
    )
    world = World.from_env(config.device)
    if config.batch_size % (world.size * config.accumulate):
        raise UserError(
            f"{flag('batch_size')} {config.batch_size} cannot be shared by {world.size} processes and "
            f"{flag('accumulate')} {config.accumulate} parts evenly."
        )
    images = Data.load(config)
    with torch.device("meta"):  # a network that cannot be is refused before it has a folder
        classifier = make_card(config, images).build()
    if not config.resume:  # and so are weights that do not fit it
        load_weights(config, classifier)
    with Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run:
        compute = run.compute(lambda: choose_compute(config, images, world), 1)
        if config.minutes:
            if "epochs" not in run.extra:
                run.remember(epochs=epochs_within(config, images, compute, world) if world.is_main else 0)
            config = with_epochs(config, run.extra["epochs"])
            run.say(f"{config.epochs} epochs fit into {config.minutes:g} minutes")
        with run.signals():
            run.close(train(config, run, images, compute, world))
    world.close()


if __name__ == "__main__":
    entry(main)
