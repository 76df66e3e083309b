"""Learning curves: read from run folders, grouped over seeds, drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zerokara.core.config import UserError, flag, suggest
from zerokara.core.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# What may differ between runs of one group: nothing that bears on how they learn.
SAME_GROUP = frozenset({"name", "seed", "resume", "quiet", "capture_video"})


HOURS = "speed/hours"  # the metric with the run's age, interruptions left out


X_LABELS = {
    "steps": "agent steps",
    "frames": "frames of the game",
    "hours": "hours of wall clock, evaluations included",
}


Y_LABELS = {
    "train/return": "mean raw return of the last 100 games",
    "train/length": "mean length of the last 100 games, agent steps",
    "eval/return": "mean raw return in evaluation",
    "eval/length": "mean length of games in evaluation, agent steps",
    "train/loss": "loss",
    "train/q": "mean Q-value",
    "train/epsilon": "epsilon",
    "train/grad_norm": "norm of the gradient",
    "speed/steps_per_s": "agent steps per second",
}


@dataclass(frozen=True)
class Curve:
    """One run: points in the order of x."""

    name: str
    config: Mapping[str, Any]
    x: np.ndarray
    y: np.ndarray


Group = tuple[str, list[Curve]]  # a label, and the runs


def read_curve(folder: Path, metric: str, x: str) -> Curve:
    """The curve of one run.

    Raises:
        UserError: no such run, no metrics yet, damaged ones, no such metric, or no wall clock in them.
    """
    content = Run.read_config(folder)
    config = content["config"]
    rows = read_metrics(folder / "metrics.jsonl")
    points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
    if not points:
        known = sorted({name for row in rows for name, value in row.items() if value is not None} - {"step"})
        raise UserError(
            f"{folder} has no {metric}{suggest(metric, known)}: give --metric one of {', '.join(known) or 'nothing'}."
        )
    step, y = (np.array(column, float) for column in zip(*points, strict=True))
    if x == "frames":
        along = step * frames_per_step(content)
    elif x == "hours":
        known_hours = [(row["step"], row[HOURS]) for row in rows if row.get(HOURS) is not None]
        if not known_hours:
            raise UserError(f"{folder} has no {HOURS} in its metrics: plot it with --x steps or --x frames.")
        along = np.interp(step, *np.array(known_hours, float).T)
    else:
        along = step
    return Curve(folder.resolve().name, config, along, y)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. A last line that a killed process left half written counts for nothing.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    if not lines:
        raise UserError(f"{path.parent} has no metrics yet: wait for its first ones, or give another run.")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"] += 0
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged in line {number}: delete that line, or give another run.") from None
        rows.append(row)
    return rows


def frames_per_step(content: Mapping[str, Any]) -> int:
    """Frames for which a run's environment held an action: as saved with it, or what its kind of game does."""
    saved = content["extra"].get("environment", {}).get("frame_skip") or content["config"].get("frame_skip")
    return int(saved or (4 if str(content["config"].get("env", "")).startswith("ALE/") else 1))


def _labels(groups: Sequence[Sequence[Curve]]) -> list[str]:
    """What distinguishes each group, in a few words, and how many runs it has."""
    configs = [members[0].config for members in groups]
    names = dict.fromkeys(name for config in configs for name in config if name not in SAME_GROUP)
    differing = [name for name in names if len({json.dumps(config.get(name)) for config in configs}) > 1]
    labels: list[str] = []
    for members, config in zip(groups, configs, strict=True):
        if len(groups) == 1:
            what = f"{config.get('env', members[0].name)}, {config.get('preset', '')}".rstrip(", ")
        elif len(differing) <= 3:
            what = ", ".join(f"{flag(name)[2:]} {config.get(name)}" for name in differing)
        else:  # too much for a legend
            what = members[0].name
        labels.append(f"{what} ({len(members)} runs)" if len(members) > 1 else what)
    return labels


def mean_and_spread(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Common x, mean, minimum and maximum, where every run has values; linear between a run's points.

    All four are empty where the runs have no stretch in common.
    """
    begin, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    x = x[(x >= begin) & (x <= end)]
    y_RX = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    return x, y_RX.mean(axis=0), y_RX.min(axis=0), y_RX.max(axis=0)


def draw(axes: Axes, groups: Sequence[Group]) -> None:
    """Curves, bands and legend."""
    from matplotlib import colormaps

    for number, (label, curves) in enumerate(groups):
        colour = colormaps["tab10"](number % 10)
        style = ("-", "--", ":", "-.")[number // 10 % 4]
        if len(curves) == 1:
            axes.plot(curves[0].x, curves[0].y, style, color=colour, linewidth=2, label=label)
            continue
        for curve in curves:
            axes.plot(curve.x, curve.y, style, color=colour, linewidth=0.8, alpha=0.45)
        x, mean, low, high = mean_and_spread(curves)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, mean, style, color=colour, linewidth=2.2, label=f"{label}: mean, band from min to max")
    axes.legend(frameon=False, fontsize=9)
