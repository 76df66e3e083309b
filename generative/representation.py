"""Evaluate the discriminator's features: a linear classifier on top of them, trained with few labels.

    python -m generative.representation runs/dcgan-mnist-fast-1
    python -m generative.representation runs/dcgan-mnist-fast-1 --labels 100 1000 60000 --seeds 5
    python -m generative.representation runs/dcgan-mnist-fast-1 --supervised runs/classify-mnist

Radford et al. 2016, section 5: the outputs of all stages of the backbone are max-pooled to 4x4 and concatenated, and
a linear SVM is trained on them. It is compared with the same network with random weights, and with a supervised one:
a run of vision.classify, or the same network trained here from scratch on the same labels (also with its own last
layer).

Every seed draws other labels, equally many per class. C is chosen by cross-validation on these labels; then the SVM is
trained on all of them. The test set is used only for the reported errors. Writes representation.json and
media/representation.png to the run's folder.

Shapes: N images, C channels, H, W pixels, F features, K classes.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from zerokara.core import foreign_names as names
from zerokara.core import schedules
from zerokara.core.command_line import Requirement, check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, from_dict, run_main
from zerokara.core.programs import program_command
from zerokara.core.zoo.registry import find_file
from zerokara.generative.gan.config import KIND, Config

SIDE = 4  # of the pooled feature maps
CANDIDATES = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # values of C, for features with a norm of about 1
CHUNK = 250  # images per forward pass
BATCHNORM_CHUNKS = 40  # chunks of training images that measure BatchNorm statistics
BATCH_SIZE = 100  # of the supervised network that is trained here
LEARNING_RATE = 1e-3
DISCRIMINATOR, RANDOM, SUPERVISED, OWN_LAYER = (
    "discriminator",
    "random network",
    "supervised",
    "supervised, its own last layer",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of generative.representation."""

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = {
        "dataset": "is not an option here: the data are those of the run.",
        "data": "is not an option here: the data are those of the run.",
        "num_labels": "labels",
        "n_labels": "labels",
        "train_images": "labels",
        "seed": "is --seeds here, the number of random draws of labels.",
        "checkpoint": "which",
        "epoch": "which",
        "epochs": "is --updates here, in updates and not in epochs.",
        "steps": "updates",
        "cuda": names.DEVICE,
        "gpu": names.DEVICE,
        "num_threads": "threads",
    }
    REQUIRES: ClassVar[Mapping[str, Requirement]] = {
        "seeds": (lambda options: any(options.labels), "--labels with a number other than 0, which means all"),
        "updates": (lambda options: not options.supervised, 'an empty --supervised ""'),
    }
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": ("run", "which", "labels", "seeds"),
        "supervised network": ("supervised", "updates"),
        "output": ("json",),
        "hardware": ("device", "threads"),
    }

    run: Annotated[str, Positional("runs/<name>")] = ""
    """Folder of the run."""
    which: Literal["best", "last"] = "best"
    """Discriminator of the run's best or last checkpoint."""
    labels: Annotated[tuple[int, ...], Range(0)] = (100, 1_000, 0)
    """Numbers of labeled training images (0: all)."""
    seeds: Annotated[int, Range(1, 100)] = 5
    """Number of random draws of labels. With all images there is only one."""
    supervised: str = ""
    """Supervised classifier (none: train one on the same labels). A run's folder, a file, or a network of the zoo."""
    updates: Annotated[int, Range(1)] = 2_000
    """Training steps of that classifier, with batches of 100 images."""
    json: bool = False
    """Print JSON instead of a table."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads (0: one per core)."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
import torch.nn.functional as F
from rich import box
from rich.table import Table
from torch import Tensor, nn

from zerokara.core import checkpoint
from zerokara.core.backbones.base import Backbone
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.eager_optim import Adam
from zerokara.core.ema import Ema
from zerokara.core.media import write_png
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.progress import Progress
from zerokara.core.report import figure_pixels, plain_ticks, table_console, write_json
from zerokara.core.run import Run
from zerokara.generative.gan.data import load_split
from zerokara.generative.gan.learner import make_discriminator
from zerokara.generative.gan.sampler import BEST
from zerokara.generative.scoring import svm
from zerokara.generative.scoring.feature_extractor import preprocess

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StageExtractor:
    """Backbone in evaluation mode, and the function that converts uint8 pixels to its input."""

    backbone: Backbone
    preprocess: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def features(self, images_NCHW: Tensor, compute: Compute) -> Tensor:
        """Max-pool every stage to at most 4x4 and concatenate: (N, F) float32 on the device."""
        features = []
        for chunk in images_NCHW.split(CHUNK):
            maps = self.backbone.stages(self.preprocess(chunk.to(compute.torch_device)))
            features.append(torch.cat([pool(stage).flatten(1) for stage in maps], 1))
        return torch.cat(features)


@dataclass(frozen=True)
class Result:
    """Error rate on the test set, of one network with one draw of labels."""

    network: str
    labels: int
    seed: int
    error: float
    c: float | None  # of the SVM; None for the supervised network's own last layer


@dataclass(frozen=True)
class Inputs:
    """Data and discriminator of a run."""

    config: Config
    train: ImageSet
    test: ImageSet
    discriminator: dict[str, Tensor]
    update: int
    compute: Compute

    def scale(self, images_NCHW: Tensor) -> Tensor:
        """Scale uint8 pixels to the range of the discriminator's input."""
        pixels_NCHW = images_NCHW.float() / 255
        return pixels_NCHW * 2 - 1 if self.config.discriminator_input == "signed" else pixels_NCHW


