"""Detect in one's own pictures: boxes, classes and confidences, printed and drawn.

    python -m vision.detect_predict runs/detect-bccd-fast-rcnn-fast-1 photo.jpg scan.png
    python -m vision.detect_predict runs/detect-bccd-fast-rcnn-fast-1 folder/of/pictures --confidence 0.3 --json

Pictures may have any size and colours; they are scaled to the size that the detector learnt. Each is written once more
as <name>-found.png, with what was found in it.

Shapes: H, W pixels, D detections.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, error_summary, run_main
from zerokara.core.data.boxes import on_canvas, scaled_to
from zerokara.core.data.pictures import decode, picture_files, with_channels
from zerokara.core.media import write_png
from zerokara.core.programs import program_command
from zerokara.core.report import output_folder
from zerokara.vision.detection import detector as detectors
from zerokara.vision.detection.detector import Detector, Detections
from zerokara.vision.detection.pictures import draw_detections
from zerokara.vision.detection.selective_search import propose


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at, and how."""

    words: Annotated[tuple[str, ...], Positional("detector picture")] = ()
    """The detector (a run's folder or its model.safetensors), then pictures or folders of them."""
    confidence: Annotated[float, Range(0, 1)] = 0.5
    """Confidence from which a detection counts; R-CNN's is the logistic function of an SVM's margin."""
    json: bool = False
    """Print JSON instead of a table."""
    out: str = ""
    """Folder for the pictures with boxes; empty: predictions/ in the detector's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


@dataclass(frozen=True)
class Result:
    """What was found in a picture, and how long that took."""

    picture: np.ndarray
    """(H, W, 3) uint8 as it was."""
    found: Detections
    """Boxes in pixels of the picture."""
    proposal_seconds: float
    network_seconds: float


def detect_in_picture(detector: Detector, picture_HWC: np.ndarray, compute: Compute, confidence: float) -> Result:
    """Everything in a picture (H, W, C) uint8 of any size and colours."""
    metadata = detector.metadata
    picture_HWC = with_channels(picture_HWC, grayscale=False)
    small_HWC, scale = scaled_to(picture_HWC, metadata.image_side)
    start = time.perf_counter()
    proposals_P4 = torch.from_numpy(propose(small_HWC, metadata.search, metadata.proposals)).float()
    proposed = time.perf_counter()
    device = compute.torch_device
    canvas_CHW = torch.from_numpy(on_canvas(small_HWC, *small_HWC.shape[:2])).to(device)
    found = detector.detect(canvas_CHW, proposals_P4.to(device), compute).above(confidence)
    seen = time.perf_counter()
    found = Detections(found.boxes / scale, found.scores, found.labels)
    return Result(picture_HWC, found, proposed - start, seen - proposed)


def as_table(results: dict[Path, Result], classes: tuple[str, ...]) -> Table:
    """A row for each picture: how many of each class, and the seconds."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("picture", overflow="fold")
    for name in classes:
        table.add_column(name, justify="right")
    table.add_column("proposals", justify="right", style="dim")
    table.add_column("network", justify="right", style="dim")
    for file, each in results.items():
        counts = torch.bincount(each.found.labels, minlength=len(classes)).tolist()
        times = (f"{each.proposal_seconds:.2f} s", f"{each.network_seconds:.2f} s")
        table.add_row(file.name, *map(str, counts), *times)
    return table


def as_json(results: dict[Path, Result], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """The same for programs, with every box (x1, y1, x2, y2) in pixels of the picture."""
    return [
        {
            "picture": str(file),
            "found": [
                {"class": classes[label], "confidence": round(score, 6), "box": [round(value, 1) for value in corners]}
                for corners, score, label in zip(
                    each.found.boxes.tolist(), each.found.scores.tolist(), each.found.labels.tolist(), strict=True
                )
            ],
        }
        for file, each in results.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """The program: the detector, pictures, boxes.

    Raises:
        UserError: no such detector or picture, or broken ones; what could be read is looked at first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.words:
        raise UserError(
            "No detector was named: type a run's folder and then pictures, as in "
            f"{program_command('vision.detect_predict')} runs/<name> photo.png."
        )
    model, *words = options.words
    if not words:
        raise UserError(
            "No picture was named: type the detector and then pictures, as in "
            f"{program_command('vision.detect_predict')} runs/<name> photo.png."
        )
    detector = detectors.load(Path(model).expanduser())
    files = picture_files(words)
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    detector = compute.module(detector)
    home = Path(model).expanduser()
    folder = output_folder(options.out, (home if home.is_dir() else home.parent) / "predictions")
    results: dict[Path, Result] = {}
    errors = []
    for file in files:
        try:
            picture_HWC = decode(file.read_bytes(), str(file))
        except OSError as error:
            errors.append(f"{file} cannot be read ({error_summary(error)}): name a picture that is there.")
            continue
        except UserError as error:
            errors.append(str(error))
            continue
        each = results[file] = detect_in_picture(detector, picture_HWC, compute, options.confidence)
        write_png(folder / f"{file.stem}-found.png", draw_detections(each.picture, each.found, detector.metadata.classes))
    if options.json:
        print(json.dumps(as_json(results, detector.metadata.classes), indent=2))
    elif results:
        Console(width=None if sys.stdout.isatty() else 160).print(as_table(results, detector.metadata.classes))
        print(f"pictures with boxes: {folder}")
    if errors:
        raise UserError("\n       ".join(errors))


if __name__ == "__main__":
    run_main(main)
