"""Learning curves: read them from run folders, group them over seeds, draw them."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zerokara.agents.configs.common import HARDWARE_FIELDS, OUTPUT_FIELDS
from zerokara.agents.qlearning.agent_file import ALGORITHMS
from zerokara.agents.viewing.choices import XAxis
from zerokara.core.config import UserError, flag, from_dict, suggest, to_dict
from zerokara.core.metrics import read_metrics
from zerokara.core.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Config fields that may differ between the runs of one group.
SAME_GROUP = OUTPUT_FIELDS | HARDWARE_FIELDS | {"seed"}

HOURS = "speed/hours"  # metric: hours of training of the run, without interruptions

UNITS_PER_HOUR: Mapping[str, float] = {"minutes": 60, "hours": 1}

X_LABELS: Mapping[str, str] = {
    "steps": "agent steps",
    "frames": "frames of the game",
    "minutes": "minutes of wall clock, evaluations included",
    "hours": "hours of wall clock, evaluations included",
}

Y_LABELS: Mapping[str, str] = {
    "train/return": "mean raw return of the last up to 100 training episodes",
    "train/length": "mean length of the last up to 100 training episodes, agent steps",
    "eval/return": "mean raw return of an evaluation",
    "eval/length": "mean episode length of an evaluation, agent steps",
    "train/loss": "loss",
    "train/q": "mean Q-value",
    "train/epsilon": "epsilon",
    "train/grad_norm": "norm of the gradient",
    "speed/steps_per_s": "agent steps per second",
}

MAX_NAMES = 8  # names of runs that the legend lists for one group
LEGEND_COLUMNS = 90  # characters of a line in the legend
STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Curve:
    """Curve of one run. The points are in ascending order of x."""

    name: str
    config: Mapping[str, Any]
    x: np.ndarray
    y: np.ndarray
    target_reached: bool = False  # the run ended because an evaluation and its confirmation reached --stop-at-return


Group = tuple[str, list[Curve]]  # label, runs


def read_curve(folder: Path, metric: str, x: XAxis) -> Curve:
    """Read the curve of one run.

    Raises:
        UserError: there is no run, it has no metrics yet, metrics.jsonl is damaged, it does not contain the metric, or
            it contains no wall-clock time.
    """
    content = Run.read_config(folder)
    config = content["config"]
    if content["kind"] in ALGORITHMS:  # fields by today's names, so that old and new runs can be compared
        config = to_dict(from_dict(ALGORITHMS[content["kind"]][0], config, str(folder / "config.json")))
    rows = read_metrics(folder / "metrics.jsonl")
    points = [(row["step"], row[metric], row.get(HOURS)) for row in rows if row.get(metric) is not None]
    if not points:
        known = sorted({name for row in rows for name, value in row.items() if value is not None} - {"step"})
        raise UserError(
            f"{folder} has no {metric}{suggest(metric, known)}: give --metric one of {', '.join(known) or 'nothing'}."
        )
    steps, y = np.array([point[0] for point in points], float), np.array([point[1] for point in points], float)
    if x in UNITS_PER_HOUR:
        timed = [(row["step"], row[HOURS]) for row in rows if row.get(HOURS) is not None]
        if not timed:
            raise UserError(f"{folder} has no {HOURS} in its metrics: plot it with --x steps or --x frames.")
        interpolated = np.interp(steps, *np.array(timed, float).T)
        hours = np.array([i if own is None else own for i, (_, _, own) in zip(interpolated, points, strict=True)])
        x_values = hours * UNITS_PER_HOUR[x]
    else:
        x_values = steps * frames_per_step(content) if x == "frames" else steps
    return Curve(folder.resolve().name, config, x_values, y, _target_reached(config, rows))


def _target_reached(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if the last evaluation and its confirmation reached the run's --stop-at-return."""
    target = config.get("stop_at_return")
    last = next((row for row in reversed(rows) if row.get("eval/return") is not None), None)
    if target is None or last is None:
        return False
    confirmed = last.get("eval/return_confirmed")
    return last["eval/return"] >= target and (confirmed is None or confirmed >= target)


def frames_per_step(content: Mapping[str, Any]) -> int:
    """Return the number of frames per agent step: the value saved with the run, or the default of its environment.

    Args:
        content: content of config.json.
    """
    saved = content["extra"].get("environment", {}).get("frame_skip") or content["config"].get("frame_skip")
    return int(saved or (4 if str(content["config"].get("env", "")).startswith("ALE/") else 1))


