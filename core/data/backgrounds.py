"""Color behind the transparent pixels of all training images of a run, chosen when the run starts.

One color for all: with a contrasting color for each image, images of nearly equal lightness would get opposite ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zerokara.core.choices import Background
from zerokara.core.config import UserError, format_count
from zerokara.core.data.image_files import LIGHT, read_visible_luma
from zerokara.core.data.types import Progress


def visible_lumas(files: Iterable[tuple[str, Callable[[], bytes]]], progress: Progress | None) -> list[float]:
    """Return the mean luma (0 to 255) of the visible parts of each image with transparency.

    Images that cannot be read are left out here, and named when they are read.

    Args:
        files: name of each file, and a function that returns its content.
        progress: callback.
    """
    lumas = []
    for number, (name, read) in enumerate(files, 1):
        if progress is not None and number % 256 == 0:
            progress("images searched for transparency", number, 0)
        try:
            luma = read_visible_luma(read(), name)
        except UserError:
            continue
        lumas += [luma] if luma is not None else []
    return lumas


def choose_background(lumas: Sequence[float]) -> tuple[Background, int, int]:
    """Return the color for all images with transparency, and how many cannot be told from black and from white.

    These are images whose visible parts have nearly the luma of the color (0 to 255).
    """
    dark, light = sum(luma < 255 - LIGHT for luma in lumas), sum(luma > LIGHT for luma in lumas)
    return "black" if light > dark else "white", dark, light


def describe_background(data: str, lumas: Sequence[float]) -> str:
    """Describe the choice of `choose_background` for the images of `data`, in one line."""
    background, dark, light = choose_background(lumas)
    return (
        f"{data}: {format_count(len(lumas), 'image')} with transparency, all placed on {background} "
        f"({light:,} cannot be told from white, {dark:,} from black); --background chooses the color."
    )
