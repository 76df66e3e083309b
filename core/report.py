"""Result files: JSON and plots, written atomically; plotting needs no display. Also arguments of report programs.

write_json(folder / "result.json", {"error": 0.003})
figure, (left, right) = new_figure(columns=2)
write_figure(folder / "error.png", figure)
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError, error_summary
from zerokara.core.run_folder import existing_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

FILE_COLUMNS = 160  # width of a table that is written to a file or a pipe


def to_json(content: Any, indent: int | None = None) -> str:
    """Return plain values as JSON; null stands for NaN and infinite numbers, which JSON cannot represent."""
    return json.dumps(_without_nan(content), indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write plain values as JSON, with null for NaN and infinite numbers. Returns the path.

    Raises:
        OSError: the file could not be written; an existing file is unchanged.
    """
    text = to_json(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def read_result(path: Path, *required: str, mappings: Sequence[str] = ()) -> dict[str, Any]:
    """Read the result file of a finished run. Figures that were not measured (null) become NaN.

    Args:
        path: of result.json.
        required: names of numbers that must be among its "figures".
        mappings: further keys of the file that must be mappings.

    Raises:
        UserError: the file is damaged.
    """
    content: dict[str, Any] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        figures = content["figures"] = {
            name: math.nan if value is None else value for name, value in content["figures"].items()
        }
        sound = set(required) <= set(figures) and all(isinstance(value, int | float) for value in figures.values())
        sound = sound and all(isinstance(content[name], dict) for name in ("figures", *mappings))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path} is damaged: delete it, and evaluate the run again with --resume.")
    return content


def read_json(
    path: Path, remedy: str = "delete it, and repeat the same command", **required: type | tuple[type, ...]
) -> dict[str, Any]:
    """Read a mapping that `write_json` wrote.

    Args:
        path: of the file.
        remedy: what to do if it is damaged, for the message.
        required: keys that it must have, with the types of their values.

    Raises:
        UserError: the file is damaged, or has another content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or cannot be read ({error_summary(error)}): {remedy}.") from None
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in required.items()):
        raise UserError(
            f"{path} was not written by this program, or is damaged (it needs the keys {', '.join(required)}): "
            f"{remedy}."
        )
    return content


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


def table_console(*, stderr: bool = False) -> Console:
    """Return a console for tables: as wide as the terminal or, for a file or a pipe, 160 columns wide.

    rich assumes 80 columns there, and cuts the cells of a wide table.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else FILE_COLUMNS)


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


