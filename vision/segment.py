"""Train a semantic segmentation network: a class for every pixel.

    python -m vision.segment --data camvid --pretrained-backbone photographs
    python -m vision.segment --data camvid --pretrained-backbone photographs-vgg --preset segnet-slim

FCN (Shelhamer, Long and Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation") on any backbone, or
SegNet (Badrinarayanan, Kendall and Cipolla 2017, "SegNet: A Deep Convolutional Encoder-Decoder Architecture") on a VGG.
The default is FCN on a narrow ResNet-18, for two CPU cores and images of 240x180 pixels. docs/segment.md has the
presets and their results.

Unlabeled pixels are ignored in the loss and in all metrics. All choices are made on the validation images, by mean IoU.
The test set is evaluated once, when training ends.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zerokara.core.command_line import check_command_line
from zerokara.core.config import UserError, format_count, run_main
from zerokara.core.programs import program_command
from zerokara.core.zoo import registry as zoo
from zerokara.vision.segmentation.config import KIND, Config, read_config, width_of

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import torch

from zerokara.core.backbones.base import on_meta_device
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data.backgrounds import with_background
from zerokara.core.data.masks import training_lumas
from zerokara.core.data_parallel import check_sync_batch_norm
from zerokara.core.distributed import World
from zerokara.core.models.model_file import MODEL_FILE
from zerokara.core.models.normalization import decide_normalization, format_normalization
from zerokara.core.models.weights import LoadReport, load_pretrained_backbone
from zerokara.core.report import read_result
from zerokara.core.run import Run
from zerokara.core.run_classes import keep_classes
from zerokara.core.training_program import check_batch_norm, check_divisible, choose_compute, images_per_pass, open_run
from zerokara.core.zoo import provenance
from zerokara.vision.segmentation.learner import Data, Training, load_split, make_metadata
from zerokara.vision.segmentation.networks import Segmenter
from zerokara.vision.segmentation.pictures import log_classes, log_overlays, log_start, overlay_indices
from zerokara.vision.training.epochs import probe_update, restore, run_epochs, stopped_message, total_updates
from zerokara.vision.training.supervised import save_result


def train(config: Config, run: Run, images: Data, compute: Compute, world: World) -> str:
    """Train from the current update to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, or training diverged.
    """
    training = Training(config, images, compute, world)
    resumed = restore(training, run, lambda network: load_weights(config, network))
    parameters = sum(parameter.numel() for parameter in training.network.parameters())
    run.print(
        f"{training.metadata.data}: {format_count(len(images.train), 'training image')}, "
        f"{format_count(len(images.validation), 'validation image')}; "
        f"{len(training.metadata.classes)} classes; {config.network} on {config.backbone}, {parameters:,} parameters"
    )
    for message in dict.fromkeys((*images.train.messages, *images.validation.messages)):
        run.print(message)
    if config.published_normalization:
        run.print(format_normalization(config))
    if not resumed:
        provenance.record(run, config.pretrained_backbone)
        # Logging images must not change the random numbers of the run.
        generator_state = training.generator.get_state()
        log_start(training.network, training.metadata, training.batch(torch.arange(min(8, len(images.train)))), run)
        training.generator.set_state(generator_state)
        training.save(run)
    if run_epochs(training, run, lambda: validate(training, run)):
        return stopped_message(training, run, KIND)
    with run.interruptible(on=world.size == 1):  # several processes stop together, during an evaluation
        return finish(training, run)


def load_weights(config: Config, network: Segmenter) -> list[str]:
    """Load the pretrained weights that the config names. Return messages about what was and was not loaded.

    Raises:
        UserError: the file is missing or damaged, or most of the backbone's weights are missing in it or have other
            shapes.
    """
    reports = []
    if config.weights:
        reports += network.load_published(Path(config.weights))
    if config.pretrained_backbone:
        report = load_pretrained_backbone(network.backbone, zoo.find_weights(config.pretrained_backbone))
        loaded = len(report.loaded)
        total = loaded + len(report.missing) + len(report.wrong_shape)
        if loaded < total / 2:
            raise UserError(_mismatch_message(config, report, loaded, total))
        reports.append(str(report))
    return reports


def _mismatch_message(config: Config, report: LoadReport, loaded: int, total: int) -> str:
    return (
        f"Only {loaded} of {total} tensors of {report.source} fit a {config.backbone} with --width-multiplier "
        f"{width_of(config):g} and --stem {config.stem}: give the --backbone, --width-multiplier and --stem "
        f"that it was trained with; they are in its config.json and in the list of "
        f"{program_command('core.zoo')}."
    )


def validate(training: Training, run: Run) -> None:
    """Evaluate the validation images, record the result, log overlays, save the model.

    The processes divide the images; the main process does the rest.
    """
    classes = training.metadata.classes
    indices = overlay_indices(training.data.validation)
    scores = training.score_in_processes(run, training.data.validation, indices)
    if not run.world.is_main:
        return
    scalars = {f"val/{name}": value for name, value in scores.metrics().items()}
    scalars |= {f"val_iou/{name}": value for name, value in scores.iou_by_class(classes).items()}
    run.log(training.updates, {**scalars, "speed/hours": training.stopwatch()})
    is_best = training.best is None or scores.mean_iou >= training.best["figure"]
    training.record_validation(scores.mean_iou, is_best=is_best, save_weights=training.config.select == "best")
    log_overlays(training.data.validation, scores, indices, run, training.updates, "overlays")
    for name, parameter in training.network.named_parameters():
        run.histogram(f"weights/{name}", training.updates, parameter)
    weights = (training.best or {}).get("weights", training.evaluation_network.state_dict())
    training.metadata.save(run.path(MODEL_FILE), weights)


def finish(training: Training, run: Run) -> str:
    """Load the selected weights, evaluate the test set once, write model.safetensors and result.json.

    The processes divide the images of the evaluations; the main process writes.

    Returns:
        The closing message.
    """
    config, classes = training.config, training.metadata.classes
    training.load_best_weights()
    validation = training.score_in_processes(run, training.data.validation)
    result_path = run.path("result.json")
    has_result = run.world.broadcast_value(result_path.exists())
    test = scores = None
    if config.test and not has_result:  # a finished run that is resumed does not evaluate the test set again
        test = load_split(config, "test", classes)
        scores = training.score_in_processes(run, test, overlay_indices(test))
    if not run.world.is_main:
        return ""
    metrics = {f"validation_{name}": value for name, value in validation.metrics().items()}
    iou_by_class = {"validation": validation.iou_by_class(classes)}
    if config.test and has_result:
        result = read_result(result_path, mappings=["iou_by_class"])
        metrics, iou_by_class = result["figures"], result["iou_by_class"]
    elif test is not None and scores is not None:
        metrics |= {f"test_{name}": value for name, value in scores.metrics().items()}
        iou_by_class["test"] = scores.iou_by_class(classes)
        log_classes(scores, classes, run, training.updates)
        log_overlays(test, scores, overlay_indices(test), run, training.updates, "test_overlays")
    protocol = {
        "image_size": list(training.metadata.image_size),
        "best_epoch": None if training.best is None else training.best["epoch"],
        "unlabelled": "not counted",
    }
    save_result(training, run, metrics, protocol, iou_by_class=iou_by_class)
    results = [
        f"{split} mean IoU {metrics[f'{split}_mean_iou']:.1%}, pixel accuracy {metrics[f'{split}_accuracy']:.1%}"
        for split in ("validation", "test")
        if f"{split}_mean_iou" in metrics
    ]
    return (
        f"{config.data}: {'; '.join(results)} after {format_count(training.epoch, 'epoch')}; segment an image: "
        f"{program_command('vision.segment_predict')} runs/{config.name} <image or folder>"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: config, data, run folder, hardware, training, closing message."""
    config = read_config(argv, __doc__ or "")
    world = World.from_env(config.device)
    check_divisible(config, world, "batch_size", parts=config.accumulation_steps)
    check_sync_batch_norm(config, world)
    config.augment()  # an invalid --crop-size is rejected before the data are read
    config, lines = with_background(config, partial(training_lumas, config.data, config.masks))
    images = Data.load(config)
    config = decide_normalization(config, images.train.shape[0])
    with on_meta_device():  # a network that cannot be built is rejected before a run folder is created
        network = make_metadata(config, images).build()
    smallest = images_per_pass(config.batch_size, len(images.train), world, config.accumulation_steps)
    check_batch_norm(network, images.train.shape, smallest)
    if not config.resume and (config.weights or config.pretrained_backbone):  # and so are weights that do not fit
        with torch.random.fork_rng():
            load_weights(config, make_metadata(config, images).build())
    updates = total_updates(config, images)
    batch_size = min(config.batch_size, len(images.train)) // world.size
    timed = TrainStep(partial(probe_update, Training, config, images), batch_size, config.accumulation_steps)
    with open_run(config, KIND, world) as run:
        for line in lines:
            run.print(line)
        keep_classes(run, images.train, resume=config.resume, model_file=MODEL_FILE)
        compute = run.compute(lambda: choose_compute(config, world, timed, updates), 1)
        run.close(train(config, run, images, compute, world))


if __name__ == "__main__":
    run_main(main)
