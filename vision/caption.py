"""Caption: a photograph is put into words.

    python -m vision.caption --data flickr8k-1000

Vinyals et al. 2015, "Show and Tell": any network of core.backbones sees, an LSTM tells what, word by word, and a beam
search finds the sentence. The eye's weights come from a run or the zoo (--pretrained-backbone) or from torchvision
(--weights) and then stay as they are; without either it learns along. docs/caption.md has the figures.

Photographs are split by --split into those that are learnt from, those on which the best epoch is chosen, and those on
which BLEU-1 to 4 are taken, once, when it is over, beside two baselines: the sentence said most often, and what was
said of the photograph that looks most alike. runs/<name>/captions.html shows them all.

Shapes: N photographs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zerokara.core import checkpoint
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import run_main, to_dict
from zerokara.core.data.captions import CaptionSet
from zerokara.core.distributed import World
from zerokara.core.programs import program_command
from zerokara.core.report import figure_pixels, write_json
from zerokara.core.run import Run
from zerokara.core.run_config import configure, stem
from zerokara.core.zoo import provenance
from zerokara.vision.captioning import network
from zerokara.vision.captioning.config import PRESETS, Config, Data, Start
from zerokara.vision.captioning.learner import Sentences, Training
from zerokara.vision.captioning.network import look
from zerokara.vision.captioning.pictures import Entry, draw, page
from zerokara.vision.captioning.scoring import bleu, most_frequent, nearest, sentence_bleu
from zerokara.vision.training.epochs import check_batch, probe_updates, restore, run_epochs, save, stopped_message

KIND = "caption"
CHANGEABLE = {"resume", "quiet", "threads"}
SHOWN = 12  # photographs in TensorBoard
BETTER: Mapping[str, Callable[[float, float], bool]] = {
    "bleu": operator.gt,
    "loss": operator.lt,
    "last": lambda new, best: True,
}
"""Whether the figure of a validation is better than the best one, by --select."""


def train(config: Config, run: Run, data: Data, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, weights that are no numbers any more.
    """
    training = Training(config, data, compute, world)
    resumed = restore(training, run)
    run.print(
        f"{data.train.source}: {len(data.train):,} to learn from, {len(data.validation):,} to choose on, "
        f"{len(data.test):,} to be scored on; {len(training.metadata.words):,} words"
    )
    if not resumed:
        provenance.record(run, config.pretrained_backbone)
        learns = "learns along" if training.learns_eye else "stays as is"
        run.print(f"eye: {training.metadata.backbone}, {training.report}; it {learns}")
        save(training, run)
    if run_epochs(training, run, lambda: validate(training, run)):
        return stopped_message(training, KIND)
    return finish(training, run) if world.is_main else ""


def validate(training: Training, run: Run) -> None:
    """Describe the validation photographs, keep the best weights, show some."""
    config, photographs = training.config, training.data.validation
    said, features_NF = training.describe(photographs)
    scores = bleu(said, photographs.captions)
    sentences = Sentences(photographs.captions, training.network.vocabulary, config.longest)
    loss = training.validation_loss(features_NF, sentences)
    run.log(training.updates, {**{f"val/{name}": value for name, value in scores.items()}, "val/loss": loss})
    figure = loss if config.select == "loss" else scores["bleu4"]
    better = training.best is None or BETTER[config.select](figure, training.best["figure"])
    training.record_validation(figure, is_best=better, save_weights=True)
    if better:
        figures = {f"validation_{name}": value for name, value in scores.items()}
        network.save(run.path(network.MODEL_FILE), training.network, replace(training.metadata, figures=figures))
    shown = [Entry(picture_of(photographs, place), said[place]) for place in range(min(SHOWN, len(said)))]
    run.image("captions", training.updates, figure_pixels(draw(shown)))


def picture_of(photographs: CaptionSet, place: int) -> Any:
    """One photograph (H, W, 3) uint8."""
    return photographs.images[place].permute(1, 2, 0).numpy()