def pool(map_NCHW: Tensor) -> Tensor:
    """Max-pool a feature map to 4x4. Sides below 4 are kept."""
    pooled: Tensor = F.adaptive_max_pool2d(map_NCHW, [min(SIDE, side) for side in map_NCHW.shape[2:]])
    return pooled


def read(options: Options, progress: Progress) -> Inputs:
    """Load the run's discriminator, its labeled training images, and the test set.

    Raises:
        UserError: no such run, data without classes, a class-conditional discriminator, or too few labels.
    """
    if not options.run:
        raise UserError(
            f"No run was named: give its folder, as in {program_command('generative.representation')} runs/<name>."
        )
    folder = Path(options.run)
    config = from_dict(Config, Run.read_config(folder, KIND)["config"], f"{folder}/config.json")
    if config.conditional:
        raise UserError(
            f"{folder} was trained with --conditional, so its discriminator received every label: "
            f"give an unconditional run."
        )
    path = folder / (BEST if options.which == "best" else "checkpoint-0.pt")
    if not path.is_file():
        raise UserError(f"{folder} has no {path.name} yet: wait for its first evaluation.")
    state = checkpoint.load(path, KIND)["learner"]

    train, test = (load_split(config, split, progress.show_loading)[0] for split in ("train", "test"))
    if len(train.classes) < 2:
        raise UserError(f"{train.source} has no classes: give a run on images with classes.")
    for number in options.labels:
        if not svm.FOLDS * len(train.classes) <= (number or len(train)) <= len(train):
            raise UserError(
                f"--labels cannot be {number}: at least {svm.FOLDS * len(train.classes)} labels are needed for "
                f"cross-validation, and there are {len(train):,}; 0 means all."
            )
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    return Inputs(config, train, test, state["discriminator"], state["updates"], compute)


def draw_labeled(train: ImageSet, number: int, seed: int) -> ImageSet:
    """Draw `number` random images, equally many per class as far as possible."""
    order_N = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    label_N = train.labels[order_N]
    rank_N = torch.empty_like(label_N)  # within its class
    for label in range(len(train.classes)):
        rank_N[label_N == label] = torch.arange(int((label_N == label).sum()))
    return train.take(order_N[(rank_N * len(train.classes) + label_N).argsort()[:number]])


