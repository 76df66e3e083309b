"""Report of a sweep: table of the trials, CSV file, plot of the history, plot of hyperparameter importances.

Importances are those of PED-ANOVA (Watanabe et al. 2023): how much the distribution of a setting in the best quarter of
the complete trials differs from its distribution in all complete trials, as a fraction of the sum over settings. A
setting with a high importance must be right for a trial to be among the best. With few trials the importances are
unreliable.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from zerokara.agents.sweeping.search_space import Dimension, format_values
from zerokara.core.checkpoint import write_atomically
from zerokara.core.report import new_figure, table_console, tables_within, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEST_FRACTION = 0.25  # of the complete trials, for importances
MIN_TRIALS = 8  # complete trials needed for importances, so that the best quarter has two


class Row(NamedTuple):
    """Result of a trial."""

    number: int
    value: float | None  # of a pruned trial: its last intermediate value
    seed_values: tuple[float, ...]  # value of the run of each seed
    state: str
    steps: int  # agent steps of the runs of all seeds up to the last evaluation
    settings: tuple[str, ...]
    complete: bool


def make_rows(study: optuna.Study, space: Sequence[Dimension]) -> list[Row]:
    """Make a row for each trial: first the complete trials, best first; then the others by number."""
    started = [trial for trial in study.get_trials(deepcopy=False) if len(trial.params) == len(space)]
    rows = [_row(trial, space) for trial in started]
    return sorted(rows, key=lambda row: (not row.complete, -(row.value or 0) if row.complete else 0, row.number))


def _row(trial: FrozenTrial, space: Sequence[Dimension]) -> Row:
    last = trial.last_step or 0
    complete = trial.state == TrialState.COMPLETE
    value = trial.value if complete else trial.intermediate_values.get(last)
    names = {TrialState.RUNNING: "unfinished", TrialState.FAIL: "failed", TrialState.COMPLETE: "complete"}
    state = str(trial.user_attrs.get("why") or names.get(trial.state, "pruned"))
    if twin := re.fullmatch(r"as (\d+)", state):
        state = f"same as trial {twin[1]}"
    seed_values = tuple(trial.user_attrs.get("worths", ()))
    return Row(trial.number, value, seed_values, state, last, tuple(format_values(space, trial.params)), complete)


def format_table(rows: Sequence[Row], space: Sequence[Dimension]) -> str:
    """Format the rows as text, within the width of the terminal (80 characters on a pipe)."""
    columns = ("trial", "value", "steps", "state", *(dimension.name for dimension in space))
    cells = [
        (str(row.number), "-" if row.value is None else f"{row.value:.4g}", f"{row.steps:,}", row.state, *row.settings)
        for row in rows
    ]
    console = Console(file=io.StringIO(), width=table_console().width)
    with console.capture() as text:
        for part in tables_within(columns, cells, console.width):
            console.print(part)
    return "\n".join(line.rstrip() for line in text.get().splitlines()).strip("\n")


def write_report(study: optuna.Study, space: Sequence[Dimension], folder: Path) -> list[Row]:
    """Write trials.csv, history.png and, with enough complete trials, importance.png. Returns the rows."""
    rows = make_rows(study, space)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "value", "seeds", "state", "steps", *(dimension.name for dimension in space)])
    for row in rows:
        value = "" if row.value is None else row.value
        writer.writerow([row.number, value, " ".join(map(str, row.seed_values)), row.state, row.steps, *row.settings])
    write_atomically(folder / "trials.csv", lambda file: file.write(text.getvalue().encode()))
    _save(folder / "history.png", lambda axes: draw_history(axes, rows))
    if importances := compute_importances(study):
        _save(folder / "importance.png", lambda axes: draw_importances(axes, importances))
    return rows


def compute_importances(study: optuna.Study) -> dict[str, float]:
    """Return the importance of each setting, largest first.

    Empty with fewer than MIN_TRIALS complete trials, or if the best quarter is not better than the worst trial.
    """
    values = sorted(trial.value or 0 for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    num_best = math.ceil(BEST_FRACTION * len(values))
    if len(values) < MIN_TRIALS or values[-num_best] == values[0]:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_FRACTION)
    importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(importances.items(), key=lambda item: -item[1]))


def draw_history(axes: Axes, rows: Sequence[Row]) -> None:
    """Plot the values by trial number, and the best value so far."""
    from matplotlib.ticker import MaxNLocator

    by_number = sorted((row for row in rows if row.value is not None), key=lambda row: row.number)
    complete = [row for row in by_number if row.complete]
    stopped = [row for row in by_number if not row.complete]
    axes.scatter([r.number for r in stopped], [r.value or 0 for r in stopped], color="0.6", marker="x", label="stopped")
    axes.scatter([r.number for r in complete], [r.value or 0 for r in complete], color="tab:blue", label="complete")
    best = [max(row.value or 0 for row in complete[: index + 1]) for index in range(len(complete))]
    axes.step([row.number for row in complete], best, where="post", color="tab:blue", linewidth=1, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("value (stopped trials: last intermediate value)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)


def draw_importances(axes: Axes, importances: Mapping[str, float]) -> None:
    """Plot a bar for each setting, the largest importance at the top."""
    names = list(importances)[::-1]
    bars = axes.barh(names, [importances[name] for name in names], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlim(0, 1.1 * max(importances.values()))
    axes.set_xlabel("hyperparameter importance (PED-ANOVA, best quarter of the complete trials)")


def _save(path: Path, draw: Callable[[Axes], None]) -> None:
    """Draw a figure and write it as PNG atomically; needs no display."""
    figure, (axes,) = new_figure(width=9, height=5.5)
    draw(axes)
    write_figure(path, figure)
