"""Representation: what the discriminator's eye is worth to a classifier, by the paper's own test.

    python -m generative.representation runs/dcgan-mnist-fast-1
    python -m generative.representation runs/dcgan-mnist-fast-1 --labels 100 1000 60000 --seeds 5
    python -m generative.representation runs/dcgan-mnist-fast-1 --supervised runs/classify-mnist

Radford et al. 2016, section 5: every layer of the trunk is max-pooled to 4x4, all are joined, and a linear SVM learns
on top from some labels. Beside it stand the same network with random weights, and a supervised one: a run of
vision.classify, or the same network trained here on the same labels from scratch, with its own last layer too.

Labels are drawn anew for every seed, as many of each class. C is chosen on some of these very labels held out, then all
are learnt from; the test set is read for the errors that are printed and for nothing else. Leaves representation.json
and media/representation.png in the run's folder.

Shapes: N images, C channels, H, W pixels, F features, K classes.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from zerokara.core import checkpoint, schedules
from zerokara.core.backbones.base import Backbone
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, from_dict, parse, run_main
from zerokara.core.data import ImageSet
from zerokara.core.ema import Ema
from zerokara.core.media import write_png
from zerokara.core.models import model_file
from zerokara.core.programs import program_command
from zerokara.core.progress import Progress
from zerokara.core.report import figure_pixels, plain_ticks, write_json
from zerokara.core.run import Run
from zerokara.core.zoo.registry import find_file
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.data import load_split
from zerokara.generative.gan.learner import make_discriminator
from zerokara.generative.gan.sampler import BEST, KIND
from zerokara.generative.scoring import svm
from zerokara.generative.scoring.feature_extractor import preprocess

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 4  # to which every layer is pooled
CANDIDATES = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # of C, where features have a norm of about 1
CHUNK = 250  # images that go through a trunk together
STATISTICS = 40  # chunks of training images on which BatchNorm's statistics are measured
BATCH = 100  # of the supervised network
LEARNING_RATE = 1e-3
DISCRIMINATOR, RANDOM, SUPERVISED, OWN_LAYER = (
    "discriminator",
    "random network",
    "supervised",
    "supervised, its own last layer",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Whose eye, and how many labels."""

    run: Annotated[str, Positional("runs/<name>")] = ""
    """Folder of the run."""
    which: Literal["best", "last"] = "best"
    """The discriminator of the run's best moment or of its last."""
    labels: Annotated[tuple[int, ...], Range(0)] = (100, 1_000, 0)
    """How many labelled training images to learn from; 0: all there are."""
    seeds: Annotated[int, Range(1, 100)] = 5
    """Times that labels are drawn; all labels can be drawn once only."""
    supervised: str = ""
    """A classifier in the place of one that is trained here: a run's folder, a file, or a name of the zoo."""
    updates: Annotated[int, Range(1)] = 2_000
    """Steps of the classifier that is trained here, 100 images each."""
    json: bool = False
    """Print JSON in the place of a table."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


@dataclass(frozen=True)
class Eye:
    """A trunk in evaluation mode, and how pixels uint8 become what it takes."""

    trunk: Backbone
    fit: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def features(self, images_NCHW: Tensor, compute: Compute) -> Tensor:
        """Every layer, max-pooled to 4x4 at most, joined: (N, F) float32 on the device."""
        found = []
        for chunk in images_NCHW.split(CHUNK):
            maps = self.trunk.stages(self.fit(chunk.to(compute.torch_device)))
            found.append(torch.cat([pool(each).flatten(1) for each in maps], 1))
        return torch.cat(found)


@dataclass(frozen=True)
class Found:
    """One error on the test set."""

    eye: str
    labels: int
    seed: int
    error: float
    c: float | None  # None where no SVM is on top


@dataclass(frozen=True)
class Material:
    """What is learnt from and tested on, and by what kind of network."""

    config: Config
    train: ImageSet
    test: ImageSet
    discriminator: dict[str, Tensor]
    update: int
    compute: Compute


def pool(map_NCHW: Tensor) -> Tensor:
    """A map max-pooled to 4x4, or to its own side where that is less."""
    pooled: Tensor = F.adaptive_max_pool2d(map_NCHW, [min(SIDE, side) for side in map_NCHW.shape[2:]])
    return pooled


def as_pixels(images_NCHW: Tensor) -> Tensor:
    """What a discriminator's trunk takes: pixels from 0 to 1."""
    return images_NCHW.float() / 255


