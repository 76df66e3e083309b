"""Images with their captions: an HTML page, and a figure for TensorBoard.

The images are embedded in the page, so the page is one file that can be sent to somebody. vision.caption
writes it under runs/, which git ignores, because the images may be under copyright.

Shapes: H, W pixels.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from zerokara.core.report import image_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EMPTY = "(empty caption)"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.6rem; }
img { width: 100%; border-radius: 4px; } .caption { font-size: 1.15em; font-weight: 600; margin: .3em 0; }
.score { float: right; color: #777; font-weight: 400; font-size: .85em; }
ul { margin: .2em 0; padding-left: 1.1em; color: #555; } .note { color: #777; font-size: .9em; }
"""


@dataclass(frozen=True)
class Entry:
    """One image with its captions."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    caption: str
    """Generated caption."""
    references: tuple[str, ...] = ()
    """Reference captions, written by people."""
    score: float | None = None
    """BLEU-4 of the generated caption, in percent."""
    notes: tuple[tuple[str, str], ...] = ()
    """Further lines: label and text, such as a baseline and its caption."""


def page(title: str, introduction: Sequence[str], entries: Sequence[Entry]) -> str:
    """Return an HTML page that loads nothing from elsewhere.

    Args:
        introduction: paragraphs above the images.
    """
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
            *(f"<p>{html.escape(paragraph)}</p>" for paragraph in introduction),
            "<main>",
            *(_article(entry) for entry in entries),
            "</main></body></html>",
            "",
        ]
    )


def _article(entry: Entry) -> str:
    """Return the HTML of one entry."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(entry.image)).save(buffer, "JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    score = "" if entry.score is None else f'<span class="score">BLEU {entry.score:.0f}</span>'
    lines = [
        f'<article><img src="data:image/jpeg;base64,{source}" alt="">',
        f'<p class="caption">{score}{html.escape(entry.caption) or EMPTY}</p>',
    ]
    if entry.references:
        lines += ["<ul>", *(f"<li>{html.escape(reference)}</li>" for reference in entry.references), "</ul>"]
    lines += [f'<p class="note">{html.escape(label)}: {html.escape(text)}</p>' for label, text in entry.notes]
    return "\n".join([*lines, "</article>"])


def draw(entries: Sequence[Entry], columns: int = 4) -> Figure:
    """Plot images in a grid, each with its generated caption as title."""
    from textwrap import fill

    titles = [fill(entry.caption or EMPTY, 34) for entry in entries]
    return image_figure([entry.image for entry in entries], titles, columns=columns, width=2.7, height=3.1)
