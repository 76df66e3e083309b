"""Train on small photographs: ResNet-20 on CIFAR-10 within one hour, four networks on Imagenette in equal time.

Prints a table to stderr and JSON to stdout.

    python -m benchmarks.photographs cifar10                # validation error, for choosing settings
    python -m benchmarks.photographs cifar10 --test         # test error, once, after all choices
    python -m benchmarks.photographs imagenette --test      # half an hour for each of the four networks
    python -m benchmarks.photographs imagenette --networks resnet --minutes 57 --prefix hour --test

A run trains for --minutes. The number of epochs is computed once from the measured speed, so that an interrupted run
resumes exactly. Runs are saved in runs/<prefix>-<set>-<network>-<seed>. Finished runs are not trained again.
Unknown arguments are passed to vision.classify. The validation set is 1/12 of the training set (of Imagenette's train/;
its val/ is the test set). With --test, the test set is evaluated after all runs have finished, and the result is saved
in runs/<prefix>-<set>.json.

The networks for Imagenette use the stems for 64 pixels if they have one, the heads of their papers, and the same
augmentation. Networks without normalization layers use AdamW, the others SGD with Nesterov momentum.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import seeds
from zerokara.core.config import UserError, run_main
from zerokara.core.report import table_console, write_json
from zerokara.vision.studies.finished_run import load_trained

SHARED = (
    *("--preset", "photos", "--batch-size", "64", "--warmup-epochs", "3", "--label-smoothing", "0.1"),
    *("--crop-pixels", "6", "--scale", "0.2", "--rotation-degrees", "8", "--brightness", "0.2", "--contrast", "0.2"),
    *("--cutout", "0.25"),
)
SGD = ("--optimizer", "sgd", "--learning-rate", "0.05", "--weight-decay", "5e-4")
ADAMW = ("--optimizer", "adamw", "--learning-rate", "5e-4", "--weight-decay", "0.05", "--max-grad-norm", "1")
NETWORKS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cifar10": {
        "resnet": (*("--preset", "photos", "--backbone", "resnet20", "--learning-rate", "0.1", "--tta-views", "10"),)
    },
    "imagenette": {
        "alexnet": (*SHARED, *ADAMW, "--backbone", "alexnet", "--stem", "medium"),
        "vgg": (*SHARED, *SGD, "--backbone", "vgg11_bn"),
        "googlenet": (*SHARED, *SGD, "--backbone", "googlenet", "--stem", "medium"),
        "resnet": (*SHARED, *SGD, "--backbone", "resnet18", "--stem", "medium"),
    },
}
DATA = {"cifar10": "cifar10", "imagenette": "imagenette64"}
MINUTES = {"cifar10": 57.0, "imagenette": 30.0}  # with the start-up time, a run takes less than an hour


def table(result: Mapping[str, Any]) -> Table:
    """Create the table of all runs with their errors."""
    shown = Table("run", "parameters", "epochs", "minutes", "validation error", "test error")
    for run in result["runs"]:
        test = f"{run['test_error']:.2%}" if "test_error" in run else "not read"
        minutes = f"{run['minutes_of_training_and_validation']:.1f}"
        figures = (f"{run['parameters']:,}", str(run["epochs"]), minutes, f"{run['validation_error']:.2%}", test)
        shown.add_row(run["run"], *figures)
    return shown


def main() -> None:
    """Train the missing runs, evaluate all of them, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("set", choices=NETWORKS)
    parser.add_argument("--networks", nargs="+", help="networks to train; default: all")
    parser.add_argument("--minutes", type=float, help="minutes of training and validation per network")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", help="folder or zip; default: cifar10 or imagenette64 in $ZEROKARA_DATA")
    parser.add_argument("--prefix", default="photographs", help="prefix of the run names")
    parser.add_argument("--test", action="store_true", help="evaluate on the test set after all runs")
    arguments, extra_args = parser.parse_known_args()
    known = NETWORKS[arguments.set]
    chosen = arguments.networks or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"--networks cannot be {unknown[0]}: choose from {', '.join(known)}.")
    minutes = MINUTES[arguments.set] if arguments.minutes is None else arguments.minutes
    if minutes <= 0:
        raise UserError(f"--minutes {minutes:g} must be greater than 0.")
    shared = ["--data", arguments.data or DATA[arguments.set], "--minutes", str(minutes), "--seed", str(arguments.seed)]
    folders = [
        seeds.train(f"{arguments.prefix}-{arguments.set}-{name}-{arguments.seed}", [*known[name], *shared, *extra_args])
        for name in chosen
    ]
    path = Path("runs") / f"{arguments.prefix}-{arguments.set}.json"
    names = [folder.name for folder in folders]
    result: dict[str, Any] | None = seeds.load_saved_result(path, arguments.test, names)
    if result is None:
        trained = [load_trained(folder) for folder in folders]
        runs = [seeds.describe(one) for one in trained]
        result = {
            "what": f"error on {arguments.set}",
            "of": names,
            "protocol": {**seeds.protocol(trained[0], arguments.test), "minutes_asked_for": minutes},
            "least_validation_error": min(runs, key=lambda run: float(run["validation_error"]))["run"],
            "runs": runs,
        }
        if arguments.test:
            for run, one in zip(runs, trained, strict=True):
                run["test_error"] = one.score(one.images("test")).error
            write_json(path, result)
    table_console(stderr=True).print(table(result))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_main(main)
