"""Tests of the facts about image files that are known before the images are decoded."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image

from zerokara.core.data.survey import survey


def encoded(mode: str, size: tuple[int, int], suffix: str = "PNG") -> bytes:
    """Encode an image of gray level 7, with a transparent row if it has an alpha channel."""
    picture, out = Image.new(mode, size, (7, 255) if mode == "LA" else 7), io.BytesIO()
    if mode == "LA":
        picture.paste((0, 0), (0, 0, size[0], 1))
    picture.save(out, suffix)
    return out.getvalue()


FILES = {
    "icon.png": encoded("LA", (20, 10)),
    "opaque.png": encoded("L", (20, 10)),
    "photo.jpg": encoded("L", (30, 40), "JPEG"),
    "small.png": encoded("LA", (7, 10)),
    "damaged.png": b"damaged",
}


@pytest.mark.parametrize(
    ("asked", "sizes", "lumas", "read"),
    [
        ({}, {}, [7, 7], ["icon.png", "opaque.png", "small.png", "damaged.png"]),
        ({"min_side": 8}, {}, [7], ["icon.png", "opaque.png", "small.png", "damaged.png"]),
        ({"sizes": True}, {(10, 20): 2, (40, 30): 1, (10, 7): 1}, [7, 7], list(FILES)),
        ({"sizes": True, "min_side": 8}, {(10, 20): 2, (40, 30): 1}, [7], list(FILES)),
        ({"sizes": True, "transparency": False}, {(10, 20): 2, (40, 30): 1, (10, 7): 1}, [], list(FILES)),
    ],
)
def test_each_file_is_read_at_most_once(
    asked: dict[str, int], sizes: dict[tuple[int, int], int], lumas: list[float], read: list[str]
) -> None:
    seen: list[str] = []

    def reader(name: str) -> Callable[[], bytes]:
        return lambda: (seen.append(name), FILES[name])[1]  # type: ignore[func-returns-value]

    lines: list[tuple[str, int, int]] = []
    found = survey([(name, reader(name)) for name in FILES], "set", lambda *line: lines.append(line), **asked)  # type: ignore[arg-type]
    assert (dict(found.sizes), found.lumas, seen) == (sizes, lumas, read)
    assert lines == [(f"{'sizes' if 'sizes' in asked else 'transparency'} of images read from set", 5, 5)]
