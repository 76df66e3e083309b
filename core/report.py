"""Result files: JSON and plots, written atomically; plotting needs no display. Also arguments of report programs.

write_json(folder / "result.json", {"error": 0.003})
figure, (left, right) = new_figure(columns=2)
write_figure(folder / "error.png", figure)
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError, error_summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from rich.table import Table


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write plain values as JSON. Returns the path.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
        OSError: the file could not be written; an existing file is unchanged.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def tables_within(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Table]:
    """Lay out a table within `width` characters: if it is wider, as several tables that repeat the first column.

    Args:
        columns: headings; the first column is aligned left, the others right.
        rows: cells of each row.
    """
    from rich import box
    from rich.table import Table

    widths = [max(len(heading), *(len(row[i]) for row in rows), 1) + 3 for i, heading in enumerate(columns)]
    groups: list[list[int]] = [[]]
    for index in range(1, len(columns)):
        if groups[-1] and 1 + widths[0] + sum(widths[i] for i in groups[-1]) + widths[index] > width:
            groups.append([])
        groups[-1].append(index)
    tables = []
    for group in groups:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column(columns[0], overflow="fold")
        for index in group:
            table.add_column(columns[index], justify="right", overflow="fold")
        for row in rows:
            table.add_row(row[0], *(row[index] for index in group))
        tables.append(table)
    return tables


def new_figure(
    columns: int = 1, rows: int = 1, *, width: float = 6.5, height: float = 4.5
) -> tuple[Figure, list[Axes]]:
    """Create a figure with a grid of axes, listed row by row; width and height of each in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in all_axes:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis (`axes.xaxis` or `axes.yaxis`) with plain numbers instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter

    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(plain)


def write_figure(path: Path, figure: Figure, dpi: int = 150) -> Path:
    """Write a figure as PNG. Returns the path.

    Raises:
        OSError: the file could not be written; an existing file is unchanged.
    """
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))
    return path


def figure_pixels(figure: Figure) -> np.ndarray:
    """Render a figure to RGB pixels (H, W, 3) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def run_folders(runs: tuple[str, ...], program: str) -> list[Path]:
    """Return the run folders given on the command line, in order and without duplicates.

    Args:
        runs: paths as typed.
        program: command of the program, for the message ("python -m agents.plot").

    Raises:
        UserError: no run is given.
    """
    if not any(runs):
        existing = sorted(path.parent for path in Path("runs").glob("*/config.json"))
        example = existing[0] if existing else "runs/<name>"
        raise UserError(f"No run was named: give its folder, as in {program} {example}.")
    return list(dict.fromkeys(Path(run) for run in runs))


def output_folder(out: str, default: Path) -> Path:
    """Create and return the folder for a program's output: the value of --out if given, else `default`.

    Raises:
        UserError: the folder cannot be created.
    """
    folder = Path(out) if out else default
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out cannot be {out!r} ({error_summary(error)}): name a writable folder.") from None
    return folder