def finish(training: Training, run: Run) -> str:
    """Take the best weights, score the test photographs, write the page and result.json. The closing sentence."""
    config, data = training.config, training.data
    assert training.best is not None
    training.load_best_weights()
    said, features_NF = training.describe(data.test)
    learnt = look(training.network, training.compute, data.train.images)
    alike = nearest(features_NF, learnt)
    usual = most_frequent(data.train.captions)
    theirs = {
        "nic": said,
        "most_frequent": [usual] * len(said),
        "nearest": [data.train.captions[place][0] for place in alike],
    }
    figures = {name: bleu(sentences, data.test.captions) for name, sentences in theirs.items()}
    flat = {f"test_{name}_{key}": value for name, scores in figures.items() for key, value in scores.items()}
    run.log(training.updates, {f"final/{name}": value for name, value in flat.items()})
    run.hparams(to_dict(config), {f"hparam/{name}": value for name, value in flat.items()})
    network.save(run.path(network.MODEL_FILE), training.network, replace(training.metadata, figures=flat))
    entries = [
        Entry(
            picture_of(data.test, place),
            said[place],
            data.test.captions[place],
            sentence_bleu(said[place], data.test.captions[place]),
            (("nearest photograph", theirs["nearest"][place]),),
        )
        for place in range(len(said))
    ]
    entries.sort(key=lambda one: -(one.score or 0.0))
    protocol = {
        "data": config.data,
        "split": config.split,
        "seed": config.seed,
        "train_images": len(data.train),
        "validation_images": len(data.validation),
        "test_images": len(data.test),
        "epoch": training.best["epoch"],
        "beams": config.beams,
        "length_power": config.length_power,
        "words": len(training.metadata.words),
        "bleu": "sacrebleu, corpus, all references, small letters without punctuation, unsmoothed",
        "hours": training.stopwatch(),
    }
    names = list(data.test.names)
    write_json(run.path("result.json"), {"figures": figures, "protocol": protocol, "test": names, "said": said})
    about = [
        "Best first, by the BLEU of each sentence alone; beneath stands what people said.",
        *(
            f"{name}: {', '.join(f'{key} {value:.1f}' for key, value in scores.items())}"
            for name, scores in figures.items()
        ),
        f"Said most often of the photographs learnt from: {usual}",
    ]
    html = page(f"{run.folder.name}: photographs in words", about, entries)
    checkpoint.write_atomically(run.path("captions.html"), lambda file: file.write(html.encode()))
    run.image("test_captions", training.updates, figure_pixels(draw(entries[: SHOWN // 2] + entries[-SHOWN // 2 :])))
    scores = ", ".join(f"{name} {figures[name]['bleu4']:.2f}" for name in figures)
    return (
        f"{config.data}: BLEU-4 on {len(said)} photographs: {scores}; see {run.path('captions.html')}; try it with: "
        f"{program_command('vision.caption_predict')} {run.folder} photo.jpg"
    )


def in_words(scores: dict[str, float]) -> str:
    """Scores for a line of text."""
    return ", ".join(f"{name} {value:.1f}" for name, value in scores.items())


def choose_compute(config: Config, data: Data, world: World) -> Compute:
    """Measure updates on the first photographs."""
    return probe_updates(config, world, lambda compute: Training(config, data, compute, World()))


def check_eye(config: Config, data: Data) -> None:
    """Refuse an eye that cannot be, before it has a folder.

    Raises:
        UserError: a backbone that does not exist or fit, weights that are not there or do not fit.
    """
    start = Start.of(config, data.train)
    eye = make_backbone(start.backbone, len(start.mean), config.image_size, **start.options)
    if start.fill is not None:
        start.fill(eye)


def default_name(config: Config) -> str:
    """caption-flickr8k-1000-resnet18-fast-0-1 for split 0, seed 1."""
    return f"{KIND}-{stem(config.data)}-{config.backbone}-{config.preset}-{config.split}-{config.seed}"


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, run, data, compute, loop, closing line."""
    config = configure(
        Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE
    )
    world = World.from_env(config.device)
    check_batch(config, world)
    data = Data.load(config)
    check_eye(config, data)
    with (
        Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run,
        run.signals(),
    ):
        compute = run.compute(lambda: choose_compute(config, data, world), 1)
        run.close(train(config, run, data, compute, world))
    world.close()


if __name__ == "__main__":
    run_main(main)
