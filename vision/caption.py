"""Train an image captioner.

    python -m vision.caption --data flickr8k-1000

Vinyals et al. 2015, "Show and Tell": a convolutional backbone encodes the image, an LSTM generates the caption word by
word, and beam search finds the most probable caption. The weights of the backbone come from a run or the zoo
(--pretrained-backbone) or from torchvision (--weights), and are then frozen, unless --finetune-backbone is given.
Without either, the backbone is trained from random weights. docs/caption.md has results.

--split-seed determines the training images, the validation images, on which the best epoch is selected, and the test
images. BLEU-1 to 4 are computed once on the test images, at the end, for the captioner and for two baselines: the most
frequent training caption, and a caption of the most similar training image. runs/<name>/captions.html shows all test
images.

Shapes: N test images, M training images, F features.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from zerokara.core.command_line import check_command_line
from zerokara.core.config import format_count, run_main
from zerokara.core.programs import program_command
from zerokara.vision.captioning.config import KIND, Config, read_config

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

from torch import nn

from zerokara.core import checkpoint
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data.backgrounds import with_background
from zerokara.core.data.captions import CaptionSet
from zerokara.core.data.sources import image_lumas
from zerokara.core.data_parallel import check_sync_batch_norm
from zerokara.core.distributed import World
from zerokara.core.models.model_file import MODEL_FILE
from zerokara.core.models.normalization import decide_normalization, format_normalization
from zerokara.core.report import figure_pixels, write_json
from zerokara.core.run import Run
from zerokara.core.training_program import check_batch_norm, check_divisible, choose_compute, images_per_pass, open_run
from zerokara.core.zoo import provenance
from zerokara.vision.captioning.inputs import BackboneSource, Data, load_weights
from zerokara.vision.captioning.learner import Training
from zerokara.vision.captioning.network import Captioner
from zerokara.vision.captioning.pictures import Entry, draw, page
from zerokara.vision.captioning.scoring import bleu, most_frequent, nearest, sentence_bleu
from zerokara.vision.training.epochs import probe_update, restore, run_epochs, stopped_message, total_updates

MAX_SHOWN = 12  # images in TensorBoard
IS_BETTER: Mapping[str, Callable[[float, float], bool]] = {
    "bleu": operator.gt,
    "loss": operator.lt,
    "last": lambda new, best: True,
}
"""Comparison of a validation metric with the best one, by --select."""


def train(config: Config, run: Run, data: Data, compute: Compute, world: World) -> str:
    """Train from the current update to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, or training diverged.
    """
    training = Training(config, data, compute, world)
    resumed = restore(training, run, lambda network: load_backbone(config, network))
    named = ", by the names of folders and files" if config.named_splits and data.train.splits else ""
    run.print(
        f"{data.train.source}: {format_count(len(data.train), 'training image')}, "
        f"{format_count(len(data.validation), 'validation image')}, "
        f"{format_count(len(data.test), 'test image')}{named}; vocabulary of {len(training.metadata.words):,} words"
    )
    for message in data.train.messages:
        run.print(message)
    if config.published_normalization:
        run.print(format_normalization(config, training.metadata.backbone))
    if not resumed:
        provenance.record(run, config.pretrained_backbone)
        training.save(run)
    if run_epochs(training, run, lambda: validate(training, run)):
        return stopped_message(training, run, KIND)
    with run.interruptible(on=world.size == 1):  # several processes stop together, during an evaluation
        return finish(training, run)


def load_backbone(config: Config, network: Captioner) -> list[str]:
    """Load the pretrained weights of the backbone, if the config names any. Return a message about its weights.

    Raises:
        UserError: the weights are missing or damaged, or do not fit.
    """
    report = load_weights(config, network.backbone) or "random weights"
    trained = "trained" if config.trains_backbone else "frozen"
    return [f"backbone: {network.metadata.backbone}, {report}; {trained}"]


def validate(training: Training, run: Run) -> None:
    """Evaluate on the validation images, save the weights if they are the best, and log images with captions.

    The processes divide the images; the main process does the rest.
    """
    config, images = training.config, training.data.validation
    captions, features_NF = training.generate_in_processes(run, images)
    loss = training.validation_loss(run, features_NF, images)
    if not run.world.is_main:
        return
    scores = bleu(captions, images.captions)
    run.log(training.updates, {**{f"val/{name}": value for name, value in scores.items()}, "val/loss": loss})
    metric = loss if config.select == "loss" else scores["bleu4"]
    is_best = training.best is None or IS_BETTER[config.select](metric, training.best["figure"])
    training.record_validation(metric, is_best=is_best, save_weights=True)
    if is_best:
        results = {f"validation_{name}": value for name, value in scores.items()}
        metadata = replace(training.metadata, figures=results)
        metadata.save(run.path(MODEL_FILE), training.network.state_dict())
    shown = [Entry(image_at(images, index), captions[index]) for index in range(min(MAX_SHOWN, len(captions)))]
    run.image("captions", training.updates, figure_pixels(draw(shown)))


def image_at(images: CaptionSet, index: int) -> Any:
    """Return one image (H, W, 3) uint8."""
    return images.images[index].permute(1, 2, 0).numpy()


def finish(training: Training, run: Run) -> str:
    """Load the best weights, evaluate the test images, and write captions.html and result.json.

    The processes divide the images; the main process does the rest.

    Returns:
        The closing message.
    """
    config, data = training.config, training.data
    training.load_best_weights()
    captions, features_NF = training.generate_in_processes(run, data.test)
    train_features_MF = training.features_in_processes(run, data.train.images)
    if not run.world.is_main:
        return ""
    assert training.best is not None
    nearest_N = nearest(features_NF, train_features_MF)
    frequent = most_frequent(data.train.captions)
    by_method = {
        "nic": captions,
        "most_frequent": [frequent] * len(captions),
        "nearest": [data.train.captions[index][0] for index in nearest_N],
    }
    results = {name: bleu(of_method, data.test.captions) for name, of_method in by_method.items()}
    metrics = {f"test_{name}_{key}": value for name, scores in results.items() for key, value in scores.items()}
    run.log_results(training.updates, config, metrics)
    metadata = replace(training.metadata, figures=metrics)
    metadata.save(run.path(MODEL_FILE), training.network.state_dict())
    entries = [
        Entry(
            image_at(data.test, index),
            captions[index],
            data.test.captions[index],
            sentence_bleu(captions[index], data.test.captions[index]),
            (("most similar training image", by_method["nearest"][index]),),
        )
        for index in range(len(captions))
    ]
    entries.sort(key=lambda entry: -(entry.score or 0.0))
    protocol = {
        "data": config.data,
        "split": config.split_seed,
        "seed": config.seed,
        "train_images": len(data.train),
        "validation_images": len(data.validation),
        "test_images": len(data.test),
        "epoch": training.best["epoch"],
        "beams": config.beam_size,
        "length_power": config.length_penalty,
        "words": len(training.metadata.words),
        "bleu": "sacrebleu, corpus, all references, lowercase without punctuation, unsmoothed",
        "hours": training.trained_hours,
    }
    names = list(data.test.names)
    write_json(run.path("result.json"), {"figures": results, "protocol": protocol, "test": names, "said": captions})
    introduction = [
        "Test images, sorted by the BLEU score of their caption, best first. Reference captions are listed below it.",
        *(f"{name}: {format_scores(scores)}" for name, scores in results.items()),
        f"Most frequent training caption: {frequent}",
    ]
    html = page(f"{run.folder.name}: captions of the test images", introduction, entries)
    checkpoint.write_atomically(run.path("captions.html"), lambda file: file.write(html.encode()))
    best_and_worst = entries[: MAX_SHOWN // 2] + entries[-MAX_SHOWN // 2 :]
    run.image("test_captions", training.updates, figure_pixels(draw(best_and_worst)))
    bleu4 = ", ".join(f"{name} {scores['bleu4']:.2f}" for name, scores in results.items())
    return (
        f"{config.data}: BLEU-4 on {len(captions)} test images: {bleu4}; see {run.path('captions.html')}; try it with: "
        f"{program_command('vision.caption_predict')} {run.folder} photo.jpg"
    )


def format_scores(scores: Mapping[str, float]) -> str:
    """Format scores for a line of text."""
    return ", ".join(f"{name} {value:.1f}" for name, value in scores.items())


def check_backbone(config: Config, data: Data) -> None:
    """Build the backbone and load the weights of a new run, to find errors before the run folder is created.

    Raises:
        UserError: the backbone does not exist or does not fit the image size; the weights are missing or do not fit.
    """
    source = BackboneSource.from_config(config, data.train)
    backbone = make_backbone(source.backbone, len(source.mean), config.image_size, **source.options)
    if not config.resume:
        load_weights(config, backbone)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: config, data, run folder, hardware, training, closing message."""
    config = read_config(argv, __doc__ or "")
    world = World.from_env(config.device)
    check_divisible(config, world, "batch_size")
    check_sync_batch_norm(config, world)
    config, lines = with_background(config, partial(image_lumas, config.data))
    data = Data.load(config)
    check_backbone(config, data)
    config = decide_normalization(config, channels=3)
    captions_per_pass = images_per_pass(config.batch_size, len(data.train), world) * min(map(len, data.train.captions))
    check_batch_norm(nn.BatchNorm1d(1, affine=False, device="meta"), (1,), captions_per_pass)
    updates = total_updates(config, data)
    # The vocabulary, and with it the size of the network, is that of all images.
    batch_size = min(config.batch_size, len(data.train)) // world.size
    timed = TrainStep(partial(probe_update, Training, config, data, only_first_images=False), batch_size)
    source = BackboneSource.from_config(config, data.train)
    with open_run(config, KIND, world) as run:
        for line in lines:
            run.print(line)
        source.save(run)
        compute = run.compute(lambda: choose_compute(config, world, timed, updates), 1)
        run.close(train(config, run, data, compute, world))


if __name__ == "__main__":
    run_main(main)
