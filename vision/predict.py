"""Classify images with a trained classifier.

    python -m vision.predict runs/classify-mnist-deep_cnn-fast-1 photo.jpg scan.png
    python -m vision.predict digits folder/of/images --json
    python -m vision.predict model.safetensors photo.jpg --out prepared.png
    python -m vision.predict runs/a photo.jpg --also runs/b runs/c

The classifier is a run folder, a model file of zerokara, or the name of a network of the zoo (python -m core.zoo).
Images may have any size and color. If the network was trained on light objects on a dark background (as digits), images
with dark ink on paper are inverted, and digits are cropped and centered (vision/classification/inputs.py); --out saves
the images as the network gets them. --also adds classifiers of the same classes to an ensemble: their probabilities are
averaged.

Shapes: N images, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from zerokara.core.choices import Background
from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.programs import program_command
from zerokara.core.zoo import registry as zoo

# For each image file the most probable classes with their probabilities.
Predictions = dict[Path, list[tuple[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.predict."""

    words: Annotated[tuple[str, ...], Positional("classifier image")] = ()
    """Classifier (a run folder, a model file or a name of the zoo), then images or folders of images."""
    also: tuple[str, ...] = ()
    """Further classifiers with the same classes. The probabilities of all of them are averaged."""
    top: Annotated[int, Range(1)] = 5
    """Number of predictions for each image."""
    as_is: bool = False
    """Convert images to the size and channels of the network, without any other preprocessing."""
    background: Background | None = None
    """Color behind transparent pixels. None: as in the training images; auto: white, or black for images that are
    almost white."""
    views: Literal[1, 2, 5, 10] = 1
    """Views of each image over which probabilities are averaged. 2: horizontal flip; 5: shifts by one pixel; 10:
    both."""
    json: bool = False
    """Print JSON instead of a table."""
    out: str = ""
    """PNG file in which the images are saved as the network gets them; empty: none."""
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
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.compute import Compute
from zerokara.core.data.image_files import list_image_files, read_image
from zerokara.core.media import png_bytes
from zerokara.core.models.classifier import Classifier, ClassifierMetadata
from zerokara.core.report import figure_pixels, image_figure, shown_names, table_console
from zerokara.vision.classification.inputs import PreparedImage, prepare
from zerokara.vision.classification.scoring import predict_probabilities

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_images(
    files: Sequence[Path], metadata: ClassifierMetadata, *, as_is: bool, background: Background | None = None
) -> tuple[dict[Path, PreparedImage], list[str]]:
    """Read images and prepare them for the network. Return them, and an error message for each unreadable file.

    Without a background, transparent pixels get that of the training images.
    """
    background = background or metadata.background
    prepared, errors = {}, []
    for file in files:
        try:
            prepared[file] = prepare(read_image(file, background=background), metadata, as_is=as_is)
        except UserError as error:
            errors.append(str(error))
    return prepared, errors


def load_classifiers(names: Sequence[str]) -> list[tuple[Classifier, ClassifierMetadata]]:
    """Load the classifiers of an ensemble, which must all have the classes of the first one.

    Raises:
        UserError: a classifier does not exist, is named twice, or has other classes or another order of classes.
    """
    loaded: dict[Path, tuple[Classifier, ClassifierMetadata]] = {}
    classes: tuple[str, ...] = ()
    for name in names:
        path = zoo.find_file(name).resolve()
        if path in loaded:
            raise UserError(f"{name} is given twice and would count twice in the mean: give each classifier once.")
        loaded[path] = ClassifierMetadata.load(path)
        own_classes = loaded[path][1].classes
        classes = classes or own_classes
        if own_classes != classes:
            raise UserError(
                f"{name} has {format_classes(own_classes)}, but {names[0]} has {format_classes(classes)}: "
                f"only classifiers with the same classes in the same order can be averaged."
            )
    return list(loaded.values())


def format_classes(classes: Sequence[str]) -> str:
    """Format the number of classes and the names of the first three."""
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


