"""Lay over one's own pictures what a trained segmenter sees in them, and make a film of a folder of frames.

    python -m vision.segment_predict runs/segment-camvid-fcn2s-fast-1 street.jpg
    python -m vision.segment_predict runs/segment-camvid-fcn2s-fast-1 folder/of/frames --fps 15

Each picture is written as <name>.png into --out, as large as it is, and of a folder of frames film.mp4 too. The network
sees pictures at the size of those that it learnt from, in their own proportions: what it learnt to see is as large in
pixels as it was there. --masks writes the classes' numbers as well, for other programs.

Shapes: C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F

from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, error_summary, run_main
from zerokara.core.data.pictures import decode, picture_files, with_channels
from zerokara.core.media import write_mp4, write_png
from zerokara.core.programs import program_command
from zerokara.core.report import MODEL_FILE, output_folder
from zerokara.vision.segmentation.model_file import SegmenterMetadata, load
from zerokara.vision.segmentation.networks import Segmenter
from zerokara.vision.segmentation.pictures import STRENGTH, legend, overlay, palette, to_size
from zerokara.vision.segmentation.scoring import pixel_logits


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at, and what to write."""

    words: Annotated[tuple[str, ...], Positional("segmenter picture")] = ()
    """The segmenter (a run's folder or a file), then pictures or folders of frames."""
    out: str = ""
    """Folder for what is written; empty: predicted/ in the run's folder, or beside the file."""
    strength: Annotated[float, Range(0, 1)] = STRENGTH
    """Of the classes' colours over the photograph: 0 shows it alone, 1 only the colours."""
    legend: bool = True
    """Put the classes' names below each picture."""
    masks: bool = False
    """Write the numbers of the classes as <name>-mask.png too."""
    film: bool = True
    """Make film.mp4 where a folder of frames is named."""
    fps: Annotated[float, Range(0.1, 120)] = 10.0
    """Frames of the film in a second."""
    views: Literal[1, 2] = 1
    """Views of each picture whose logits are averaged: 2 mirrors."""
    scale: Annotated[float, Range(0.1, 10)] = 1.0
    """Factor on the size at which the network sees pictures."""
    json: bool = False
    """Print the share of each class in each picture as JSON."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def seen_size(size: tuple[int, int], metadata: SegmenterMetadata, scale: float = 1.0) -> tuple[int, int]:
    """(H, W) at which the network sees a picture: its proportions, and as many pixels as those it learnt from."""
    pixels = metadata.image_size[0] * metadata.image_size[1]
    factor = scale * (pixels / (size[0] * size[1])) ** 0.5
    return max(8, round(size[0] * factor)), max(8, round(size[1] * factor))


def segment_picture(
    network: Segmenter,
    metadata: SegmenterMetadata,
    compute: Compute,
    image_HWC: np.ndarray,
    *,
    views: int = 1,
    scale: float = 1.0,
) -> np.ndarray:
    """Classes (H, W) uint8 of a picture of any size, grey or RGB; the network must be in evaluation mode."""
    height, width = image_HWC.shape[:2]
    seen = to_size(with_channels(image_HWC, metadata.channels == 1), seen_size((height, width), metadata, scale))
    pixels_1CHW = torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1)))[None]
    logits = pixel_logits(network, metadata, compute, pixels_1CHW, views)
    # Scores, not classes, are made larger: borders are smooth where pixels were not.
    logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return compute.to_host(logits[0].argmax(0).to(torch.uint8)).numpy()


def shares(mask_HW: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """The share of each class that is there, the largest first."""
    counts = np.bincount(mask_HW.ravel(), minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    return {classes[place]: round(float(counts[place] / mask_HW.size), 6) for place in order if counts[place]}


def model_path(word: str) -> Path:
    """The file of a segmenter: a run's, or the file itself.

    Raises:
        UserError: a run that has kept no network yet.
    """
    path = Path(word).expanduser()
    if path.is_dir() and not (path / MODEL_FILE).is_file():
        raise UserError(
            f"{path} has no {MODEL_FILE}: give the folder of a run of vision.segment that has been validated."
        )
    return path / MODEL_FILE if path.is_dir() else path


def overlays(
    network: Segmenter,
    metadata: SegmenterMetadata,
    files: Sequence[Path],
    found: dict[Path, dict[str, float]],
    complaints: list[str],
    options: Options,
    folder: Path,
) -> Iterator[np.ndarray]:
    """Write every picture's overlay, and give it without the legend: all of a film are of the first one's size.

    Args:
        network: on the CPU, in evaluation mode.
        card: of it.
        files: the pictures.
        found: gets the shares of the classes in each picture.
        complaints: gets a sentence on each picture that could not be read.
        options: what was asked for.
        folder: where to write.
    """
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    compute.module(network)
    colours = palette(metadata.classes)
    taken: set[str] = set()
    size: tuple[int, int] | None = None
    for file in files:
        try:
            image_HWC = decode(file.read_bytes(), str(file))
        except OSError as error:
            complaints.append(f"{file} cannot be read ({error_summary(error)}): name a picture that is there.")
            continue
        except UserError as error:
            complaints.append(str(error))
            continue
        mask_HW = segment_picture(network, metadata, compute, image_HWC, views=options.views, scale=options.scale)
        found[file] = shares(mask_HW, metadata.classes)
        picture = overlay(image_HWC, mask_HW, colours, options.strength)
        name = next(name for name in _names(file) if name not in taken)
        taken.add(name)
        strip = [legend(metadata.classes, picture.shape[1], colours)] if options.legend else []
        write_png(folder / f"{name}.png", np.concatenate([picture, *strip]))
        if options.masks:
            write_png(folder / f"{name}-mask.png", mask_HW)
        size = size or (picture.shape[0], picture.shape[1])
        yield to_size(picture, size)


def _names(file: Path) -> Iterator[str]:
    """What to call the overlay: as the picture, and with a number behind it where that is taken."""
    yield file.stem
    yield from (f"{file.stem}-{number}" for number in range(2, 1_000_000))


def main(argv: Sequence[str] | None = None) -> None:
    """The program: the segmenter, pictures, overlays, a film.

    Raises:
        UserError: no such segmenter or picture, or broken ones; what could be read is written first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if len(options.words) < 2:
        what = "No picture was named" if options.words else "No segmenter was named"
        raise UserError(
            f"{what}: type a run's folder and then pictures or folders of frames, as in "
            f"{program_command('vision.segment_predict')} runs/<name> street.jpg."
        )
    model, *words = options.words
    files = picture_files(words)
    network, metadata = load(model_path(model))
    folder = output_folder(options.out, model_path(model).parent / "predicted")
    found: dict[Path, dict[str, float]] = {}
    complaints: list[str] = []
    frames = overlays(network, metadata, files, found, complaints, options, folder)
    films = options.film and any(Path(word).expanduser().is_dir() for word in words)
    first = next(frames, None)
    if films and first is not None:
        write_mp4(folder / "film.mp4", _chained(first, frames), options.fps)
    else:
        for _ in frames:
            pass
    if options.json:
        print(json.dumps([{"picture": str(file), "shares": share} for file, share in found.items()], indent=2))
    else:
        for file, share in found.items():
            print(f"{file.name}: " + ", ".join(f"{name} {value:.0%}" for name, value in list(share.items())[:5]))
        if found:
            print(f"pictures with classes: {folder}" + (f", and {folder / 'film.mp4'}" if films else ""))
    if complaints:
        raise UserError("\n       ".join(complaints))


def _chained(first: np.ndarray, others: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from others


if __name__ == "__main__":
    run_main(main)
