"""Segment: a class for every pixel of a street, by FCN or SegNet on the eye of one's choice.

    python -m vision.segment --data camvid --pretrained-backbone photographs
    python -m vision.segment --data camvid --pretrained-backbone photographs-vgg --preset segnet-slim

Shelhamer, Long and Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation"; Badrinarayanan, Kendall and
Cipolla 2017, "SegNet: A Deep Convolutional Encoder-Decoder Architecture". The default is FCN on a slim ResNet, made for
two CPU cores and pictures of 240x180; docs/segment.md has the presets and what they reach.

Pixels that nobody labelled are never counted: not in the loss, not in a figure. Validation images are what everything
is chosen on, by mean IoU. The test set is read once, when training is over.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from zerokara.core.compute import Compute
from zerokara.core.config import UserError, run_main, to_dict
from zerokara.core.distributed import World
from zerokara.core.models.weights import LoadReport, load_pretrained_backbone
from zerokara.core.programs import program_command
from zerokara.core.report import write_json
from zerokara.core.run import Run
from zerokara.core.run_config import configure, stem
from zerokara.core.zoo import provenance
from zerokara.core.zoo import registry as zoo
from zerokara.vision.segmentation import model_file
from zerokara.vision.segmentation.config import PRESETS, Config
from zerokara.vision.segmentation.learner import Data, Training, load_split, make_metadata
from zerokara.vision.segmentation.networks import Segmenter
from zerokara.vision.segmentation.pictures import log_classes, log_overlays, log_start, shown
from zerokara.vision.training.epochs import check_batch, probe_updates, restore, run_epochs, save, stopped_message

KIND = "segment"
CHANGEABLE = {"resume", "quiet"}


def train(config: Config, run: Run, images: Data, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, weights that are no numbers any more.
    """
    training = Training(config, images, compute, world)
    resumed = restore(training, run, lambda network: start_from(config, network))
    parameters = sum(parameter.numel() for parameter in training.network.parameters())
    run.print(
        f"{training.metadata.data}: {len(images.train):,} training images, {len(images.validation):,} validation images; "
        f"{len(training.metadata.classes)} classes; {config.network} on {config.backbone}, {parameters:,} parameters"
    )
    if not resumed:
        provenance.record(run, config.pretrained_backbone)
        # A corner of its own for the random numbers, so that pictures of the start do not change the run.
        before = training.generator.get_state()
        log_start(training.network, training.metadata, training.batch(torch.arange(min(8, len(images.train)))), run)
        training.generator.set_state(before)
        save(training, run)
    if run_epochs(training, run, lambda: validate(training, run)):
        return stopped_message(training, KIND)
    return finish(training, run) if world.is_main else ""


def start_from(config: Config, network: Segmenter) -> list[str]:
    """Put in the weights that a fresh run begins with; what was loaded and what not, in words.

    Raises:
        UserError: no such weights, or mostly those of another network.
    """
    reports = []
    if config.weights:
        reports += network.load_published(Path(config.weights))
    if config.pretrained_backbone:
        loaded = load_pretrained_backbone(network.backbone, zoo.weights_source(config.pretrained_backbone))
        if (fit := len(loaded.loaded)) < (of := fit + len(loaded.missing) + len(loaded.wrong_shape)) / 2:
            raise UserError(_other_eye(config, loaded, fit, of))
        reports.append(str(loaded))
    return reports


def _other_eye(config: Config, loaded: LoadReport, fit: int, of: int) -> str:
    return (
        f"Only {fit} of {of} tensors of {loaded.source} fit a {config.backbone} of --width-multiplier "
        f"{config.width_multiplier:g} with the {config.stem} stem: give the --backbone, --width-multiplier and --stem "
        f"that it was trained with (its config.json, or "
        f"{program_command('core.zoo')}, says so)."
    )


