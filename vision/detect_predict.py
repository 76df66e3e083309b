"""Detect objects in your own images with a trained detector: boxes, classes and confidence scores.

    python -m vision.detect_predict runs/detect-bccd-fast-rcnn-fast-1 photo.jpg scan.png
    python -m vision.detect_predict runs/detect-bccd-fast-rcnn-fast-1 folder/of/images --confidence 0.3 --json

Images may have any size, and may be grayscale or color; they are scaled to the input size of the detector. For each
image the program writes <name>-found.png, the image with the detections drawn on it.

Shapes: H, W pixels, D detections.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.programs import program_command


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the program."""

    words: Annotated[tuple[str, ...], Positional("detector image")] = ()
    """Detector (a run folder or its model.safetensors), then images or folders of images."""
    confidence: Annotated[float, Range(0, 1)] = 0.5
    """Minimum confidence of a detection. For R-CNN it is the sigmoid of the SVM's margin, for Fast R-CNN a softmax."""
    json: bool = False
    """Print JSON instead of a table."""
    out: str = ""
    """Folder for the images with boxes; empty: predictions/ in the folder of the detector."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from rich import box
from rich.table import Table

from zerokara.core.compute import Compute
from zerokara.core.data.boxes import pad_to_canvas, resize_to
from zerokara.core.data.image_files import convert_channels, list_image_files, read_image
from zerokara.core.media import write_png
from zerokara.core.report import OutputNames, output_folder, shown_names, table_console
from zerokara.vision.detection.detector import Detections, Detector, DetectorMetadata
from zerokara.vision.detection.pictures import draw_detections
from zerokara.vision.detection.selective_search import propose


@dataclass(frozen=True)
class Result:
    """Detections in one image, and the time that they took."""

    picture: np.ndarray
    """(H, W, 3) uint8, original size."""
    found: Detections
    """Detections, with boxes in pixels of the original image."""
    proposal_seconds: float
    network_seconds: float


def detect_in_picture(detector: Detector, image_HWC: np.ndarray, compute: Compute, confidence: float) -> Result:
    """Detect objects in an image (H, W, C) uint8 of any size, grayscale or color."""
    metadata = detector.metadata
    image_HWC = convert_channels(image_HWC, grayscale=False)
    small_HWC, scale = resize_to(image_HWC, metadata.image_side)
    start = time.perf_counter()
    proposals_P4 = torch.from_numpy(propose(small_HWC, metadata.search, metadata.proposals)).float()
    proposed = time.perf_counter()
    device = compute.torch_device
    canvas_CHW = torch.from_numpy(pad_to_canvas(small_HWC, *small_HWC.shape[:2])).to(device)
    found = detector.detect(canvas_CHW, proposals_P4.to(device), compute).above(confidence)
    end = time.perf_counter()
    found = Detections(found.boxes / scale, found.scores, found.labels)
    return Result(image_HWC, found, proposed - start, end - proposed)


def as_table(results: dict[Path, Result], classes: tuple[str, ...]) -> Table:
    """Return a table with one row per image: number of detections per class, and seconds."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    for name in classes:
        table.add_column(name, justify="right")
    table.add_column("proposals", justify="right", style="dim")
    table.add_column("network", justify="right", style="dim")
    names = shown_names(list(results))
    for file, each in results.items():
        counts = torch.bincount(each.found.labels, minlength=len(classes)).tolist()
        times = (f"{each.proposal_seconds:.2f} s", f"{each.network_seconds:.2f} s")
        table.add_row(names[file], *map(str, counts), *times)
    return table


def as_json(results: dict[Path, Result], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the results as plain values, with boxes (x1, y1, x2, y2) in pixels of the original image."""
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
    """Run the program: load the detector, detect objects in every image, write results.

    Raises:
        UserError: the detector or an image is missing or damaged; the other images are processed first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.words:
        raise UserError(
            "No detector was given: type a run folder and then images, as in "
            f"{program_command('vision.detect_predict')} runs/<name> photo.png."
        )
    model, *words = options.words
    if not words:
        raise UserError(
            "No image was given: type the detector and then images, as in "
            f"{program_command('vision.detect_predict')} runs/<name> photo.png."
        )
    detector, _ = DetectorMetadata.load(Path(model).expanduser())
    files = list_image_files(words)
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    detector = compute.module(detector)
    home = Path(model).expanduser()
    folder = output_folder(options.out, (home if home.is_dir() else home.parent) / "predictions")
    results: dict[Path, Result] = {}
    errors = []
    names = OutputNames(folder, files)
    for file in files:
        try:
            image_HWC = read_image(file, background=detector.metadata.background)
        except UserError as error:
            errors.append(str(error))
            continue
        each = results[file] = detect_in_picture(detector, image_HWC, compute, options.confidence)
        if (name := names.choose(f"{file.stem}-found", ".png")) != f"{file.stem}-found":
            print(f"{file}: written as {name}.png", file=sys.stderr)
        write_png(folder / f"{name}.png", draw_detections(each.picture, each.found, detector.metadata.classes))
    if options.json:
        print(json.dumps(as_json(results, detector.metadata.classes), indent=2))
    elif results:
        table_console().print(as_table(results, detector.metadata.classes))
        print(f"images with boxes: {folder}")
    if errors:
        raise UserError("\n       ".join(errors))


if __name__ == "__main__":
    run_main(main)
