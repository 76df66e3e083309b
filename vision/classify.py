"""Train an image classifier.

    python -m vision.classify --data mnist

The default network is the deep CNN of *Deep Learning from Scratch*, chapter 8: 3x3 convolutions in pairs of 16, 32 and
64 channels, max pooling after each pair, 50 fully connected units with dropout, He initialization. --backbone selects
another one. The default data set is synthetic digits that are generated locally. docs/classify.md has results.

Validation images are held out of the training set. They are the same in every run, and all choices are made on them.
The test set is evaluated once, when training ends. All images are stored on the device as uint8; batches are augmented
there.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zerokara.core.command_line import check_command_line
from zerokara.core.config import format_count, run_main
from zerokara.core.programs import program_command
from zerokara.core.zoo import registry as zoo
from zerokara.vision.classification.config import KIND, Config, read_config

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import torch

from zerokara.core.backbones.base import on_meta_device
from zerokara.core.backbones.summary import summary
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data.backgrounds import with_background
from zerokara.core.data.sources import training_lumas
from zerokara.core.data_parallel import check_sync_batch_norm
from zerokara.core.distributed import World
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import MODEL_FILE
from zerokara.core.models.normalization import decide_normalization, format_normalization
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.report import read_result
from zerokara.core.run import LogCallback, Run
from zerokara.core.run_classes import keep_classes
from zerokara.core.time_limit import length_in_time_limit
from zerokara.core.training_program import check_batch_norm, check_divisible, choose_compute, images_per_pass, open_run
from zerokara.core.zoo import provenance
from zerokara.vision.classification.clock import measure_epochs, with_epochs
from zerokara.vision.classification.learner import Data, Training, load_split, make_metadata
from zerokara.vision.classification.pictures import log_confusion, log_misread, log_start
from zerokara.vision.training.epochs import probe_update, restore, run_epochs, stopped_message, total_updates
from zerokara.vision.training.supervised import save_result


def train(config: Config, run: Run, images: Data, compute: Compute, world: World) -> str:
    """Train from the current update to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, or training diverged.
    """
    training = Training(config, images, compute, world)
    resumed = restore(training, run, lambda network: load_weights(config, network))
    run.print(
        f"{training.metadata.data}: {format_count(len(images.train), 'training image')}, "
        f"{format_count(len(images.validation), 'validation image')}"
    )
    for message in images.train.messages:
        run.print(message)
    if config.published_normalization:
        run.print(format_normalization(config))
    if not resumed:
        provenance.record(run, config.pretrained_backbone)
        run.print(summary(training.network, (1, *images.train.shape)))
        log_start(training.network, training.metadata, training.batch(torch.arange(min(32, len(images.train)))), run)
        training.save(run)
    if run_epochs(training, run, lambda: validate(training, run)):
        return stopped_message(training, run, KIND)
    with run.interruptible(on=world.size == 1):  # several processes stop together, during an evaluation
        return finish(training, run)


def load_weights(config: Config, classifier: Classifier) -> list[str]:
    """Load the pretrained weights that the config names. Return messages about what was and was not loaded.

    Raises:
        UserError: the file is missing or damaged, or none of its tensors fits the network.
    """
    reports = []
    if config.weights:
        reports.append(str(classifier.load_published(Path(config.weights))))
    if config.pretrained_backbone:
        reports.append(str(load_pretrained_backbone(classifier.backbone, zoo.find_weights(config.pretrained_backbone))))
    return reports


def validate(training: Training, run: Run) -> None:
    """Evaluate the validation images (one view each), record the result, log misclassified images, save the model.

    The processes divide the images; the main process does the rest.
    """
    scores = training.score_in_processes(run, training.data.validation)
    if not run.world.is_main:
        return
    run.log(training.updates, {"val/error": scores.error, "val/loss": scores.loss, "speed/hours": training.stopwatch()})
    is_best = training.best is None or scores.error <= training.best["figure"]
    training.record_validation(scores.error, is_best=is_best, save_weights=training.config.select == "best")
    log_misread(training.data.validation, scores, training.metadata.classes, run, training.updates)
    for name, parameter in training.network.named_parameters():
        run.histogram(f"weights/{name}", training.updates, parameter)
    training.metadata.save(run.path(MODEL_FILE), training.evaluation_network.state_dict())


def finish(training: Training, run: Run) -> str:
    """Load the selected weights, evaluate the test set once, write model.safetensors and result.json.

    The processes divide the images of the evaluations; the main process writes.

    Returns:
        The closing message.
    """
    config = training.config
    training.load_best_weights()
    validation = training.score_in_processes(run, training.data.validation, views=config.tta_views)
    result_path = run.path("result.json")
    has_result = run.world.broadcast_value(result_path.exists())
    test = scores = None
    if config.test and not has_result:  # a finished run that is resumed does not evaluate the test set again
        test = load_split(config, "test")
        scores = training.score_in_processes(run, test, views=config.tta_views)
    if not run.world.is_main:
        return ""
    metrics = {"validation_error": validation.error}
    message = f"{config.data}: validation error {validation.error:.2%}"
    if config.test and has_result:
        metrics |= read_result(result_path)["figures"]
    elif test is not None and scores is not None:
        for line in test.messages:
            run.print(f"test images: {line}")
        metrics |= {"test_error": scores.error, "test_loss": scores.loss}
        log_confusion(scores, training.metadata.classes, run, training.updates)
        log_misread(test, scores, training.metadata.classes, run, training.updates, tag="test_misread")
    if "test_error" in metrics:
        message += f", test error {metrics['test_error']:.2%}"
    save_result(training, run, metrics, {})
    predict, epochs = program_command("vision.predict"), format_count(training.epoch, "epoch")
    return f"{message} after {epochs}; classify an image: {predict} runs/{config.name} <image>"


def start(config: Config, callback: LogCallback | None = None) -> None:
    """Start or resume the run of a config: data, run folder, hardware, training, closing message."""
    began = time.perf_counter()
    world = World.from_env(config.device)
    check_divisible(config, world, "batch_size", parts=config.accumulation_steps)
    check_sync_batch_norm(config, world)
    config, lines = with_background(config, partial(training_lumas, config.data))
    images = Data.load(config)
    config = decide_normalization(config, images.train.shape[0])
    with on_meta_device():  # a network that cannot be built is rejected before a run folder is created
        classifier = make_metadata(config, images).build()
    smallest = images_per_pass(config.batch_size, len(images.train), world, config.accumulation_steps)
    check_batch_norm(classifier, images.train.shape, smallest)
    if not config.resume:  # and so are weights that do not fit the network
        load_weights(config, classifier)
    updates = total_updates(config, images)
    batch_size = min(config.batch_size, len(images.train)) // world.size
    timed = TrainStep(partial(probe_update, Training, config, images), batch_size, config.accumulation_steps)
    with open_run(config, KIND, world) as run:
        run.callback = callback
        for line in lines:
            run.print(line)
        keep_classes(run, images.train, resume=config.resume, model_file=MODEL_FILE)
        compute = run.compute(lambda: choose_compute(config, world, timed, updates), 1)
        if config.minutes:
            measure = partial(measure_epochs, config, images, compute, world)
            config = with_epochs(config, length_in_time_limit(run, "epoch", config.minutes, began, measure))
        run.close(train(config, run, images, compute, world))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    start(read_config(argv, __doc__ or ""))


if __name__ == "__main__":
    run_main(main)
