"""Color behind the transparent pixels of all training images of a run, chosen when the run starts.

One color for all: with a contrasting color for each image, images of nearly equal lightness would get opposite ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from zerokara.core.choices import Background
from zerokara.core.config import format_count
from zerokara.core.data.image_files import LIGHT
from zerokara.core.data.types import Progress
from zerokara.core.progress import loading

ConfigT = TypeVar("ConfigT", bound=Any)


def with_background(
    config: ConfigT, find_lumas: Callable[[Path | None, Progress], Sequence[float]]
) -> tuple[ConfigT, list[str]]:
    """Choose one color behind the transparent pixels of all images of a new run.

    Args:
        config: has `core.run_options.BackgroundOptions`, and the fields data, data_dir, resume and quiet.
        find_lumas: gets the folder of --data-dir (None: not given), and returns the mean luma (0 to 255) of the visible
            parts of each training image with transparency.

    Returns:
        The config, and a line about the choice if there are such images.

    Raises:
        UserError: as `find_lumas`.
    """
    if config.resume or config.background != "auto":
        return config, []
    with loading(config.quiet) as progress:
        lumas = find_lumas(Path(config.data_dir) if config.data_dir else None, progress)
    if not lumas:
        return config, []
    return replace(config, background=choose_background(lumas)[0]), [describe_background(config.data, lumas)]


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
