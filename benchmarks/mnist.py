"""Measure the mean error on MNIST of several seeds of a preset, and the error of an ensemble. Prints JSON.

    python -m benchmarks.mnist seeds --preset fast --seeds 1 2 3 4 5          # validation error, for choosing settings
    python -m benchmarks.mnist seeds --preset fast --seeds 1 2 3 4 5 --test   # test error, once, after all choices
    python -m benchmarks.mnist ensemble runs/mnist-best-* --members 5 --test

Runs are saved in runs/<prefix>-<preset>-<seed>. Unknown arguments are passed to vision.classify. Finished seeds are not
trained again; an interrupted seed resumes exactly. 55,000 images are used for training and 5,000 for validation. With
--test, the 10,000 test images are evaluated after all runs have finished. The result is saved in
runs/<prefix>-<preset>.json, or for an ensemble in the file --out, and later calls print that file.

Ensemble members are selected greedily: each step adds the run that lowers the validation loss most (Caruana et al.
2004, without replacement). The probabilities of the members are averaged.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import seeds
from zerokara.core.config import UserError, run_main
from zerokara.core.report import write_json
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.studies.finished_run import Trained, load_trained
from zerokara.vision.studies.grid import mean_interval


def score_seeds(arguments: argparse.Namespace, extra_args: list[str]) -> dict[str, Any]:
    """Train the missing runs, then evaluate all of them."""
    path = Path("runs") / f"{arguments.prefix}-{arguments.preset}.json"
    shared = ["--preset", arguments.preset, "--data", arguments.data, *extra_args]
    folders = [
        seeds.train(f"{arguments.prefix}-{arguments.preset}-{seed}", [*shared, "--seed", str(seed)])
        for seed in arguments.seeds
    ]
    names = [folder.name for folder in folders]
    if (saved := seeds.load_saved_result(path, arguments.test, names)) is not None:
        return saved
    trained = [load_trained(folder) for folder in folders]
    runs = [seeds.describe(one) for one in trained]
    result: dict[str, Any] = {
        "what": f"error on {arguments.data}",
        "of": names,
        "protocol": seeds.protocol(trained[0], arguments.test),
    }
    if arguments.test:
        for run, one in zip(runs, trained, strict=True):
            run["test_error"] = one.score(one.images("test")).error
    for split in ("validation", "test") if arguments.test else ("validation",):
        result[split] = dataclasses.asdict(mean_interval(run[f"{split}_error"] for run in runs))
    result["runs"] = runs
    if arguments.test:
        write_json(path, result)
    return result


def choose(probability_RNK: Tensor, label_N: Tensor, members: int) -> list[int]:
    """Select ensemble members greedily by the loss of their mean. Returns run indices in the order of selection."""
    chosen: list[int] = []
    for _ in range(members):
        left = [place for place in range(len(probability_RNK)) if place not in chosen]
        losses = [Scores(probability_RNK[[*chosen, place]].mean(0), label_N).loss for place in left]
        chosen.append(left[losses.index(min(losses))])
    return chosen


def score_ensemble(arguments: argparse.Namespace) -> dict[str, Any]:
    """Select members by validation loss, then evaluate their averaged probabilities.

    Raises:
        UserError: fewer runs than members, or runs with different validation images.
    """
    path = Path(arguments.out)
    names = [Path(run).resolve().name for run in arguments.runs]
    if (saved := seeds.load_saved_result(path, arguments.test, names)) is not None:
        return saved
    if len(arguments.runs) < arguments.members:
        raise UserError(f"--members {arguments.members} is more than the number of runs given, {len(arguments.runs)}.")
    trained = [load_trained(Path(run)) for run in arguments.runs]
    scores = [seeds.validation_scores(one) for one in trained]
    label_N = scores[0].label_N
    if any(not torch.equal(label_N, one.label_N) for one in scores):
        raise UserError("these runs have different validation images: give runs of one data set.")
    probability_RNK = torch.stack([one.probability_NK for one in scores])
    chosen = choose(probability_RNK, label_N, arguments.members)
    result: dict[str, Any] = {
        "what": f"error of an ensemble of {arguments.members} of {len(trained)} runs",
        "of": names,
        "protocol": seeds.protocol(trained[0], arguments.test),
        "members": [trained[place].name for place in chosen],
        "validation_errors_of_all": {one.name: score.error for one, score in zip(trained, scores, strict=True)},
        "validation_error": Scores(probability_RNK[chosen].mean(0), label_N).error,
    }
    if arguments.test:
        members: list[Trained] = [trained[place] for place in chosen]
        tests = [one.score(one.images("test")) for one in members]
        mean_NK = torch.stack([one.probability_NK for one in tests]).mean(0)
        result["test_errors_of_members"] = [one.error for one in tests]
        result["test_error"] = Scores(mean_NK, tests[0].label_N).error
        write_json(path, result)
    return result


def main() -> None:
    """Parse the arguments, run the benchmark, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("seeds", help="the mean error of several seeds", allow_abbrev=False)
    one.add_argument("--preset", default="fast")
    one.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    one.add_argument("--data", default="mnist")
    one.add_argument("--prefix", default="mnist", help="prefix of the run names")
    many = commands.add_parser("ensemble", help="the error of an ensemble of finished runs")
    many.add_argument("runs", nargs="+", help="folders of runs")
    many.add_argument("--members", type=int, default=5)
    many.add_argument("--out", default="runs/mnist-ensemble.json")
    for command in (one, many):
        command.add_argument("--test", action="store_true", help="evaluate on the test set after all runs")
    arguments, extra_args = parser.parse_known_args()
    if arguments.what == "ensemble" and extra_args:
        parser.error(f"unknown arguments: {' '.join(extra_args)}")
    result = score_seeds(arguments, extra_args) if arguments.what == "seeds" else score_ensemble(arguments)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_main(main)
