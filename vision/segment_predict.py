"""Segment images with a trained network: overlays of the predicted classes, and a video of a folder of frames.

    python -m vision.segment_predict runs/segment-camvid-fcn2s-fast-1 street.jpg
    python -m vision.segment_predict runs/segment-camvid-fcn2s-fast-1 folder/of/frames --fps 15

Each image is written to --out as <name>.png, in its original size, with the class colors over it. For a folder of
frames, film.mp4 is written as well. The network gets each image resized to the number of pixels of the training images,
with its own aspect ratio, so that objects have about the same size in pixels as in training. --masks also writes the
class indices, for other programs.

Shapes: C channels, H, W pixels.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.programs import program_command
from zerokara.vision.segmentation.config import STRENGTH


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.segment_predict."""

    words: Annotated[tuple[str, ...], Positional("network image")] = ()
    """Segmentation network (a run folder or a model file), then images or folders of frames."""
    out: str = ""
    """Output folder; empty: predicted/ in the run folder, or beside the model file."""
    strength: Annotated[float, Range(0, 1)] = STRENGTH
    """Opacity of the class colors over the image; 0: only the image, 1: only the colors."""
    legend: bool = True
    """Draw the names of the classes below each image."""
    masks: bool = False
    """Also write the class indices. They are the pixels of <name>-mask.png."""
    film: bool = True
    """Write film.mp4 if a folder of frames is given. The video contains the overlays of all images."""
    fps: Annotated[float, Range(0.1, 120)] = 10.0
    """Frames per second of the video."""
    views: Literal[1, 2] = 1
    """Test-time augmentation: views per image. Logits are averaged over them; 2: the image and its horizontal flip."""
    scale: Annotated[float, Range(0.1, 10)] = 1.0
    """Factor on the size of the network's input. 2 doubles height and width."""
    json: bool = False
    """Print the class fractions as JSON. The fractions are those of the pixels of each image."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
import torch.nn.functional as F

from zerokara.core.compute import Compute
from zerokara.core.data.image_files import convert_channels, list_image_files, read_image, resize
from zerokara.core.media import write_mp4, write_png
from zerokara.core.report import OutputNames, output_folder, shown_names
from zerokara.vision.segmentation.networks import Segmenter, SegmenterMetadata
from zerokara.vision.segmentation.pictures import legend, overlay, palette
from zerokara.vision.segmentation.scoring import pixel_logits


def input_size(size: tuple[int, int], metadata: SegmenterMetadata, scale: float = 1.0) -> tuple[int, int]:
    """Return the (H, W) to which an image is resized for the network.

    Args:
        size: (H, W) of the image; the aspect ratio is preserved.
        metadata: of the network; the result has as many pixels as its training images.
        scale: factor on height and width.
    """
    pixels = metadata.image_size[0] * metadata.image_size[1]
    factor = scale * (pixels / (size[0] * size[1])) ** 0.5
    return max(8, round(size[0] * factor)), max(8, round(size[1] * factor))


def segment_image(
    network: Segmenter,
    metadata: SegmenterMetadata,
    compute: Compute,
    image_HWC: np.ndarray,
    *,
    views: int = 1,
    scale: float = 1.0,
) -> np.ndarray:
    """Predict the class indices (H, W) uint8 of an image.

    Args:
        network: in evaluation mode.
        metadata: of the network.
        compute: device and precision.
        image_HWC: uint8, grayscale or RGB, of any size.
        views: 1, or 2 to average the logits of the image and its horizontal flip.
        scale: factor on the size of the image that the network gets.
    """
    height, width = image_HWC.shape[:2]
    resized = resize(convert_channels(image_HWC, metadata.channels == 1), input_size((height, width), metadata, scale))
    pixels_1CHW = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))[None]
    logits = pixel_logits(network, metadata, compute, pixels_1CHW, views)
    # Logits are resized before the argmax, so that the borders between classes are smooth.
    logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return compute.to_host(logits[0].argmax(0).to(torch.uint8)).numpy()


def class_fractions(mask_HW: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """Return the fraction of pixels of each class in the mask, in decreasing order."""
    counts = np.bincount(mask_HW.ravel(), minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    return {classes[index]: round(float(counts[index] / mask_HW.size), 6) for index in order if counts[index]}


def write_overlays(
    network: Segmenter,
    metadata: SegmenterMetadata,
    files: Sequence[Path],
    fractions: dict[Path, dict[str, float]],
    errors: list[str],
    options: Options,
    folder: Path,
) -> Iterator[np.ndarray]:
    """Write the overlay of every image, and yield it without the legend, resized to the size of the first one.

    Args:
        network: on the CPU, in evaluation mode.
        metadata: of the network.
        files: the images.
        fractions: output; for each image, the fractions of the classes.
        errors: output; a message for each image that cannot be read.
        options: options of the program.
        folder: output folder.
    """
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    compute.module(network)
    colors = palette(metadata.classes)
    names, endings = OutputNames(folder, files), [".png", *(["-mask.png"] if options.masks else [])]
    size: tuple[int, int] | None = None
    for file in files:
        try:
            image_HWC = read_image(file, background=metadata.background)
        except UserError as error:
            errors.append(str(error))
            continue
        mask_HW = segment_image(network, metadata, compute, image_HWC, views=options.views, scale=options.scale)
        fractions[file] = class_fractions(mask_HW, metadata.classes)
        blended = overlay(image_HWC, mask_HW, colors, options.strength)
        if (name := names.choose(file.stem, *endings)) != file.stem:
            print(f"{file}: written as {name}.png", file=sys.stderr)
        strip = [legend(metadata.classes, blended.shape[1], colors)] if options.legend else []
        write_png(folder / f"{name}.png", np.concatenate([blended, *strip]))
        if options.masks:
            write_png(folder / f"{name}-mask.png", mask_HW)
        size = size or (blended.shape[0], blended.shape[1])
        yield resize(blended, size)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program.

    Raises:
        UserError: the network or an image is missing or damaged. The overlays of the other images are written first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if len(options.words) < 2:
        missing = "No image was given" if options.words else "No network was given"
        raise UserError(
            f"{missing}: type a run folder or a model file, then images or folders of frames, as in "
            f"{program_command('vision.segment_predict')} runs/<name> street.jpg."
        )
    model, *words = options.words
    files = list_image_files(words)
    path = SegmenterMetadata.find(Path(model).expanduser())
    network, metadata = SegmenterMetadata.load(path)
    folder = output_folder(options.out, path.parent / "predicted")
    fractions: dict[Path, dict[str, float]] = {}
    errors: list[str] = []
    frames = write_overlays(network, metadata, files, fractions, errors, options, folder)
    with_video = options.film and any(Path(word).expanduser().is_dir() for word in words)
    first = next(frames, None)
    if with_video and first is not None:
        write_mp4(folder / "film.mp4", itertools.chain([first], frames), options.fps)
    else:
        for _ in frames:
            pass
    if options.json:
        print(json.dumps([{"picture": str(file), "shares": each} for file, each in fractions.items()], indent=2))
    else:
        names = shown_names(list(fractions))
        for file, each in fractions.items():
            print(f"{names[file]}: " + ", ".join(f"{name} {value:.0%}" for name, value in list(each.items())[:5]))
        if fractions:
            print(f"overlays: {folder}" + (f", video: {folder / 'film.mp4'}" if with_video else ""))
    if errors:
        raise UserError("\n       ".join(errors))


if __name__ == "__main__":
    run_main(main)