def make_extractor(inputs: Inputs, weights: dict[str, Tensor] | None, seed: int) -> StageExtractor:
    """Create an extractor with the discriminator's weights, or with random ones.

    In both, BatchNorm statistics are measured on real images. The discriminator's own are averages of real and
    generated images, and a random network has none.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make_discriminator(inputs.config, inputs.train.shape, 0)
    if weights is not None:
        network.load_state_dict(weights)
    average = Ema(inputs.compute.module(network.backbone), 1.0)
    order_N = torch.randperm(len(inputs.train), generator=torch.Generator().manual_seed(0))
    images = inputs.train.images[order_N[: BATCHNORM_CHUNKS * CHUNK]]
    average.recalibrate(inputs.scale(chunk.to(inputs.compute.torch_device)) for chunk in images.split(CHUNK))
    return StageExtractor(average.module, inputs.scale)


def classifier_extractor(inputs: Inputs, name: str) -> StageExtractor:
    """Create an extractor with a classifier's backbone and the preprocessing of its metadata.

    Raises:
        UserError: no such classifier.
    """
    classifier, metadata = ClassifierMetadata.load(find_file(name))
    return StageExtractor(
        inputs.compute.module(classifier.requires_grad_(False)).backbone, lambda images: preprocess(images, metadata)
    )


def train_supervised(inputs: Inputs, labeled: ImageSet, updates: int, seed: int) -> tuple[StageExtractor, nn.Module]:
    """Train the same network from scratch on these labels. Returns its backbone and its last layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = make_discriminator(inputs.config, inputs.train.shape, 0).backbone
        layer = nn.Linear(backbone.features, len(labeled.classes))
    network = inputs.compute.module(nn.Sequential(backbone, nn.Flatten(), layer)).train()
    optimizer = Adam(network.parameters(), lr=LEARNING_RATE)
    device, random = inputs.compute.torch_device, torch.Generator().manual_seed(seed)
    images_NCHW, label_N = labeled.images.to(device), labeled.labels.to(device)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = schedules.cosine(update, LEARNING_RATE, 0.01 * LEARNING_RATE, 0, updates)
        index_B = torch.randperm(len(labeled), generator=random)[:BATCH_SIZE].to(device)
        loss = F.cross_entropy(network(inputs.scale(images_NCHW[index_B])), label_N[index_B])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    return StageExtractor(backbone, inputs.scale), nn.Sequential(nn.Flatten(), layer)


def linear_layer_error(extractor: StageExtractor, layer: nn.Module, images: ImageSet, compute: Compute) -> float:
    """Return the error rate of a backbone with its own last layer."""
    device, wrong = compute.torch_device, 0
    with torch.no_grad():
        for chunk, label_N in zip(images.images.split(CHUNK), images.labels.split(CHUNK), strict=True):
            logits_NK = layer(extractor.backbone(extractor.preprocess(chunk.to(device))))
            wrong += int((logits_NK.argmax(1) != label_N.to(device)).sum())
    return wrong / len(images)


def svm_error(extractor: StageExtractor, labeled: ImageSet, test: ImageSet, compute: Compute) -> tuple[float, float]:
    """Return the test error of a linear SVM on an extractor's features, and the C that was chosen."""
    train_NF = extractor.features(labeled.images, compute)
    mean_F, std_F = train_NF.mean(0), train_NF.std(0)
    # Nearly constant features must not be amplified. Division by sqrt(F) makes norms about 1.
    scale_F = 1 / (std_F.clamp(min=float(0.01 * std_F.mean()) + 1e-12) * std_F.numel() ** 0.5)
    train_NF.sub_(mean_F).mul_(scale_F)
    classes, label_N = len(labeled.classes), labeled.labels.to(train_NF.device)
    c = svm.choose_c(train_NF, label_N, classes, CANDIDATES)
    weight_GK = svm.fit(train_NF, label_N, classes, c)
    test_NF = extractor.features(test.images, compute).sub_(mean_F).mul_(scale_F)
    return svm.error(test_NF, test.labels.to(test_NF.device), weight_GK), c


def compare(options: Options, inputs: Inputs, progress: Progress) -> Iterator[Result]:
    """Evaluate every network with every number of labels and every seed."""
    discriminator = make_extractor(inputs, inputs.discriminator, 0)
    classifier = classifier_extractor(inputs, options.supervised) if options.supervised else None
    numbers = sorted({number or len(inputs.train) for number in options.labels})
    draws = [(n, seed) for n in numbers for seed in range(1 if n == len(inputs.train) else options.seeds)]
    for done, (number, seed) in enumerate(draws):
        labeled = draw_labeled(inputs.train, number, seed)
        extractors = {DISCRIMINATOR: discriminator, RANDOM: make_extractor(inputs, None, 1_000 + seed)}
        progress.show(done, len(draws), {"labels": number, "seed": seed})
        if classifier is None:
            extractors[SUPERVISED], layer = train_supervised(inputs, labeled, options.updates, seed)
            error = linear_layer_error(extractors[SUPERVISED], layer, inputs.test, inputs.compute)
            yield Result(OWN_LAYER, number, seed, error, None)
        else:
            extractors[SUPERVISED] = classifier
        for name, extractor in extractors.items():
            error, c = svm_error(extractor, labeled, inputs.test, inputs.compute)
            yield Result(name, number, seed, error, c)