def predict(
    members: Sequence[tuple[Classifier, ClassifierMetadata]],
    images: Sequence[Sequence[PreparedImage]],
    compute: Compute,
    views: int,
) -> Tensor:
    """Return the probabilities (N, K), averaged over the members of the ensemble.

    Args:
        members: the classifiers.
        images: for each member, the N images as they were prepared for it.
        compute: device.
        views: views of each image for test-time augmentation.
    """
    per_member = []
    for (classifier, metadata), prepared in zip(members, images, strict=True):
        pixels_NCHW = torch.from_numpy(np.stack([image.pixels_CHW for image in prepared]))
        per_member.append(
            predict_probabilities(compute.module(classifier), metadata, compute, pixels_NCHW, views=views)
        )
    return torch.stack(per_member).mean(0)


def top_predictions(probability_K: Tensor, classes: tuple[str, ...], top: int) -> list[tuple[str, float]]:
    """Return the `top` most probable classes with their probabilities, in decreasing order."""
    probabilities, indices = probability_K.topk(min(top, len(classes)))
    return [(classes[index], value) for index, value in zip(indices.tolist(), probabilities.tolist(), strict=True)]


def as_table(predictions: Predictions, prepared: dict[Path, PreparedImage]) -> Table:
    """Return a table with a row for each image."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("image", overflow="fold", min_width=8)
    for rank in range(max(map(len, predictions.values()), default=0)):
        table.add_column("prediction" if rank == 0 else f"{rank + 1}.", style="bold" if rank == 0 else None)
    table.add_column("preprocessing", style="dim", overflow="fold")
    names = shown_names(list(predictions))
    for file, top in predictions.items():
        table.add_row(names[file], *(f"{name} {value:.1%}" for name, value in top), prepared[file].steps)
    return table


def as_json(predictions: Predictions, prepared: dict[Path, PreparedImage]) -> list[dict[str, Any]]:
    """Return the predictions as JSON values."""
    return [
        {
            "picture": str(file),
            "seen": prepared[file].steps,
            "guesses": [{"class": name, "probability": round(value, 6)} for name, value in top],
        }
        for file, top in predictions.items()
    ]


def draw(predictions: Predictions, prepared: dict[Path, PreparedImage]) -> Figure:
    """Plot the images as the network got them, with the first prediction."""
    pictures = [prepared[file].pixels_CHW.transpose(1, 2, 0) for file in predictions]
    names = shown_names(list(predictions))
    titles = [f"{names[file][-22:]}\n{top[0][0][:20]} {top[0][1]:.0%}" for file, top in predictions.items()]
    return image_figure(pictures, titles, width=1.7, height=2.1, font_size=7)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program.

    Raises:
        UserError: a classifier or an image is missing or damaged. Predictions for the other images are printed first.
    """
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.words:
        raise UserError(
            "No classifier was given: type a run folder, a model file or a name of the zoo, then images, as in "
            f"{program_command('vision.predict')} runs/<name> photo.png."
        )
    model, *words = options.words
    members = load_classifiers([model, *options.also])
    files, classes = list_image_files(words), members[0][1].classes
    prepared, errors = read_images(files, members[0][1], as_is=options.as_is, background=options.background)
    compute = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    predictions: Predictions = {}
    if prepared:
        further = [
            read_images(list(prepared), metadata, as_is=options.as_is, background=options.background)[0]
            for _, metadata in members[1:]
        ]
        images = [list(each.values()) for each in (prepared, *further)]
        probability_NK = predict(members, images, compute, options.views)
        predictions = {
            file: top_predictions(row, classes, options.top) for file, row in zip(prepared, probability_NK, strict=True)
        }
    if predictions and len(members) > 1:
        print(
            f"Ensemble: mean probabilities of {len(members)} classifiers.",
            file=sys.stderr if options.json else sys.stdout,
        )
    if options.json:
        print(json.dumps(as_json(predictions, prepared), indent=2))
    elif predictions:
        table_console().print(as_table(predictions, prepared))
    if options.out and predictions:
        content = png_bytes(figure_pixels(draw(predictions, prepared)))
        write_atomically(Path(options.out), lambda file: file.write(content))
    if errors:
        raise UserError("\n       ".join(errors))


if __name__ == "__main__":
    run_main(main)