def read(options: Options, progress: Progress) -> Material:
    """The run's discriminator, its images with their labels, and the test set.

    Raises:
        UserError: no such run, or one whose data have no classes, or whose discriminator was told them; too few labels.
    """
    if not options.run:
        raise UserError(
            f"No run was named: give its folder, as in {program_command('generative.representation')} runs/<name>."
        )
    folder = Path(options.run)
    config = from_dict(Config, Run.read_config(folder, KIND)["config"], f"{folder}/config.json")
    if config.conditional:
        raise UserError(
            f"{folder} was trained with --conditional, so its discriminator was told every label: "
            f"give a run that was not."
        )
    path = folder / (BEST if options.which == "best" else "checkpoint-0.pt")
    if not path.is_file():
        raise UserError(f"{folder} has no {path.name} yet: wait for its first evaluation.")
    state = checkpoint.load(path, KIND)["learner"]

    def show(what: str, done: int, total: int) -> None:
        progress.show(done, total, {"": what})

    train, test = (load_split(config, split, show)[0] for split in ("train", "test"))
    if len(train.classes) < 2:
        raise UserError(f"{train.source} has no classes that could be told apart: give a run on images that have.")
    for number in options.labels:
        if not svm.FOLDS * len(train.classes) <= (number or len(train)) <= len(train):
            raise UserError(
                f"--labels cannot be {number}: at least {svm.FOLDS * len(train.classes)} are needed to hold some of "
                f"each class out, and there are {len(train):,}; 0 takes all."
            )
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    return Material(config, train, test, state["discriminator"], state["updates"], compute)


def draw(train: ImageSet, number: int, seed: int) -> ImageSet:
    """So many images, classes in turn for as long as they last; which ones depends on the seed."""
    order_N = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    label_N = train.labels[order_N]
    rank_N = torch.empty_like(label_N)  # among those of its class
    for label in range(len(train.classes)):
        rank_N[label_N == label] = torch.arange(int((label_N == label).sum()))
    return train.take(order_N[(rank_N * len(train.classes) + label_N).argsort()[:number]])


def make_eye(material: Material, weights: dict[str, Tensor] | None, seed: int) -> Eye:
    """The run's trunk with the discriminator's weights, or with random ones.

    BatchNorm's statistics are those of real images, in both: a discriminator keeps the mean of real and painted ones,
    and a fresh network none.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make_discriminator(material.config, material.train.shape, 0)
    if weights is not None:
        network.load_state_dict(weights)
    average = Ema(material.compute.module(network.backbone), 1.0)
    order_N = torch.randperm(len(material.train), generator=torch.Generator().manual_seed(0))
    shown = material.train.images[order_N[: STATISTICS * CHUNK]]
    average.recalibrate(as_pixels(chunk.to(material.compute.torch_device)) for chunk in shown.split(CHUNK))
    return Eye(average.module, as_pixels)


def classifier_eye(material: Material, name: str) -> Eye:
    """The trunk of a classifier, which takes images as its card says.

    Raises:
        UserError: there is none such.
    """
    classifier, metadata = model_file.load(find_file(name))
    return Eye(
        material.compute.module(classifier.requires_grad_(False)).backbone, lambda images: preprocess(images, metadata)
    )


def learn(material: Material, labelled: ImageSet, updates: int, seed: int) -> tuple[Eye, nn.Module]:
    """The same network, trained from scratch on these labels alone: its trunk, and its last layer (F of its map)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = make_discriminator(material.config, material.train.shape, 0).backbone
        layer = nn.Linear(trunk.features, len(labelled.classes))
    network = material.compute.module(nn.Sequential(trunk, nn.Flatten(), layer)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    device, random = material.compute.torch_device, torch.Generator().manual_seed(seed)
    images_NCHW, label_N = labelled.images.to(device), labelled.labels.to(device)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = schedules.cosine(update, LEARNING_RATE, 0.01 * LEARNING_RATE, 0, updates)
        index_B = torch.randperm(len(labelled), generator=random)[:BATCH].to(device)
        loss = F.cross_entropy(network(as_pixels(images_NCHW[index_B])), label_N[index_B])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    return Eye(trunk, as_pixels), nn.Sequential(nn.Flatten(), layer)


def own_error(eye: Eye, layer: nn.Module, images: ImageSet, compute: Compute) -> float:
    """Error of a trunk with its own last layer."""
    device, wrong = compute.torch_device, 0
    with torch.no_grad():
        for chunk, label_N in zip(images.images.split(CHUNK), images.labels.split(CHUNK), strict=True):
            logits_NK = layer(eye.trunk(eye.fit(chunk.to(device))))
            wrong += int((logits_NK.argmax(1) != label_N.to(device)).sum())
    return wrong / len(images)


def svm_error(eye: Eye, labelled: ImageSet, test: ImageSet, compute: Compute) -> tuple[float, float]:
    """Error on the test set of a linear SVM on an eye's features, and the C that was chosen for it."""
    learnt_NF = eye.features(labelled.images, compute)
    mean_F, std_F = learnt_NF.mean(0), learnt_NF.std(0)
    # What hardly moves in these images must not count more for it; the root of F brings norms to about 1.
    scale_F = 1 / (std_F.clamp(min=float(0.01 * std_F.mean()) + 1e-12) * std_F.numel() ** 0.5)
    learnt_NF.sub_(mean_F).mul_(scale_F)
    classes, label_N = len(labelled.classes), labelled.labels.to(learnt_NF.device)
    c = svm.choose_c(learnt_NF, label_N, classes, CANDIDATES)
    weight_GK = svm.fit(learnt_NF, label_N, classes, c)
    seen_NF = eye.features(test.images, compute).sub_(mean_F).mul_(scale_F)
    return svm.error(seen_NF, test.labels.to(seen_NF.device), weight_GK), c


def compare(options: Options, material: Material, progress: Progress) -> Iterator[Found]:
    """Every eye at every number of labels and with every seed."""
    discriminator = make_eye(material, material.discriminator, 0)
    classifier = classifier_eye(material, options.supervised) if options.supervised else None
    numbers = sorted({number or len(material.train) for number in options.labels})
    draws = [(n, seed) for n in numbers for seed in range(1 if n == len(material.train) else options.seeds)]
    for done, (number, seed) in enumerate(draws):
        labelled = draw(material.train, number, seed)
        eyes = {DISCRIMINATOR: discriminator, RANDOM: make_eye(material, None, 1_000 + seed)}
        progress.show(done, len(draws), {"labels": number, "seed": seed})
        if classifier is None:
            eyes[SUPERVISED], layer = learn(material, labelled, options.updates, seed)
            error = own_error(eyes[SUPERVISED], layer, material.test, material.compute)
            yield Found(OWN_LAYER, number, seed, error, None)
        else:
            eyes[SUPERVISED] = classifier
        for name, eye in eyes.items():
            error, c = svm_error(eye, labelled, material.test, material.compute)
            yield Found(name, number, seed, error, c)


def gathered(found: Sequence[Found]) -> dict[str, dict[int, list[float]]]:
    """Errors by eye and number of labels."""
    errors: dict[str, dict[int, list[float]]] = {}
    for name in (DISCRIMINATOR, RANDOM, SUPERVISED, OWN_LAYER):
        for one in found:
            if one.eye == name:
                errors.setdefault(name, {}).setdefault(one.labels, []).append(one.error)
    return errors


def table(errors: dict[str, dict[int, list[float]]]) -> Table:
    """A row for each eye, a column for each number of labels: mean error and its deviation over the seeds."""
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("test error with")
    for number in next(iter(errors.values())):
        shown.add_column(f"{number:,} labels", justify="right")
    for name, of in errors.items():
        shown.add_row(name, *(format_scores(values) for values in of.values()))
    return shown


def format_scores(values: Sequence[float]) -> str:
    """Mean and deviation in per cent; of one value no deviation."""
    if len(values) == 1:
        return f"{values[0]:.2%}"
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f} %"


def draw_errors(errors: dict[str, dict[int, list[float]]]) -> Figure:
    """Mean errors over the number of labels, with a pale dot for every seed; both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for place, (name, of) in enumerate(errors.items()):
        # An error of nothing has no place on such an axis.
        means = [100 * max(statistics.mean(values), 1e-4) for values in of.values()]
        axes.plot(list(of), means, "o-", color=f"C{place}", label=name)
        for number, values in of.items():
            axes.scatter(
                [number] * len(values), [100 * max(v, 1e-4) for v in values], s=12, color=f"C{place}", alpha=0.4
            )
    axes.set(xscale="log", yscale="log", xlabel="labelled images", ylabel="test error, %")
    plain_ticks(axes.yaxis)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def report(options: Options, material: Material, found: Sequence[Found]) -> dict[str, Any]:
    """What was measured, and how, as plain values."""
    return {
        "run": Path(options.run).resolve().name,
        "test_errors": {
            name: {str(number): values for number, values in of.items()} for name, of in gathered(found).items()
        },
        "c": {
            name: {str(n): [one.c for one in found if (one.eye, one.labels) == (name, n)] for n in of}
            for name, of in gathered(found).items()
            if name != OWN_LAYER
        },
        "protocol": {
            "features": f"every layer of {material.config.backbone} max-pooled to {SIDE}x{SIDE}, joined, standardised",
            "classifier": "linear SVM, one against the rest, squared hinge; C chosen on labels held out of those given",
            "candidates": list(CANDIDATES),
            "train": material.train.source,
            "test": f"{len(material.test):,} images of {material.test.source}",
            "which": options.which,
            "update": material.update,
            "supervised": options.supervised
            or f"the same network, {options.updates:,} updates of {BATCH} of the same labels, no augmentation",
            "options": dataclasses.asdict(options),
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Look, learn, test, print."""
    options = parse(Options, {}, argv, __doc__ or "")
    progress = Progress(silent=options.json)
    try:
        material = read(options, progress)
        found = list(compare(options, material, progress))
    finally:
        progress.close()
    content = report(options, material, found)
    folder = Path(options.run)
    path = write_json(folder / "representation.json", content)
    (folder / "media").mkdir(exist_ok=True)
    write_png(folder / "media" / "representation.png", figure_pixels(draw_errors(gathered(found))))
    if options.json:
        print(path.read_text(), end="")
        return
    Console().print(table(gathered(found)))
    for name in ("features", "classifier", "supervised", "test"):
        print(f"{name}: {content['protocol'][name]}")
    print(f"{folder / 'representation.json'} and {folder / 'media' / 'representation.png'}")


if __name__ == "__main__":
    run_main(main)