def errors_by_network(results: Sequence[Result]) -> dict[str, dict[int, list[float]]]:
    """Group errors by network and number of labels."""
    errors: dict[str, dict[int, list[float]]] = {}
    for name in (DISCRIMINATOR, RANDOM, SUPERVISED, OWN_LAYER):
        for result in results:
            if result.network == name:
                errors.setdefault(name, {}).setdefault(result.labels, []).append(result.error)
    return errors


def make_table(errors: dict[str, dict[int, list[float]]]) -> Table:
    """Make a table of errors over the seeds, with a row per network and a column per number of labels."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("test error with")
    for number in next(iter(errors.values())):
        table.add_column(f"{number:,} labels", justify="right")
    for name, by_number in errors.items():
        table.add_row(name, *(format_errors(values) for values in by_number.values()))
    return table


def format_errors(values: Sequence[float]) -> str:
    """Format mean and standard deviation in percent. A single value has no deviation."""
    if len(values) == 1:
        return f"{values[0]:.2%}"
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f} %"


def draw_errors(errors: dict[str, dict[int, list[float]]]) -> Figure:
    """Plot mean errors over the number of labels, with a pale dot for every seed. Both axes are logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for index, (name, by_number) in enumerate(errors.items()):
        # An error of 0 cannot be shown on a logarithmic axis.
        means = [100 * max(statistics.mean(values), 1e-4) for values in by_number.values()]
        axes.plot(list(by_number), means, "o-", color=f"C{index}", label=name)
        for number, values in by_number.items():
            axes.scatter(
                [number] * len(values), [100 * max(v, 1e-4) for v in values], s=12, color=f"C{index}", alpha=0.4
            )
    axes.set(xscale="log", yscale="log", xlabel="labeled images", ylabel="test error, %")
    plain_ticks(axes.yaxis)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def report(options: Options, inputs: Inputs, results: Sequence[Result]) -> dict[str, Any]:
    """Return the errors and their protocol as plain values."""
    errors = errors_by_network(results)
    return {
        "run": Path(options.run).resolve().name,
        "test_errors": {
            name: {str(number): values for number, values in by_number.items()} for name, by_number in errors.items()
        },
        "c": {
            name: {
                str(number): [result.c for result in results if (result.network, result.labels) == (name, number)]
                for number in by_number
            }
            for name, by_number in errors.items()
            if name != OWN_LAYER
        },
        "protocol": {
            "features": f"stages of {inputs.config.backbone} max-pooled to {SIDE}x{SIDE}, concatenated, standardized",
            "classifier": "linear SVM, one against the rest, squared hinge; C by cross-validation on the same labels",
            "candidates": list(CANDIDATES),
            "train": inputs.train.source,
            "test": f"{len(inputs.test):,} images of {inputs.test.source}",
            "which": options.which,
            "update": inputs.update,
            "supervised": options.supervised
            or f"the same network, {options.updates:,} updates of {BATCH_SIZE} of the same labels, no augmentation",
            "options": dataclasses.asdict(options),
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the networks, write the results, and print them."""
    options = parse(Options, {}, argv, __doc__ or "")
    progress = Progress(silent=options.json)
    try:
        inputs = read(options, progress)
        results = list(compare(options, inputs, progress))
    finally:
        progress.close()
    content = report(options, inputs, results)
    folder = Path(options.run)
    path = write_json(folder / "representation.json", content)
    (folder / "media").mkdir(exist_ok=True)
    write_png(folder / "media" / "representation.png", figure_pixels(draw_errors(errors_by_network(results))))
    if options.json:
        print(path.read_text(), end="")
        return
    table_console().print(make_table(errors_by_network(results)))
    for name in ("features", "classifier", "supervised", "test"):
        print(f"{name}: {content['protocol'][name]}")
    print(f"{folder / 'representation.json'} and {folder / 'media' / 'representation.png'}")


if __name__ == "__main__":
    run_main(main)
