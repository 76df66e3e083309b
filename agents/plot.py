"""Plot: learning curves over runs and seeds.

    python -m agents.plot runs/pong-1 runs/pong-2 runs/pong-3
    python -m agents.plot runs/a-* runs/b-* --metric eval/return --x hours --out curves.png

Runs whose configs are equal but for name and seed are one group: thin lines are its runs, the thick line is their mean
where all of them have values, the band reaches from their minimum to their maximum. The figure goes to
learning-curves.png beside the runs, unless --out says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from zerokara.agents.viewing.curves import SAME_GROUP, X_LABELS, Y_LABELS, Curve, Group, _labels, draw, read_curve
from zerokara.core.command_line import parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.programs import program_command
from zerokara.core.report import new_figure, run_folders, write_figure

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to plot, and where."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Folders of the runs."""
    metric: str = "train/return"
    """What to plot, by its name in metrics.jsonl."""
    x: Literal["steps", "frames", "hours"] = "steps"
    """Against agent steps, frames of the game, or hours since the run began, interruptions left out."""
    out: str = ""
    """PNG file; empty: learning-curves.png beside the first run."""
    dpi: Annotated[int, Range(30, 600)] = 150
    """Dots per inch of the figure, which is 9 inches wide and 5.5 high."""


def group(curves: Sequence[Curve]) -> list[Group]:
    """Groups with a label for each, in the order in which their first curves were given."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        key = json.dumps({name: v for name, v in curve.config.items() if name not in SAME_GROUP}, sort_keys=True)
        groups.setdefault(key, []).append(curve)
    members = list(groups.values())
    return list(zip(_labels(members), members, strict=True))


def save_figure(groups: Sequence[Group], options: Options, path: Path) -> None:
    """Draw without a display, and write the PNG, whole or not at all.

    Raises:
        UserError: the folder is not there.
    """
    from matplotlib.ticker import EngFormatter

    if not path.parent.is_dir():
        raise UserError(f"--out {path} lies in a folder that does not exist: make {path.parent} first.")
    figure, (axes,) = new_figure(width=9, height=5.5)
    draw(axes, groups)
    envs = dict.fromkeys(str(curve.config.get("env", "")) for _, curves in groups for curve in curves)
    axes.set_title(", ".join(filter(None, envs)), loc="left", fontweight="bold")
    axes.set_xlabel(X_LABELS[options.x])
    axes.set_ylabel(Y_LABELS.get(options.metric, options.metric))
    if options.x != "hours":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    write_figure(path, figure, options.dpi)


def main(argv: Sequence[str] | None = None) -> None:
    """Read, group, draw, and say where the figure is."""
    options = parse(Options, {}, argv, __doc__ or "")
    folders = run_folders(options.runs, program_command("agents.plot"))
    groups = group([read_curve(folder, options.metric, options.x) for folder in folders])
    path = Path(options.out) if options.out else folders[0].parent / "learning-curves.png"
    if path.suffix.lower() != ".png":
        raise UserError(f"--out cannot be {options.out!r}: it must be a PNG file, such as {path.with_suffix('.png')}.")
    save_figure(groups, options, path)
    for label, curves in groups:
        last = ", ".join(f"{curve.y[-1]:.4g}" for curve in curves)
        print(f"{label}: last {options.metric} {last}")
    print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
