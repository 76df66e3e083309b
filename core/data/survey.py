"""Facts about image files that are known before the images are decoded: their sizes, and how light they are.

Shapes: H, W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from pathlib import Path

from zerokara.core.config import UserError
from zerokara.core.data.image_files import OPAQUE_SUFFIXES, read_size, read_visible_luma
from zerokara.core.data.types import Progress

REPORTED_EVERY = 256  # files


@dataclass
class Survey:
    """Facts about images.

    Attributes:
        sizes: number of images of each (H, W); empty if they were not asked for.
        lumas: mean luma (0 to 255) of the visible parts of each image with transparency; empty if not asked for.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    lumas: list[float] = field(default_factory=list)


def survey(
    files: Iterable[tuple[str, Callable[[], bytes]]],
    where: str,
    progress: Progress | None,
    *,
    sizes: bool = False,
    transparency: bool = True,
    min_side: int = 0,
) -> Survey:
    """Look at image files, in one pass.

    Only images that may have transparency are decoded, and only if `transparency` is True. If `sizes` is False, files
    whose suffix is that of a format without transparency are not read. Images that cannot be read are left out here,
    and named when they are read for training.

    Args:
        files: name of each file, and a function that returns its content.
        where: the folder or archive, for messages.
        progress: callback.
        sizes: ask for the sizes.
        transparency: ask for the lumas.
        min_side: pixels; smaller images are left out.
    """
    found = Survey()
    total = len(files) if isinstance(files, Sized) else 0
    what = f"{'sizes' if sizes else 'transparency'} of images read from {where}"
    for number, (name, read) in enumerate(files, 1):
        if progress is not None and (number % REPORTED_EVERY == 0 or number == total):
            progress(what, number, total)
        if not sizes and Path(name).suffix.lower() in OPAQUE_SUFFIXES:
            continue
        named = f"{name} in {where}"
        try:
            content = read()
            size = read_size(content, named)
            luma = read_visible_luma(content, named) if transparency and min(size) >= min_side else None
        except UserError:
            continue
        if sizes and min(size) >= min_side:
            found.sizes[size] += 1
        found.lumas += [luma] if luma is not None else []
    return found
