"""Generate captions for your own images.

    python -m vision.caption_predict runs/<name> photo.jpg folder/of/images --out captions.html

Prints a caption for each image and writes an HTML page with images and captions, or a PNG image if the name after --out
ends in .png.

Shapes: N images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, error_summary, run_main
from zerokara.core.programs import program_command


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.caption_predict."""

    RENAMED: ClassVar[Mapping[str, str]] = {"beams": "beam_size"}
    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = {
        "num_beams": "beam_size",
        "beam_width": "beam_size",
        "output": "out",
        "img": "is not an option here: name the images after the captioner, as in runs/<name> photo.jpg.",
        "image": "is not an option here: name the images after the captioner, as in runs/<name> photo.jpg.",
        "model": "is not an option here: name the captioner first, as in runs/<name> photo.jpg.",
    }

    words: Annotated[tuple[str, ...], Positional("runs/<name> image")] = ()
    """Captioner (a run folder or its model.safetensors), then images or folders of images."""
    beam_size: Annotated[int, Range(0, 100)] = 0
    """Partial captions kept after every word; 0: the value of the run."""
    json: bool = False
    """Print JSON instead of a table."""
    out: str = "captions.html"
    """Page (.html) or image (.png) to write; empty: none."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from rich import box
from rich.table import Table

from zerokara.core.checkpoint import write_atomically
from zerokara.core.compute import Compute
from zerokara.core.data.image_files import convert_channels, list_image_files, read_image, resize_and_crop
from zerokara.core.media import png_bytes
from zerokara.core.report import figure_pixels, shown_names, table_console
from zerokara.vision.captioning.network import CaptionerMetadata, extract_features, generate_captions
from zerokara.vision.captioning.pictures import Entry, draw, page


def read(files: Sequence[Path], metadata: CaptionerMetadata) -> tuple[dict[Path, np.ndarray], list[str]]:
    """Read images, resized and center-cropped to the size of the captioner's input: (size, size, 3) uint8.

    Returns:
        The images by file, and an error message for each file that cannot be read.
    """
    images, errors = {}, []
    for file in files:
        try:
            image_HWC = convert_channels(read_image(file, background=metadata.background), False)
            images[file] = np.ascontiguousarray(resize_and_crop(image_HWC, metadata.image_size))
        except UserError as error:
            errors.append(str(error))
    return images, errors


def write(path: Path, captions: Mapping[Path, str], images: Mapping[Path, np.ndarray], introduction: str) -> None:
    """Write the page or the image.

    Raises:
        UserError: the file cannot be written.
    """
    names = shown_names(list(captions))
    entries = [Entry(images[file], caption, notes=(("file", names[file]),)) for file, caption in captions.items()]
    if path.suffix == ".png":
        content = png_bytes(figure_pixels(draw(entries)))
    else:
        content = page("Images with generated captions", [introduction], entries).encode()
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error_summary(error)}): name another file with --out.") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: captioner, images, captions.

    Raises:
        UserError: the captioner or an image is missing or damaged. Captions of all readable images are printed first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.words:
        raise UserError(
            "No captioner was named: give a run folder and then images, as in "
            f"{program_command('vision.caption_predict')} runs/<name> photo.jpg."
        )
    if options.out and Path(options.out).suffix not in (".html", ".png"):
        raise UserError(f"--out must be a file name that ends in .html or .png, got {options.out!r}.")
    network, _ = CaptionerMetadata.load(Path(options.words[0]).expanduser())
    if options.beam_size:
        network.metadata = replace(network.metadata, beams=options.beam_size)
    images, errors = read(list_image_files(options.words[1:]), network.metadata)
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    if images:
        images_NCHW = torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2)
        network = compute.module(network)
        features_NF = extract_features(network, compute, images_NCHW)
        captions = dict(zip(images, generate_captions(network, features_NF), strict=True))
        if options.json:
            print(json.dumps([{"picture": str(file), "caption": text} for file, text in captions.items()], indent=2))
        else:
            table = Table(box=box.SIMPLE_HEAD)
            table.add_column("image", overflow="fold", min_width=8)
            table.add_column("caption", style="bold")
            names = shown_names(list(captions))
            for file, text in captions.items():
                table.add_row(names[file], text)
            table_console().print(table)
        if options.out:
            introduction = f"Captions by {options.words[0]}, which was trained on {network.metadata.data}."
            write(Path(options.out), captions, images, introduction)
    if errors:
        raise UserError("\n       ".join(errors))


if __name__ == "__main__":
    run_main(main)
