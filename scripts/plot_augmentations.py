"""Plot the effect of each kind of augmentation on ten images.

    python -m scripts.plot_augmentations --data mnist
    python -m scripts.plot_augmentations --data cifar10 --preset photos --seed 2

The first row has one image of each of ten classes, not augmented. Each further row has a single kind of augmentation
with its strength. The last row has the augmentation of a preset of vision.classify. See docs/augmentation.md.

Shapes: B images (columns), R rows, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core import data
from zerokara.core.augment import Augment
from zerokara.core.checkpoint import write_atomically
from zerokara.core.command_line import parse
from zerokara.core.config import Range, UserError, run_main, suggest
from zerokara.core.data import ImageSet
from zerokara.core.media import png_bytes
from zerokara.core.report import figure_pixels
from zerokara.vision.classification.config import PRESETS, Config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 10
# Strengths at which the effect is visible. The presets use smaller values.
SHOWN = {
    "rotation_degrees": 25.0,
    "shift": 0.15,
    "scale": 0.3,
    "shear_degrees": 25.0,
    "elastic_pixels": 1.5,
    "crop_pixels": 4,
    "flip": True,
    "brightness": 0.4,
    "contrast": 0.7,
    "cutout": 0.4,
    "mixup": 1.0,
    "cutmix": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the program."""

    data: str = "glyphs"
    """Data set, as in vision.classify."""
    data_dir: str = ""
    """Folder in which named data sets are found or into which they are downloaded; empty: $ZEROKARA_DATA, else
    ~/.cache/zerokara."""
    image_size: Annotated[int | None, Range(8, 1024)] = None
    """Height and width in pixels to which images are resized; None: the size of the data set."""
    preset: str = "fast"
    """Preset of vision.classify whose augmentation is in the last row."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of the selected images and of the augmentation."""
    out: str = "augmentations.png"
    """PNG file to write."""


def one_of_each(images: ImageSet, generator: torch.Generator) -> ImageSet:
    """Return a random image of each class, for at most ten classes."""
    order_N = torch.randperm(len(images), generator=generator)
    labels = range(min(COLUMNS, len(images.classes)))
    indices = [order_N[images.labels[order_N] == label][:1] for label in labels]
    return images.take(torch.cat(indices))


def rows(images: ImageSet, preset: str, seed: int) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Yield the rows: name, images (B, C, H, W) from 0 to 1, and a label for each image if augmentation changes it."""
    x_BCHW = images.images.float() / 255
    target_BK = F.one_hot(images.labels, len(images.classes)).float()
    yield "original", x_BCHW, [images.classes[label] for label in images.labels.tolist()]
    kinds = [(format_strength(name, amount), Augment(**{name: amount})) for name, amount in SHOWN.items()]  # type: ignore[arg-type]
    kinds.append((f"preset {preset}", Config(**PRESETS[preset]).augment()))
    for name, augment in kinds:
        generator = torch.Generator().manual_seed(seed)
        changed_BCHW, mixed_BK = augment.mix(augment(x_BCHW, generator), target_BK, generator)
        mixes = augment.mixup or augment.cutmix
        labels = [format_label(label_K, images.classes) for label_K in mixed_BK] if mixes else []
        yield name, changed_BCHW, labels


def format_strength(name: str, amount: float | bool) -> str:
    """Format a field of Augment with its strength and unit: "rotation 25 degrees"."""
    kind, _, unit = name.partition("_")
    return kind if isinstance(amount, bool) else f"{kind} {amount:g} {unit}".strip()


def format_label(label_K: Tensor, classes: tuple[str, ...]) -> str:
    """Format a mixed label: "70% 3, 30% 8"."""
    weights, indices = label_K.topk(min(2, len(classes)))
    parts = zip(weights.tolist(), indices.tolist(), strict=True)
    return ", ".join(f"{weight:.0%} {classes[index]}" for weight, index in parts if weight > 0.005)


def draw(shown: Sequence[tuple[str, Tensor, list[str]]]) -> Figure:
    """Plot all rows in one figure."""
    from matplotlib.figure import Figure

    columns = len(shown[0][1])
    figure = Figure(figsize=(1.5 + 0.72 * columns, 0.8 * len(shown)), dpi=100, layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for line, (name, x_BCHW, labels) in zip(grid, shown, strict=True):
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
        for column, (axes, image_CHW) in enumerate(zip(line, x_BCHW, strict=True)):
            picture = image_CHW.permute(1, 2, 0).clamp(0, 1).numpy()
            axes.imshow(picture.squeeze(-1) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            if labels:
                axes.set_title(labels[column], fontsize=6, pad=2)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: load the images, draw the figure, write the file."""
    options = parse(Options, {}, argv, __doc__ or "")
    if options.preset not in PRESETS:
        raise UserError(
            f"There is no preset {options.preset!r}{suggest(options.preset, PRESETS)}; "
            f"choose one with --preset {{{','.join(PRESETS)}}}."
        )
    images = data.load(
        options.data,
        "train",
        data_dir=Path(options.data_dir) if options.data_dir else None,
        image_size=options.image_size,
    )
    subset = one_of_each(images, torch.Generator().manual_seed(options.seed))
    content = png_bytes(figure_pixels(draw(list(rows(subset, options.preset, options.seed)))))
    write_atomically(Path(options.out), lambda file: file.write(content))
    print(f"{options.out}: {len(SHOWN)} kinds of augmentation on {subset.source}")


if __name__ == "__main__":
    run_main(main)
