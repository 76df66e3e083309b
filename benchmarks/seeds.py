"""Helpers for benchmarks of several runs: train or resume runs, and read their results. Not a program."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zerokara.core.command_line import parse
from zerokara.core.config import UserError, flag, from_dict, to_dict
from zerokara.core.machine import describe_machine
from zerokara.core.report import read_json, read_result, write_json
from zerokara.core.run import Run
from zerokara.vision.classification.config import PRESETS, Config
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.studies.finished_run import Trained

MACHINE = {"name", "resume", "quiet", "device", "threads"}  # settings that may differ between start and resume
DECIDED = {"published_normalization"}  # a run decides them at its start if they are None


class Program(NamedTuple):
    """Training program vision.<kind>, with its config class and presets."""

    kind: str
    config: type
    presets: Mapping[str, Mapping[str, Any]]


CLASSIFY = Program("classify", Config, PRESETS)


def train(name: str, extra_args: Sequence[str], program: Program = CLASSIFY) -> Path:
    """Train runs/<name> or resume it, without evaluation on the test set. Returns its folder.

    Raises:
        UserError: the folder holds a run with other settings, or the run did not finish.
    """
    folder = Path("runs") / name
    command = [*extra_args, "--name", name, "--no-test"]
    if (folder / "config.json").exists():
        settings = Run.read_config(folder, program.kind)["config"]
        saved = to_dict(from_dict(program.config, settings, str(folder / "config.json")))
        now = to_dict(parse(program.config, program.presets, command, ""))
        free = MACHINE | {key for key in DECIDED if now.get(key) is None}
        if differing := [flag(key) for key in now if key not in free and saved.get(key) != now[key]]:
            raise UserError(
                f"{folder} was started with another {' and '.join(differing)}: choose another --prefix, or remove "
                f"the folder."
            )
        if (folder / "result.json").exists():
            return folder
        command.append("--resume")
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"zerokara.vision.{program.kind}", *command], check=False, stdout=sys.stderr
    )
    if done.returncode or not (folder / "result.json").exists():
        raise UserError(f"{folder} did not finish: repeat the same command to resume it.")
    if "--resume" not in command:  # the total time of a resumed run is unknown
        write_json(folder / "wall.json", {"wall_minutes": (time.perf_counter() - began) / 60})
    return folder


def wall_minutes(folder: Path) -> float | None:
    """Return the wall-clock minutes of a run, or None if it was interrupted."""
    path = folder / "wall.json"
    return round(float(read_json(path, wall_minutes=(int, float))["wall_minutes"]), 2) if path.exists() else None


def read_run_result(folder: Path, *protocol: str, mappings: Sequence[str] = ()) -> dict[str, Any]:
    """Read result.json of a finished run.

    Args:
        protocol: names of numbers that must be in its protocol.
        mappings: further keys of the file that must be mappings.

    Raises:
        UserError: the file is damaged, or another program wrote it.
    """
    path = folder / "result.json"
    result = read_result(path, "validation_error", mappings=("protocol", *mappings))
    if missing := [name for name in protocol if not isinstance(result["protocol"].get(name), int | float)]:
        raise UserError(
            f"{path} has no {' and '.join(missing)} in its protocol: delete it, and evaluate the run again with "
            f"--resume."
        )
    return result


def describe(trained: Trained) -> dict[str, Any]:
    """Collect the settings and results of a finished run."""
    folder = trained.folder
    content = Run.read_config(folder, "classify")
    result = read_run_result(folder, "epochs", "views", "hours")
    return {
        "run": folder.name,
        "seed": content["config"]["seed"],
        "command": content["command"],
        "git_commit": content["git_commit"],
        "compute": content["extra"]["compute"]["reason"],
        "parameters": sum(parameter.numel() for parameter in trained.classifier.parameters()),
        "epochs": result["protocol"]["epochs"],
        "views": result["protocol"]["views"],
        "minutes_of_training_and_validation": round(60 * result["protocol"]["hours"], 2),
        "minutes_from_start_to_end": wall_minutes(folder),
        "validation_error": result["figures"]["validation_error"],
    }


def validation_scores(trained: Trained) -> Scores:
    """Evaluate on the validation images, which are the same for all runs of one data set."""
    return trained.score(trained.images("validation"))


def protocol(trained: Trained, test: bool) -> dict[str, Any]:
    """Describe how the results were measured."""
    return {
        "train_images": len(trained.data.train),
        "validation_images": len(trained.data.validation),
        "train_source": trained.data.train.source,
        "test_set": "read once, after all runs were done" if test else "not read",
        "chosen_on": "validation images, held out of the training set",
        "scored_in": "float32",
        "machine": describe_machine(),
    }


def load_saved_result(path: Path, test: bool, runs: Sequence[str]) -> dict[str, Any] | None:
    """Load a saved result with test errors, so that the test set is not used again. Returns None without one.

    Raises:
        UserError: the saved result is that of other runs.
    """
    if not test or not path.exists():
        return None
    result = read_json(path, of=list)
    if result["of"] != list(runs):
        raise UserError(
            f"{path} has the test errors of {', '.join(map(str, result['of']))}: give the same runs, or choose another "
            f"name."
        )
    return result
