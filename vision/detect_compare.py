"""Compare detectors: mAP and time for an image side by side, to show why Fast R-CNN replaced R-CNN.

    python -m vision.detect_compare runs/detect-bccd-rcnn-fast-1 runs/detect-bccd-fast-rcnn-fast-1

The figures are those of each run's own test; times are measured here and now, on the same pictures of the test set with
the same proposals, in turns. Proposals and the rest are measured apart, because both stand on the same ones. Written to
--out: compare.json, and compare.png with what is marked and what each found.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, from_dict, run_main
from zerokara.core.data.boxes import BoxSet
from zerokara.core.media import write_png
from zerokara.core.programs import program_command
from zerokara.core.report import output_folder, write_json
from zerokara.core.run import Run
from zerokara.vision.detection import detector as detectors
from zerokara.vision.detection.config import Config
from zerokara.vision.detection.detector import Detector, Detections
from zerokara.vision.detection.learner import Data
from zerokara.vision.detection.pictures import draw_detections, side_by_side, stacked
from zerokara.vision.detection.proposals import timed_search
from zerokara.vision.detection.selective_search import SearchSettings

KIND = "detect"  # what vision/detect.py calls its runs


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which runs, and how much."""

    runs: Annotated[tuple[str, ...], Positional("run")] = ()
    """Folders of runs of vision.detect that have ended."""
    pictures: Annotated[int, Range(1)] = 10
    """Test pictures on which times are measured."""
    shown: Annotated[int, Range(1)] = 3
    """Of these, pictures that are drawn."""
    confidence: Annotated[float, Range(0, 1)] = 0.5
    """Confidence from which detections are drawn."""
    out: str = ""
    """Folder for table and picture; empty: runs/detect-compare."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    folder: Path
    config: Config
    detector: Detector
    figures: Mapping[str, float]


def read(folder: Path) -> FinishedRun:
    """A run that has ended.

    Raises:
        UserError: no such run, one of another kind, or one that has not ended.
    """
    content = Run.read_config(folder, KIND)
    if not (folder / "result.json").is_file():
        raise UserError(f"{folder} has no result.json, so it has not ended: go on with it by --resume.")
    figures = json.loads((folder / "result.json").read_text())["figures"]
    config = from_dict(Config, content["config"], str(folder / "config.json"))
    return FinishedRun(folder, config, detectors.load(folder), figures)


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs that cannot be compared.

    Raises:
        UserError: they were not tested on the same pictures.
    """
    first = runs[0]
    for other in runs[1:]:
        for field in ("data", "image_side", "split_seed"):
            one, two = getattr(first.config, field), getattr(other.config, field)
            if one != two:
                raise UserError(
                    f"{first.folder} has {field} {one} and {other.folder} {two}, so they were not tested on the same "
                    f"pictures: compare runs of the same."
                )


@dataclass(frozen=True)
class Measurement:
    """Seconds for a picture, medians, and what was found."""

    proposals: float
    network: tuple[float, ...]  # of each contestant
    found: tuple[list[Detections], ...]


def measure(runs: Sequence[FinishedRun], boxes: BoxSet, compute: Compute) -> Measurement:
    """Proposals once for each picture, and what each detector makes of them, in turns."""
    networks: list[list[float]] = [[] for _ in runs]
    found: list[list[Detections]] = [[] for _ in runs]
    proposal_seconds = []
    for index in range(len(boxes)):
        by_search: dict[SearchSettings, torch.Tensor] = {}
        canvas_CHW = boxes.images[index].to(compute.torch_device)
        for row, run in enumerate(runs):
            metadata = run.detector.metadata
            if metadata.search not in by_search:
                raw, seconds = timed_search(boxes.picture(index), metadata.search)
                by_search[metadata.search] = torch.from_numpy(raw).float()
                proposal_seconds.append(seconds)
            proposals_P4 = by_search[metadata.search][: metadata.proposals].to(compute.torch_device)
            if index == 0:  # what is allocated and chosen at the first pass is nobody's time
                run.detector.detect(canvas_CHW, proposals_P4, compute)
            start = time.perf_counter()
            found[row].append(run.detector.detect(canvas_CHW, proposals_P4, compute))
            networks[row].append(time.perf_counter() - start)
    medians = tuple(statistics.median(each) for each in networks)
    return Measurement(statistics.median(proposal_seconds), medians, tuple(found))


def as_rows(runs: Sequence[FinishedRun], measured: Measurement) -> list[dict[str, Any]]:
    """What is known of each, as plain values; `times_faster` is against the slowest network."""
    slowest = max(measured.network)
    return [
        {
            "run": str(run.folder),
            "method": run.config.method,
            "test_map_50": run.figures.get("test_map_50"),
            "test_map_50_95": run.figures.get("test_map_50_95"),
            "proposal_seconds": measured.proposals,
            "network_seconds": seconds,
            "times_faster": slowest / seconds,
        }
        for run, seconds in zip(runs, measured.network, strict=True)
    ]


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The same for people."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("run", "method", "mAP .5", "mAP .5:.95", "proposals", "the rest", "times faster"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("run", "method") else "right")
    for row in rows:
        scores = ["-" if row[name] is None else f"{row[name]:.1%}" for name in ("test_map_50", "test_map_50_95")]
        times = (f"{row['proposal_seconds']:.2f} s", f"{row['network_seconds']:.3f} s", f"{row['times_faster']:.1f}")
        table.add_row(Path(row["run"]).name, row["method"], *scores, *times)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """The program: runs, test pictures, times, table and picture."""
    options = parse(Options, {}, argv, __doc__ or "")
    if len(options.runs) < 2:
        raise UserError(
            "Two runs or more are compared: type their folders, as in "
            f"{program_command('vision.detect_compare')} runs/<one> runs/<other>."
        )
    runs = [read(Path(run)) for run in options.runs]
    check_comparable(runs)
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    boxes = Data.load(runs[0].config).test
    boxes = boxes.take(range(min(options.pictures, len(boxes))))
    for run in runs:
        compute.module(run.detector)
    measured = measure(runs, boxes, compute)
    rows = as_rows(runs, measured)
    Console(width=None if sys.stdout.isatty() else 160).print(as_table(rows))
    folder = output_folder(options.out, Path("runs") / "detect-compare")
    write_json(folder / "compare.json", {"threads": compute.threads, "pictures": len(boxes), "rows": rows})
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    lines = []
    for index in range(min(options.shown, len(boxes))):
        truth = boxes.boxes[index]
        columns = [nothing, *(found[index].above(options.confidence) for found in measured.found)]
        pictures = [draw_detections(boxes.picture(index), each, boxes.classes, truth_n4=truth) for each in columns]
        lines.append(side_by_side(pictures))
    write_png(folder / "compare.png", stacked(lines))
    print(f"table and picture: {folder}")


if __name__ == "__main__":
    run_main(main)
