"""Predict: what a trained classifier takes one's own pictures for.

    python -m vision.predict runs/classify-mnist-deep_cnn-fast-1 photo.jpg scan.png
    python -m vision.predict digits folder/of/pictures --json
    python -m vision.predict model.safetensors photo.jpg --out seen.png
    python -m vision.predict runs/a photo.jpg --also runs/b runs/c

The classifier is a run's folder, a file that zerokara wrote, or a name of the zoo (python -m core.zoo). Pictures may
have any size and colours. To a network that learnt digits or other light things on dark ground, dark ink on paper is
shown inverted, and digits are cut out and centred (vision/classification/inputs.py); --out shows what it saw. Further
classifiers of the same classes, after --also, make an ensemble: the mean of their probabilities counts.

Shapes: N pictures, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, error_summary, parse, run_main
from zerokara.core.data.pictures import decode, picture_files
from zerokara.core.media import png_bytes
from zerokara.core.models import model_file
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.programs import program_command
from zerokara.core.report import figure_pixels
from zerokara.core.zoo import registry as zoo
from zerokara.vision.classification.inputs import PreparedImage, prepare
from zerokara.vision.classification.scoring import predict_probabilities

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at, and how."""

    words: Annotated[tuple[str, ...], Positional("classifier picture")] = ()
    """The classifier (a run's folder, a file, a name of the zoo), then pictures or folders of them."""
    also: tuple[str, ...] = ()
    """Further classifiers of the same classes, whose probabilities are averaged with the first one's."""
    top: Annotated[int, Range(1)] = 5
    """Guesses for each picture."""
    as_is: bool = False
    """Bring pictures to the network's size and colours, and do nothing else to them."""
    views: Literal[1, 2, 5, 10] = 1
    """Views of each picture whose probabilities are averaged: 2 mirrors, 5 shifts, 10 does both."""
    json: bool = False
    """Print JSON instead of a table."""
    out: str = ""
    """PNG file with the pictures as the network saw them; empty: none."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def read(files: Sequence[Path], metadata: ClassifierMetadata, *, as_is: bool) -> tuple[dict[Path, PreparedImage], list[str]]:
    """The pictures that could be read, prepared for the network, and a sentence about each that could not."""
    prepared, complaints = {}, []
    for file in files:
        try:
            prepared[file] = prepare(decode(file.read_bytes(), str(file)), metadata, as_is=as_is)
        except OSError as error:
            complaints.append(f"{file} cannot be read ({error_summary(error)}): name a picture that is there.")
        except UserError as error:
            complaints.append(str(error))
    return prepared, complaints


def load_all(names: Sequence[str]) -> list[tuple[Classifier, ClassifierMetadata]]:
    """The classifiers by these names, the first one's classes being those of all.

    Raises:
        UserError: no such classifier, one that is named twice, or other classes, or the same in another order.
    """
    loaded: dict[Path, tuple[Classifier, ClassifierMetadata]] = {}
    classes: tuple[str, ...] = ()
    for name in names:
        path = zoo.find_file(name).resolve()
        if path in loaded:
            raise UserError(f"{name} is named twice, and would count twice in the mean: name each classifier once.")
        loaded[path] = model_file.load(path)
        found = loaded[path][1].classes
        classes = classes or found
        if found != classes:
            raise UserError(
                f"{name} tells {in_short(found)} apart and {names[0]} {in_short(classes)}: "
                f"only classifiers of the same classes in the same order can be averaged."
            )
    return list(loaded.values())


def in_short(classes: Sequence[str]) -> str:
    """How many classes there are, and what the first are called."""
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


def guess(
    members: Sequence[tuple[Classifier, ClassifierMetadata]],
    pictures: Sequence[Sequence[PreparedImage]],
    compute: Compute,
    views: int,
) -> Tensor:
    """The mean of the members' probabilities (N, K), each given the N pictures as they were prepared for it."""
    found = []
    for (classifier, metadata), seen in zip(members, pictures, strict=True):
        pixels_NCHW = torch.from_numpy(np.stack([picture.pixels_CHW for picture in seen]))
        found.append(predict_probabilities(compute.module(classifier), metadata, compute, pixels_NCHW, views=views))
    return torch.stack(found).mean(0)


def best(probability_K: Tensor, classes: tuple[str, ...], top: int) -> list[tuple[str, float]]:
    """The most probable classes, and their probabilities."""
    found, places = probability_K.topk(min(top, len(classes)))
    return [(classes[place], value) for place, value in zip(places.tolist(), found.tolist(), strict=True)]


def as_table(guesses: dict[Path, list[tuple[str, float]]], prepared: dict[Path, PreparedImage]) -> Table:
    """A row for each picture."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("picture", overflow="fold", min_width=8)
    for place in range(max(map(len, guesses.values()), default=0)):
        table.add_column("guess" if place == 0 else f"{place + 1}.", style="bold" if place == 0 else None)
    table.add_column("seen", style="dim", overflow="fold")
    for file, found in guesses.items():
        table.add_row(file.name, *(f"{name} {value:.1%}" for name, value in found), prepared[file].steps)
    return table


def as_json(guesses: dict[Path, list[tuple[str, float]]], prepared: dict[Path, PreparedImage]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "picture": str(file),
            "seen": prepared[file].steps,
            "guesses": [{"class": name, "probability": round(value, 6)} for name, value in found],
        }
        for file, found in guesses.items()
    ]


def draw(guesses: dict[Path, list[tuple[str, float]]], prepared: dict[Path, PreparedImage]) -> Figure:
    """The pictures as the network saw them, with the first guess."""
    from matplotlib.figure import Figure

    columns = min(6, len(guesses))
    rows = -(-len(guesses) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.1 * rows), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (file, found) in zip(grid, guesses.items(), strict=False):
        picture = prepared[file].pixels_CHW.transpose(1, 2, 0)
        axes.imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        name, value = found[0]
        axes.set_title(f"{file.name[-22:]}\n{name[:20]} {value:.0%}", fontsize=7)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """The program: the classifier, pictures, guesses.

    Raises:
        UserError: no such classifier or picture, or broken ones; what could be read is guessed first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.words:
        raise UserError(
            "No classifier was named: type a run's folder, a file or a name of the zoo, and then pictures, as in "
            f"{program_command('vision.predict')} runs/<name> photo.png."
        )
    model, *words = options.words
    members = load_all([model, *options.also])
    files, classes = picture_files(words), members[0][1].classes
    prepared, complaints = read(files, members[0][1], as_is=options.as_is)
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    guesses: dict[Path, list[tuple[str, float]]] = {}
    if prepared:
        seen = [prepared, *(read(list(prepared), metadata, as_is=options.as_is)[0] for _, metadata in members[1:])]
        found_NK = guess(members, [list(each.values()) for each in seen], compute, options.views)
        guesses = {file: best(row, classes, options.top) for file, row in zip(prepared, found_NK, strict=True)}
    if guesses and len(members) > 1:
        print(
            f"The mean of {len(members)} classifiers' probabilities.", file=sys.stderr if options.json else sys.stdout
        )
    if options.json:
        print(json.dumps(as_json(guesses, prepared), indent=2))
    elif guesses:
        Console(width=None if sys.stdout.isatty() else 160).print(as_table(guesses, prepared))
    if options.out and guesses:
        content = png_bytes(figure_pixels(draw(guesses, prepared)))
        write_atomically(Path(options.out), lambda file: file.write(content))
    if complaints:
        raise UserError("\n       ".join(complaints))


if __name__ == "__main__":
    run_main(main)
