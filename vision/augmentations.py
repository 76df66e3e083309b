"""Augmentations: a picture of what each does to ten images.

    python -m vision.augmentations --data mnist
    python -m vision.augmentations --data cifar10 --preset photos --seed 2

The first row is one image of each of ten classes as they are. Each row below is one kind of augmentation alone, with
its amount; the last is what a preset of vision.classify does. docs/augmentation.md shows the picture.

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
# Amounts that can be seen; presets are milder.
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
    """What to show, and where."""

    data: str = "glyphs"
    """Images, as in vision.classify."""
    data_dir: str = ""
    """Where named data lie or are downloaded to; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    image_size: Annotated[int | None, Range(8, 1024)] = None
    """Height and width to which images are brought, in pixels; None: as they are."""
    preset: str = "fast"
    """Preset of vision.classify whose augmentation the last row shows."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Of the images and of what happens to them."""
    out: str = "augmentations.png"
    """PNG file."""


def one_of_each(images: ImageSet, generator: torch.Generator) -> ImageSet:
    """An image of each class, ten at most."""
    order_N = torch.randperm(len(images), generator=generator)
    labels = range(min(COLUMNS, len(images.classes)))
    places = [order_N[images.labels[order_N] == label][:1] for label in labels]
    return images.take(torch.cat(places))


def rows(images: ImageSet, preset: str, seed: int) -> Iterator[tuple[str, Tensor, list[str]]]:
    """For each row its name, its images (B, C, H, W) from 0 to 1, and words below each (where labels change)."""
    x_BCHW = images.images.float() / 255
    target_BK = F.one_hot(images.labels, len(images.classes)).float()
    yield "as it is", x_BCHW, [images.classes[label] for label in images.labels.tolist()]
    kinds = [(label(name, amount), Augment(**{name: amount})) for name, amount in SHOWN.items()]  # type: ignore[arg-type]
    chosen = Config(**PRESETS[preset]).augment()
    kinds.append((f"preset {preset}", chosen))
    for name, augment in kinds:
        generator = torch.Generator().manual_seed(seed)
        changed_BCHW, mixed_BK = augment.mix(augment(x_BCHW, generator), target_BK, generator)
        words = [in_words(label_K, images.classes) for label_K in mixed_BK] if augment.mixup or augment.cutmix else []
        yield name, changed_BCHW, words


def label(name: str, amount: float | bool) -> str:
    """A field of Augment with its amount and unit: "rotation 25 degrees"."""
    kind, _, unit = name.partition("_")
    return kind if isinstance(amount, bool) else f"{kind} {amount:g} {unit}".strip()


def in_words(label_K: Tensor, classes: tuple[str, ...]) -> str:
    """A mixed label: "70% 3, 30% 8"."""
    shares, places = label_K.topk(min(2, len(classes)))
    named = [f"{share:.0%} {classes[place]}" for share, place in zip(shares.tolist(), places.tolist(), strict=True)]
    return ", ".join(name for name, share in zip(named, shares, strict=True) if share > 0.005)


def draw(shown: Sequence[tuple[str, Tensor, list[str]]]) -> Figure:
    """All rows as one figure."""
    from matplotlib.figure import Figure

    columns = len(shown[0][1])
    figure = Figure(figsize=(1.5 + 0.72 * columns, 0.8 * len(shown)), dpi=100, layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for line, (name, x_BCHW, words) in zip(grid, shown, strict=True):
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
        for place, (axes, image_CHW) in enumerate(zip(line, x_BCHW, strict=True)):
            picture = image_CHW.permute(1, 2, 0).clamp(0, 1).numpy()
            axes.imshow(picture.squeeze(-1) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
            if words:
                axes.set_title(words[place], fontsize=6, pad=2)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """The program: options, images, figure."""
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
    some = one_of_each(images, torch.Generator().manual_seed(options.seed))
    content = png_bytes(figure_pixels(draw(list(rows(some, options.preset, options.seed)))))
    write_atomically(Path(options.out), lambda file: file.write(content))
    print(f"{options.out}: {len(SHOWN)} kinds of augmentation on {some.source}")


if __name__ == "__main__":
    run_main(main)
