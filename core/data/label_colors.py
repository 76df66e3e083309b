"""Colors of the classes of masks, in `labelmap.txt` of CVAT's export "Segmentation mask 1.1".

    # label:color_rgb:parts:actions
    background:0,0,0::
    road:128,64,128::

Shapes: H, W pixels.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from zerokara.core.config import UserError, format_count

FILE = "labelmap.txt"
MAX_CLASSES = 255  # 255 itself is the number of unlabeled pixels
UNLABELED = 255
VOID = (224, 224, 192)  # of PASCAL VOC, for pixels at the edges of objects
UNKNOWN = -1

LabelColors = tuple[tuple[str, tuple[int, int, int]], ...]
"""Names of the classes and their colors (R, G, B), in the order of their numbers."""


def read_label_colors(text: str, where: str) -> LabelColors:
    """Parse a `labelmap.txt`. A file of this name by another program, which has no colors, gives no classes.

    Args:
        text: content of the file.
        where: name of the file, for messages.

    Raises:
        UserError: a line is not a class with its color, or two classes have one name or color.
    """
    colors: dict[str, tuple[int, int, int]] = {}
    lines = {n: line for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")}
    if not re.match(r"[^:]+:\s*\d+\s*,\s*\d+\s*,\s*\d+", next(iter(lines.values()), "")):
        return ()
    for number, line in lines.items():
        name, _, rest = line.partition(":")
        channels = rest.split(":")[0].split(",")
        levels = [int(channel) if re.fullmatch(r"\s*\d{1,3}\s*", channel) else -1 for channel in channels]
        if len(levels) != 3 or not all(0 <= level <= 255 for level in levels) or not name.strip():
            raise UserError(
                f"Line {number} of {where} is {line.strip()!r}, but a class with its color was expected, as in "
                f"road:128,64,128:: (red, green, blue, each 0 to 255)."
            )
        color = (levels[0], levels[1], levels[2])
        if name.strip() in colors or color in colors.values():
            raise UserError(f"Line {number} of {where} repeats a class or a color ({line.strip()!r}): correct it.")
        colors[name.strip()] = color
    if len(colors) > MAX_CLASSES:
        raise UserError(f"{where} has {len(colors)} classes, but at most {MAX_CLASSES} are supported: merge some.")
    return tuple(colors.items())


def to_class_numbers(colors_HWC: np.ndarray, colors: LabelColors, name: str) -> np.ndarray:
    """Return the class number (H, W) uint8 of each pixel of a mask; UNLABELED for the color VOID without a class.

    Args:
        colors_HWC: RGB, uint8.
        colors: of the classes.
        name: of the mask, for messages.

    Raises:
        UserError: a color belongs to no class.
    """
    red_HW, green_HW, blue_HW = (colors_HWC[..., channel].astype(np.int32) for channel in range(3))
    numbers_HW: np.ndarray = _table(colors)[red_HW << 16 | green_HW << 8 | blue_HW]
    if (unknown_HW := numbers_HW == UNKNOWN).any():
        first = tuple(colors_HWC[unknown_HW][0].tolist())
        raise UserError(
            f"{name} has {format_count(int(unknown_HW.sum()), 'pixel')} of colors that {FILE} does not have, such as "
            f"{','.join(map(str, first))}: add them to the file, or correct the mask."
        )
    return numbers_HW.astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _table(colors: LabelColors) -> np.ndarray:
    """Return the class number of every color, as red * 2^16 + green * 2^8 + blue."""
    table = np.full(2**24, UNKNOWN, np.int16)
    table[_code(VOID)] = UNLABELED
    for number, (_, color) in enumerate(colors):
        table[_code(color)] = number
    return table


def _code(color: tuple[int, int, int]) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue
