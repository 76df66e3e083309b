"""Plot: learning curves over runs and seeds.

    python -m agents.plot runs/pong-1 runs/pong-2 runs/pong-3
    python -m agents.plot runs/pong-* --metric eval/return --x minutes
    python -m agents.plot runs/a-* runs/b-* --metric eval/return --x hours --out curves.png

Runs with equal configs, except for name and seed, form a group. Thin lines are its runs, the thick line is their mean
where all of them have values, and the band extends from their minimum to their maximum. If a run of the group ended at
its target return (--stop-at-return), the runs are drawn one by one, each to its end. Metrics of evaluations are drawn
with a marker at each evaluation. The plot is written to learning-curves.png in the folder that contains the first run;
--out changes the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from zerokara.agents.viewing.choices import XAxis
from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.programs import program_command


@dataclass(frozen=True, kw_only=True)
class Options:
    """Runs to plot, axes and output file."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Folders of the runs."""
    metric: str = "train/return"
    """Metric on the y-axis, by its name in metrics.jsonl."""
    x: XAxis = "steps"
    """X-axis: agent steps, frames of the game, or minutes or hours of training (interruptions are not counted)."""
    out: str = ""
    """PNG file; empty: learning-curves.png beside the first run."""
    dpi: Annotated[int, Range(30, 600)] = 150
    """Dots per inch; the plot is 9 inches wide and 5.5 inches high."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

from zerokara.agents.viewing.curves import (
    UNITS_PER_HOUR,
    X_LABELS,
    Y_LABELS,
    Group,
    draw,
    group_curves,
    read_curve,
)
from zerokara.core.report import new_figure, run_folders, write_figure


def save_plot(groups: Sequence[Group], options: Options, path: Path) -> None:
    """Draw without a display and write the PNG atomically.

    Raises:
        UserError: the folder does not exist.
    """
    from matplotlib.ticker import EngFormatter

    if not path.parent.is_dir():
        raise UserError(f"--out {path} is in a folder that does not exist: create {path.parent} first.")
    figure, (axes,) = new_figure(width=9, height=5.5)
    draw(axes, groups, options.metric)
    envs = dict.fromkeys(str(curve.config.get("env", "")) for _, curves in groups for curve in curves)
    axes.set_title(", ".join(filter(None, envs)), loc="left", fontweight="bold")
    axes.set_xlabel(X_LABELS[options.x])
    axes.set_ylabel(Y_LABELS.get(options.metric, options.metric))
    if options.x not in UNITS_PER_HOUR:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    write_figure(path, figure, options.dpi)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the curves, group and draw them, and print the last values and the path of the plot."""
    options = parse(Options, {}, argv, __doc__ or "")
    folders = run_folders(options.runs, program_command("agents.plot"))
    groups = group_curves([read_curve(folder, options.metric, options.x) for folder in folders])
    path = Path(options.out) if options.out else folders[0].parent / "learning-curves.png"
    if path.suffix.lower() != ".png":
        raise UserError(f"--out cannot be {options.out!r}: it must be a PNG file, such as {path.with_suffix('.png')}.")
    save_plot(groups, options, path)
    for label, curves in groups:
        last = ", ".join(f"{curve.name} {curve.y[-1]:.4g}" for curve in curves)
        print(f"{label + ': ' if label else ''}last {options.metric}: {last}")
    print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