def image_figure(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    columns: int = 6,
    width: float = 1.5,
    height: float = 1.72,
    font_size: float = 8,
    heading: str = "",
) -> Figure:
    """Plot images in a grid, each with a title.

    Args:
        images: (H, W, C) uint8 with C 1 or 3, at least one.
        titles: of the images.
        columns: maximum number of columns.
        width, height: of an image with its title, in inches.
        font_size: of the titles, in points.
        heading: a line above all images.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    heading_height = 0.3 if heading else 0.0
    figure = Figure(figsize=(width * columns, height * rows + heading_height), dpi=100)
    # One pair of axes in inches for all images: a pair for each, with a layout, takes three times as long.
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    margin = 0.04
    lines = max(title.count("\n") + 1 for title in titles)
    title_height = min(lines * 1.35 * font_size / 72 + margin, 0.6 * height)
    room = np.array([width - 2 * margin, height - title_height - margin])  # of an image
    for index, (image_HWC, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(index, columns)
        middle, top = (column + 0.5) * width, row * height + title_height
        side = np.array(image_HWC.shape[1::-1])
        drawn_width, drawn_height = side * float((room / side).min())
        left = middle - drawn_width / 2
        axes.imshow(
            image_HWC.squeeze(-1) if image_HWC.shape[2] == 1 else image_HWC,
            cmap="gray",
            vmin=0,
            vmax=255,
            aspect="auto",
            extent=(left, left + drawn_width, top + drawn_height, top),
        )
        axes.text(middle, top - margin, title, fontsize=font_size, ha="center", va="bottom")
    axes.text(columns * width / 2, -heading_height / 2, heading, fontsize=font_size + 1, ha="center", va="center")
    axes.set(xlim=(0, columns * width), ylim=(rows * height, -heading_height))
    return figure


def plot_confusion(
    axes: Axes, confusion_KK: np.ndarray, classes: Sequence[str], *, max_fraction: float = 1.0, percent: bool = False
) -> None:
    """Plot a confusion matrix: rows are labels, columns are predictions, colors are fractions of a row.

    Args:
        axes: to plot on.
        confusion_KK: counts.
        classes: names of the classes.
        max_fraction: fraction with the darkest color.
        percent: write fractions in percent into the cells instead of counts; zeros are left out.
    """
    fraction_KK = confusion_KK / np.maximum(1, confusion_KK.sum(1, keepdims=True))
    number_KK = (100 * fraction_KK).round().astype(int) if percent else confusion_KK
    axes.imshow(fraction_KK, cmap="Blues", vmin=0, vmax=max_fraction)
    axes.set_xlabel("prediction")
    axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axes.set_yticks(range(len(classes)), classes)
    for row, column in np.argwhere(number_KK):
        color = "white" if fraction_KK[row, column] > max_fraction / 2 else "black"
        text = str(number_KK[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def write_figure(path: Path, figure: Figure, dpi: int = 150) -> Path:
    """Write a figure as PNG. Returns the path.

    Raises:
        OSError: the file could not be written; an existing file is unchanged.
    """
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))
    return path


def figure_pixels(figure: Figure) -> np.ndarray:
    """Render a figure to RGB pixels (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def run_folders(runs: tuple[str, ...], program: str, find: Callable[[str], Path] = Path) -> list[Path]:
    """Return the run folders given on the command line, in order and without duplicates.

    Args:
        runs: paths as typed.
        program: command of the program, for the message ("python -m agents.plot").
        find: function from a typed word to the path, for programs that also take names of the zoo.

    Raises:
        UserError: no run is given; see `find`.
    """
    if not any(runs):
        existing = existing_runs(Path("runs"))
        example = existing[0] if existing else "runs/<name>"
        raise UserError(f"No run was named: give its folder, as in {program} {example}.")
    return list(dict.fromkeys(find(run) for run in runs))


class FromSource:
    """Base class of a trained network that was loaded from a run folder or a model file."""

    source: Path
    """Run folder or model file."""

    @property
    def name(self) -> str:
        """Name of the run, or of the model file without its extension."""
        path = self.source.resolve()
        return path.name if path.is_dir() else path.stem

    @property
    def output_folder(self) -> Path:
        """Folder for images, videos, results and exports: the run folder, or runs/outputs-<name> for a model file."""
        return self.source if self.source.is_dir() else Path("runs") / f"outputs-{self.name}"


def numbered(name: str) -> Iterator[str]:
    """Yield `name`, `name`-2, `name`-3, ...: names for files that must not overwrite one another."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


class OutputNames:
    """Names of files for the results of several inputs: no two are equal, and none is that of an input.

    Args:
        folder: of the results.
        inputs: files that must not be overwritten.
    """

    def __init__(self, folder: Path, inputs: Sequence[Path]) -> None:
        self._folder = folder
        self._taken = {path.resolve() for path in inputs}

    def choose(self, stem: str, *endings: str) -> str:
        """Return `stem`, or else `stem`-2, `stem`-3, ..., such that with each of `endings` it is a new name."""
        for name in numbered(stem):
            paths = {(self._folder / f"{name}{ending}").resolve() for ending in endings}
            if not paths & self._taken:
                self._taken |= paths
                return name
        raise AssertionError("numbered is endless")


def shown_names(files: Sequence[Path]) -> dict[Path, str]:
    """Return the names of files for a table: the file name, or the whole path if others have the same file name."""
    counts = Counter(file.name for file in files)
    return {file: file.name if counts[file.name] == 1 else str(file) for file in files}


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
