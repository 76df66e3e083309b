"""Train binarized networks (vision.binary) on MNIST with several seeds and report the mean error. Prints JSON.

    python -m benchmarks.binary --seeds 1 2 3          # validation error, for choosing settings
    python -m benchmarks.binary --seeds 1 2 3 --test   # test error, once, after all choices

Runs are saved in runs/<prefix>-<seed>. Unknown arguments are passed to vision.binary. Finished seeds are not trained
again; an interrupted seed is resumed. With --test, the packed files are evaluated on the test set after all runs have
finished. The result is saved in runs/<prefix>.json, and later calls print that file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import seeds
from zerokara.core.config import from_dict, run_main
from zerokara.core.machine import describe_machine
from zerokara.core.report import write_json
from zerokara.core.run import Run
from zerokara.vision.binarization.config import KIND, PRESETS, Config
from zerokara.vision.binarization.network import BinaryMetadata
from zerokara.vision.classification.learner import load_split
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.studies.grid import mean_interval

BINARY = seeds.Program(KIND, Config, PRESETS)


def describe(folder: Path) -> dict[str, Any]:
    """Collect the settings and results of a finished run."""
    content = Run.read_config(folder, KIND)
    result = seeds.read_run_result(folder, "epochs", "hours", mappings=("bytes",))
    return {
        "run": folder.name,
        "seed": content["config"]["seed"],
        "command": content["command"],
        "epochs": result["protocol"]["epochs"],
        "minutes_of_training_and_validation": round(60 * result["protocol"]["hours"], 2),
        "minutes_from_start_to_end": seeds.wall_minutes(folder),
        "packed_bytes": result["bytes"].get("packed_bytes"),
        "times_smaller": result["bytes"].get("ratio"),
        "validation_error": result["figures"]["validation_error"],
    }


def test_error(folder: Path) -> float:
    """Compute the error of the packed file on the test images, in float32."""
    config = from_dict(Config, Run.read_config(folder, KIND)["config"], str(folder / "config.json"))
    network, _ = BinaryMetadata.load(folder)
    images = load_split(config.for_data(), "test")
    with torch.no_grad():
        batches = images.images.split(config.eval_batch_size)
        logits_NK = torch.cat([network.eval()(pixels.float() * (1 / 255)) for pixels in batches])
    return Scores(logits_NK.softmax(1), images.labels).error


def main() -> None:
    """Train the missing runs, evaluate all of them, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--prefix", default="mnist-binary", help="prefix of the run names")
    parser.add_argument("--test", action="store_true", help="evaluate on the test set after all runs")
    arguments, extra_args = parser.parse_known_args()
    path = Path("runs") / f"{arguments.prefix}.json"
    folders = [
        seeds.train(f"{arguments.prefix}-{seed}", ["--data", arguments.data, *extra_args, "--seed", str(seed)], BINARY)
        for seed in arguments.seeds
    ]
    names = [folder.name for folder in folders]
    result = seeds.load_saved_result(path, arguments.test, names)
    if result is None:
        runs = [describe(folder) for folder in folders]
        if arguments.test:
            for run, folder in zip(runs, folders, strict=True):
                run["test_error"] = test_error(folder)
        result = {
            "what": f"error of a binarized network on {arguments.data}",
            "of": names,
            "protocol": {
                **{key: value for key, value in read_protocol(folders[0]).items() if key.endswith("_images")},
                "test_set": "read once, after all runs were done" if arguments.test else "not read",
                "chosen_on": "validation images, held out of the training set",
                "machine": describe_machine(),
            },
        }
        for split in ("validation", "test") if arguments.test else ("validation",):
            result[split] = dataclasses.asdict(mean_interval(run[f"{split}_error"] for run in runs))
        result["minutes"] = dataclasses.asdict(mean_interval(run["minutes_of_training_and_validation"] for run in runs))
        result["runs"] = runs
        if arguments.test:
            write_json(path, result)
    print(json.dumps(result, indent=2))


def read_protocol(folder: Path) -> dict[str, Any]:
    """Read the protocol of a run, with the numbers of training and validation images."""
    return dict(seeds.read_run_result(folder)["protocol"])


if __name__ == "__main__":
    run_main(main)
