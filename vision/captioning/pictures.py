"""Photographs and what was said of them: a page for a browser, and a picture for TensorBoard.

The page holds the photographs themselves, so it can be sent to somebody; it is written under runs/ and nowhere else,
since photographs are other people's.

Shapes: N photographs, H, W pixels.
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.6rem; }
img { width: 100%; border-radius: 4px; } .said { font-size: 1.15em; font-weight: 600; margin: .3em 0; }
.score { float: right; color: #777; font-weight: 400; font-size: .85em; }
ul { margin: .2em 0; padding-left: 1.1em; color: #555; } .other { color: #777; font-size: .9em; }
"""


@dataclass(frozen=True)
class Entry:
    """One photograph."""

    picture: np.ndarray
    """(H, W, 3) uint8."""
    said: str
    references: tuple[str, ...] = ()
    """What people said of it."""
    score: float | None = None
    """Its own BLEU-4, in percent."""
    others: tuple[tuple[str, str], ...] = ()
    """What the baselines say: name and sentence."""


def page(title: str, about: Sequence[str], entries: Sequence[Entry]) -> str:
    """The page as HTML that loads nothing from elsewhere.

    Args:
        about: paragraphs above the photographs.
    """
    parts = [_article(entry) for entry in entries]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
            *(f"<p>{html.escape(paragraph)}</p>" for paragraph in about),
            "<main>",
            *parts,
            "</main></body></html>",
            "",
        ]
    )


def _article(entry: Entry) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(entry.picture)).save(buffer, "JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    score = "" if entry.score is None else f'<span class="score">BLEU {entry.score:.0f}</span>'
    lines = [
        f'<article><img src="data:image/jpeg;base64,{source}" alt="">',
        f'<p class="said">{score}{html.escape(entry.said) or "(nothing)"}</p>',
    ]
    if entry.references:
        lines += ["<ul>", *(f"<li>{html.escape(sentence)}</li>" for sentence in entry.references), "</ul>"]
    lines += [f'<p class="other">{html.escape(name)}: {html.escape(said)}</p>' for name, said in entry.others]
    return "\n".join([*lines, "</article>"])


def draw(entries: Sequence[Entry], columns: int = 4) -> Figure:
    """The photographs side by side, each over what is said of it."""
    from textwrap import fill

    from matplotlib.figure import Figure

    columns = min(columns, len(entries))
    rows = -(-len(entries) // columns)
    figure = Figure(figsize=(2.7 * columns, 3.1 * rows), dpi=100, layout="constrained")
    for axes, entry in zip(figure.subplots(rows, columns, squeeze=False).flat, entries, strict=False):
        axes.imshow(entry.picture)
        axes.set_title(fill(entry.said or "(nothing)", 34), fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure
