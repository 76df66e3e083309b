"""Compare detectors: mAP and time per image, for example of R-CNN and Fast R-CNN.

    python -m vision.detect_compare runs/detect-bccd-rcnn-fast-1 runs/detect-bccd-fast-rcnn-fast-1

mAP is read from the result.json of each run. Times are measured now, alternating between the detectors, on the same
test images with the same proposals; proposals and network are measured separately. The program writes two files to
--out: compare.json, and compare.png with true boxes and the detections of each run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, from_dict, run_main
from zerokara.core.programs import program_command
from zerokara.vision.detection.config import Config

KIND = "detect"  # kind of the runs of vision/detect.py


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the program."""

    RENAMED: ClassVar[Mapping[str, str]] = {"pictures": "num_images", "shown": "num_drawn"}

    runs: Annotated[tuple[str, ...], Positional("run")] = ()
    """Folders of finished runs of vision.detect."""
    num_images: Annotated[int, Range(1)] = 10
    """Number of test images on which times are measured."""
    num_drawn: Annotated[int, Range(1)] = 3
    """Number of these images that are drawn."""
    confidence: Annotated[float, Range(0, 1)] = 0.5
    """Minimum confidence of the detections that are drawn."""
    out: str = ""
    """Folder for compare.json and compare.png; empty: runs/detect-compare."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from rich import box
from rich.table import Table

from zerokara.core.compute import Compute
from zerokara.core.data.boxes import BoxSet
from zerokara.core.media import write_png
from zerokara.core.report import output_folder, read_result, table_console, write_json
from zerokara.core.run import Run
from zerokara.vision.detection.detector import Detections, Detector, DetectorMetadata
from zerokara.vision.detection.learner import Data
from zerokara.vision.detection.pictures import draw_detections, side_by_side, stacked
from zerokara.vision.detection.proposals import timed_search
from zerokara.vision.detection.selective_search import SearchSettings


@dataclass(frozen=True)
class FinishedRun:
    """Finished run with its detector and metrics."""

    folder: Path
    config: Config
    detector: Detector
    results: Mapping[str, float]


def read(folder: Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        UserError: the run does not exist, is of another kind, or is not finished.
    """
    content = Run.read_config(folder, KIND)
    if not (folder / "result.json").is_file():
        raise UserError(f"{folder} has no result.json, so the run is not finished: resume it with --resume.")
    results = read_result(folder / "result.json")["figures"]
    config = from_dict(Config, content["config"], str(folder / "config.json"))
    detector, _ = DetectorMetadata.load(folder)
    return FinishedRun(folder, config, detector, results)


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Check that all runs have the same test images.

    Raises:
        UserError: they differ in data set, image size or split.
    """
    first = runs[0]
    for other in runs[1:]:
        for field in ("data", "image_side", "named_splits", "split_seed"):
            one, two = getattr(first.config, field), getattr(other.config, field)
            if one != two:
                raise UserError(
                    f"{first.folder} has {field} {one} and {other.folder} {two}, so their test images differ: "
                    f"compare runs with the same {field}."
                )


@dataclass(frozen=True)
class Measurement:
    """Median seconds per image, and detections."""

    proposals: float
    network: tuple[float, ...]  # of each run
    found: tuple[list[Detections], ...]


def measure(runs: Sequence[FinishedRun], boxes: BoxSet, compute: Compute) -> Measurement:
    """Measure proposals once per image and search settings, and then each detector on them, alternating."""
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
            if index == 0:  # warm up: the first pass allocates memory and selects algorithms
                run.detector.detect(canvas_CHW, proposals_P4, compute)
            start = time.perf_counter()
            found[row].append(run.detector.detect(canvas_CHW, proposals_P4, compute))
            networks[row].append(time.perf_counter() - start)
    medians = tuple(statistics.median(each) for each in networks)
    return Measurement(statistics.median(proposal_seconds), medians, tuple(found))


def as_rows(runs: Sequence[FinishedRun], measured: Measurement) -> list[dict[str, Any]]:
    """Return one row per run, as plain values; `times_faster` is relative to the slowest network."""
    slowest = max(measured.network)
    return [
        {
            "run": str(run.folder),
            "method": run.config.method,
            "test_map_50": run.results.get("test_map_50"),
            "test_map_50_95": run.results.get("test_map_50_95"),
            "proposal_seconds": measured.proposals,
            "network_seconds": seconds,
            "times_faster": slowest / seconds,
        }
        for run, seconds in zip(runs, measured.network, strict=True)
    ]


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows as a table for the terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("run", "method", "mAP 0.5", "mAP 0.5:0.95", "proposals", "network", "times faster"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("run", "method") else "right")
    for row in rows:
        found = [row[name] for name in ("test_map_50", "test_map_50_95")]
        scores = ["-" if each is None or math.isnan(each) else f"{each:.1%}" for each in found]
        times = (f"{row['proposal_seconds']:.2f} s", f"{row['network_seconds']:.3f} s", f"{row['times_faster']:.1f}")
        table.add_row(Path(row["run"]).name, row["method"], *scores, *times)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read runs and test images, measure, write table and image."""
    options = parse(Options, {}, argv, __doc__ or "")
    if len(options.runs) < 2:
        raise UserError(
            "Two runs or more are needed: type their folders, as in "
            f"{program_command('vision.detect_compare')} runs/<one> runs/<other>."
        )
    runs = [read(Path(folder)) for folder in options.runs]
    check_comparable(runs)
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    boxes = Data.load(runs[0].config).test
    boxes = boxes.take(range(min(options.num_images, len(boxes))))
    for run in runs:
        compute.module(run.detector)
    measured = measure(runs, boxes, compute)
    rows = as_rows(runs, measured)
    table_console().print(as_table(rows))
    folder = output_folder(options.out, Path("runs") / "detect-compare")
    write_json(folder / "compare.json", {"threads": compute.threads, "pictures": len(boxes), "rows": rows})
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    rows_of_images = []
    for index in range(min(options.num_drawn, len(boxes))):
        truth = boxes.boxes[index]
        columns = [empty, *(found[index].above(options.confidence) for found in measured.found)]
        images = [draw_detections(boxes.picture(index), each, boxes.classes, truth_n4=truth) for each in columns]
        rows_of_images.append(side_by_side(images))
    write_png(folder / "compare.png", stacked(rows_of_images))
    print(f"table and image: {folder}")


if __name__ == "__main__":
    run_main(main)
