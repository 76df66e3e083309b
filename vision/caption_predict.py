"""Caption one's own pictures.

    python -m vision.caption_predict runs/<name> photo.jpg folder/of/pictures --out said.html

Prints a sentence about each picture, and writes a page that shows them; with an --out that ends in .png a picture.

Shapes: N pictures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.core.checkpoint import write_atomically
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, error_summary, run_main
from zerokara.core.data.pictures import decode, fit, picture_files, with_channels
from zerokara.core.media import png_bytes
from zerokara.core.programs import program_command
from zerokara.core.report import figure_pixels
from zerokara.vision.captioning import network as captioner
from zerokara.vision.captioning.network import generate_captions, look
from zerokara.vision.captioning.pictures import Entry, draw, page


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to put into words, and how."""

    words: Annotated[tuple[str, ...], Positional("runs/<name> picture")] = ()
    """The captioner (a run's folder or its model.safetensors), then pictures or folders of them."""
    beams: Annotated[int, Range(0, 100)] = 0
    """Beginnings of a sentence that are kept while one is sought; 0: as in the run."""
    json: bool = False
    """Print JSON instead of a table."""
    out: str = "captions.html"
    """The page (.html) or picture (.png) to write; empty: none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def read(files: Sequence[Path], size: int) -> tuple[dict[Path, np.ndarray], list[str]]:
    """Pictures (size, size, 3) uint8 that could be read, and a sentence about each that could not."""
    pictures, complaints = {}, []
    for file in files:
        try:
            pictures[file] = np.ascontiguousarray(fit(with_channels(decode(file.read_bytes(), str(file)), False), size))
        except OSError as error:
            complaints.append(f"{file} cannot be read ({error_summary(error)}): name a picture that is there.")
        except UserError as error:
            complaints.append(str(error))
    return pictures, complaints


def write(path: Path, said: dict[Path, str], pictures: dict[Path, np.ndarray], about: str) -> None:
    """The page or the picture.

    Raises:
        UserError: it cannot be written.
    """
    entries = [Entry(pictures[file], sentence, others=(("", file.name),)) for file, sentence in said.items()]
    if path.suffix == ".png":
        content = png_bytes(figure_pixels(draw(entries)))
    else:
        content = page("Pictures in words", [about], entries).encode()
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error_summary(error)}): name another file with --out.") from None


def main(argv: Sequence[str] | None = None) -> None:
    """The program: the captioner, pictures, sentences.

    Raises:
        UserError: no such captioner or picture, or broken ones; what could be read is described first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.words:
        raise UserError(
            "No captioner was named: type a run's folder and then pictures, as in "
            f"{program_command('vision.caption_predict')} runs/<name> photo.jpg."
        )
    if options.out and Path(options.out).suffix not in (".html", ".png"):
        raise UserError(f"--out names a file that ends in .html or .png, got {options.out!r}.")
    network = captioner.load(options.words[0])
    if options.beams:
        network.metadata = replace(network.metadata, beams=options.beams)
    pictures, complaints = read(picture_files(options.words[1:]), network.metadata.image_size)
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    if pictures:
        images_NCHW = torch.from_numpy(np.stack(list(pictures.values()))).permute(0, 3, 1, 2)
        network = compute.module(network)
        said = dict(zip(pictures, generate_captions(network, look(network, compute, images_NCHW)), strict=True))
        if options.json:
            print(json.dumps([{"picture": str(file), "caption": text} for file, text in said.items()], indent=2))
        else:
            table = Table(box=box.SIMPLE_HEAD)
            table.add_column("picture", overflow="fold", min_width=8)
            table.add_column("caption", style="bold")
            for file, text in said.items():
                table.add_row(file.name, text)
            Console(width=None if sys.stdout.isatty() else 160).print(table)
        if options.out:
            write(Path(options.out), said, pictures, f"By {options.words[0]}, which learnt {network.metadata.data}.")
    if complaints:
        raise UserError("\n       ".join(complaints))


if __name__ == "__main__":
    run_main(main)