def validate(training: Training, run: Run) -> None:
    """Score the validation images, keep the best weights, show some overlays."""
    classes = training.metadata.classes
    places = shown(training.data.validation)
    scores = training.score(training.data.validation, keep=places)
    scalars = {f"val/{name}": value for name, value in scores.figures().items()}
    scalars |= {f"val_iou/{name}": value for name, value in scores.by_class(classes).items()}
    run.log(training.updates, {**scalars, "speed/hours": training.stopwatch()})
    better = training.best is None or scores.mean_iou >= training.best["figure"]
    training.record_validation(scores.mean_iou, is_best=better, save_weights=training.config.select == "best")
    log_overlays(training.data.validation, scores, places, run, training.updates, "overlays")
    for name, parameter in training.network.named_parameters():
        run.histogram(f"weights/{name}", training.updates, parameter)
    kept = (training.best or {}).get("weights", training.evaluation_network.state_dict())
    model_file.save(run.path("model.safetensors"), kept, training.metadata)


def finish(training: Training, run: Run) -> str:
    """Choose the weights, read the test set once, write model.safetensors and result.json. The closing sentence."""
    config, classes = training.config, training.metadata.classes
    training.load_best_weights()
    validation = training.score(training.data.validation)
    figures = {f"validation_{name}": value for name, value in validation.figures().items()}
    by_class = {"validation": validation.by_class(classes)}
    result_path = run.path("result.json")
    if config.test and result_path.exists():
        result = json.loads(result_path.read_text())  # a finished run does not read the test set again
        figures, by_class = result["figures"], result["iou_by_class"]
    elif config.test:
        test = load_split(config, "test", classes)
        places = shown(test)
        scores = training.score(test, keep=places)
        figures |= {f"test_{name}": value for name, value in scores.figures().items()}
        by_class["test"] = scores.by_class(classes)
        log_classes(scores, classes, run, training.updates)
        log_overlays(test, scores, places, run, training.updates, "test_overlays")
    run.log(training.updates, {f"final/{name}": value for name, value in figures.items()})
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in figures.items()})
    metadata = dataclasses.replace(training.metadata, figures=figures)
    model_file.save(run.path("model.safetensors"), training.evaluation_network.state_dict(), metadata)
    protocol = {
        "train_images": len(training.data.train),
        "validation_images": len(training.data.validation),
        "image_size": list(training.metadata.image_size),
        "seed": config.seed,
        "epochs": training.epoch,
        "weights": "averaged" if training.ema is not None else config.select,
        "best_epoch": None if training.best is None else training.best["epoch"],
        "views": config.tta_views,
        "unlabelled": "not counted",
        "hours": training.stopwatch(),
    }
    write_json(result_path, {"figures": figures, "iou_by_class": by_class, "protocol": protocol})
    told = [
        f"{split} mean IoU {figures[f'{split}_mean_iou']:.1%}, {figures[f'{split}_accuracy']:.1%} of pixels right"
        for split in ("validation", "test")
        if f"{split}_mean_iou" in figures
    ]
    return (
        f"{config.data}: {'; '.join(told)} after {training.epoch} epochs; try it with: "
        f"{program_command('vision.segment_predict')} runs/{config.name} <picture or folder>"
    )


def choose_compute(config: Config, images: Data, world: World) -> Compute:
    """Measure updates on the first images."""
    few = dataclasses.replace(images, train=images.train.take(slice(0, config.batch_size // world.size)))
    return probe_updates(config, world, lambda compute: Training(config, few, compute, World()), compile=config.compile)


def default_name(config: Config) -> str:
    """segment-camvid-fcn2s-fast-1 for --data camvid, seed 1."""
    return f"{KIND}-{stem(config.data)}-{config.network}-{config.preset}-{config.seed}"


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, run, data, compute, loop, closing line."""
    config = configure(
        Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE
    )
    world = World.from_env(config.device)
    check_batch(config, world, config.accumulation_steps)
    config.augment()  # what cannot be is refused before anything is read
    images = Data.load(config)
    with torch.device("meta"):  # and a network that cannot be, before it has a folder
        make_metadata(config, images).build()
    if not config.resume and (config.weights or config.pretrained_backbone):  # and so are weights that do not fit
        with torch.random.fork_rng():
            start_from(config, make_metadata(config, images).build())
    with (
        Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run,
        run.signals(),
    ):
        compute = run.compute(lambda: choose_compute(config, images, world), 1)
        run.close(train(config, run, images, compute, world))
    world.close()


if __name__ == "__main__":
    run_main(main)