def group_curves(curves: Sequence[Curve]) -> list[Group]:
    """Group the runs with equal configs, except for name and seed, in the order of their first curves."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        key = json.dumps({name: v for name, v in curve.config.items() if name not in SAME_GROUP}, sort_keys=True)
        groups.setdefault(key, []).append(curve)
    members = list(groups.values())
    return list(zip(_group_labels(members), members, strict=True))


def _group_labels(groups: Sequence[Sequence[Curve]]) -> list[str]:
    """Return a short label for each group: the settings in which the groups differ, or environment and preset."""
    configs = [members[0].config for members in groups]
    if len(groups) == 1:
        env, preset = str(configs[0].get("env", "")), str(configs[0].get("preset", ""))
        return [", ".join(filter(None, (env, preset)))]
    fields = dict.fromkeys(name for config in configs for name in config if name not in SAME_GROUP)
    differing = [name for name in fields if len({json.dumps(config.get(name)) for config in configs}) > 1]
    if len(differing) > 3:  # too long for a legend; the names of the runs, which follow, must be enough
        return [""] * len(groups)
    return [", ".join(f"{flag(name)[2:]} {config.get(name)}" for name in differing) for config in configs]


def join_names(names: Sequence[str]) -> str:
    """Join names of runs, the common beginning only once, as a shell would expand it: "pong-{1,2,3}"."""
    shown = list(names[:MAX_NAMES])
    equal = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*shown, strict=False))
    beginning = re.sub(r"\d+$", "", "".join(letters[0] for letters in equal)) if len(shown) > 1 else ""
    more = ["..."] * (len(names) > MAX_NAMES)
    rests = [name.removeprefix(beginning) for name in shown]
    if len(beginning) < 3 or not all(rests):
        return ", ".join([*shown, *more])
    return f"{beginning}{{{','.join([*rests, *more])}}}"


def mean_and_range(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return common x, mean, minimum and maximum where all runs have values; linear between the points of a run.

    All four arrays are empty if no x is inside the range of every run.
    """
    begin, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    x = x[(x >= begin) & (x <= end)]
    y_RX = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    return x, y_RX.mean(axis=0), y_RX.min(axis=0), y_RX.max(axis=0)


def draw(axes: Axes, groups: Sequence[Group], metric: str, *, name_runs: bool = True) -> None:
    """Draw curves, bands and the legend.

    A group gets its mean and a band from minimum to maximum where all of its runs have values. A group with a run that
    ended at its target return gets one line per run instead: its runs end at different times because they learned at
    different speeds, so a mean would end where the fastest run ends, far below the target.

    Args:
        metric: metric of the curves; of evaluations, which are few, each point gets a marker.
        name_runs: list the names of the runs in the legend.
    """
    from matplotlib import colormaps

    tab10 = colormaps["tab10"]
    for number, (label, curves) in enumerate(groups):
        color, style = tab10(number % 10), STYLES[number // 10 % 4]
        marker: dict[str, Any] = {"marker": "o", "markersize": 4} if metric.startswith("eval/") else {}
        names = join_names([curve.name for curve in curves]) if name_runs or not label else ""
        if any(curve.target_reached for curve in curves):
            for index, curve in enumerate(curves):
                # The runs of a single group are told apart by color, those of several groups by line style.
                own = tab10(index % 10) if len(groups) == 1 else color
                line = STYLES[index % 4] if len(groups) > 1 else "-"
                last = f"last value {curve.y[-1]:.4g}" + ", target reached" * curve.target_reached
                text = f"{_join(label, curve.name if name_runs else '')} ({last})"
                axes.plot(curve.x, curve.y, line, color=own, linewidth=1.8, label=_wrap(text), **marker)
                axes.plot(curve.x[-1:], curve.y[-1:], "o", color=own, markersize=8, markeredgecolor="white")
        elif len(curves) == 1:
            axes.plot(curves[0].x, curves[0].y, style, color=color, linewidth=2, label=_join(label, names), **marker)
        else:
            for curve in curves:
                axes.plot(curve.x, curve.y, style, color=color, linewidth=0.8, alpha=0.45, **marker)
            x, mean, low, high = mean_and_range(curves)
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            text = f"{_join(label, names)} (mean of {len(curves)} runs, band from min to max{_extent(curves, x)})"
            axes.plot(x, mean, style, color=color, linewidth=2.2, label=_wrap(text))
    if metric == "eval/return":
        ended = [curve for _, curves in groups for curve in curves if curve.target_reached]
        for target in dict.fromkeys(curve.config["stop_at_return"] for curve in ended):
            axes.axhline(target, color="0.4", linestyle=(0, (1, 3)), linewidth=1, label=f"target return {target:g}")
    axes.legend(frameon=False, fontsize=9)


def _extent(curves: Sequence[Curve], x: np.ndarray) -> str:
    """Return a note for the legend if the mean does not reach the end of the longest run."""
    if not len(x):
        return "; not drawn, for the runs have no x in common"
    return "" if x[-1] >= 0.95 * max(curve.x[-1] for curve in curves) else f" while all {len(curves)} have values"


def _join(label: str, names: str) -> str:
    return ": ".join(filter(None, (label, names)))


def _wrap(text: str) -> str:
    return textwrap.fill(text, LEGEND_COLUMNS, break_long_words=False, break_on_hyphens=False)
