"""What a sweep found: a table, a CSV, how it went as PNG, and which settings mattered.

The importance of a setting is that of PED-ANOVA (Watanabe et al. 2023): how far its values in the best quarter of the
complete trials are distributed otherwise than in all of them, as a share of the sum. It says what one has to get right
to be among the best; with few trials it says little.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from zerokara.agents.sweeping.search_space import Dimension, texts
from zerokara.core.checkpoint import write_atomically
from zerokara.core.report import new_figure, tables_within, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEST_SHARE = 0.25
FEWEST = 8  # complete trials for importances: two in the best quarter


class Row(NamedTuple):
    """A trial in words and numbers."""

    number: int
    value: float | None  # of one that was pruned: what it was worth then
    worths: tuple[float, ...]  # of each seed
    state: str
    steps: int  # agent steps of all its seeds, as far as they were evaluated
    settings: tuple[str, ...]
    complete: bool


def rows(study: optuna.Study, space: Sequence[Dimension]) -> list[Row]:
    """A row for each trial: the complete ones, best first, then the others in the order of their numbers."""
    begun = [trial for trial in study.get_trials(deepcopy=False) if len(trial.params) == len(space)]
    found = [_row(trial, space) for trial in begun]
    return sorted(found, key=lambda row: (not row.complete, -(row.value or 0) if row.complete else 0, row.number))


def _row(trial: FrozenTrial, space: Sequence[Dimension]) -> Row:
    last = trial.last_step or 0
    complete = trial.state == TrialState.COMPLETE
    value = trial.value if complete else trial.intermediate_values.get(last)
    words = {TrialState.RUNNING: "interrupted", TrialState.FAIL: "failed", TrialState.COMPLETE: "complete"}
    state = str(trial.user_attrs.get("why") or words.get(trial.state, "pruned"))
    worths = tuple(trial.user_attrs.get("worths", ()))
    return Row(trial.number, value, worths, state, last, tuple(texts(space, trial.params)), complete)


def table(rows: Sequence[Row], space: Sequence[Dimension]) -> str:
    """Format the rows as text, within the width of the terminal (80 characters on a pipe)."""
    columns = ("trial", "value", "steps", "state", *(dimension.name for dimension in space))
    cells = [
        (str(row.number), "-" if row.value is None else f"{row.value:.4g}", f"{row.steps:,}", row.state, *row.settings)
        for row in rows
    ]
    console = Console(file=io.StringIO(), width=Console().width)
    with console.capture() as text:
        for part in tables_within(columns, cells, console.width):
            console.print(part)
    return "\n".join(line.rstrip() for line in text.get().splitlines()).strip("\n")


def write_report(study: optuna.Study, space: Sequence[Dimension], folder: Path) -> list[Row]:
    """Write trials.csv, history.png and, where there are trials enough, importance.png. Returns the rows."""
    found = rows(study, space)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "value", "seeds", "state", "steps", *(dimension.name for dimension in space)])
    for row in found:
        value = "" if row.value is None else row.value
        writer.writerow([row.number, value, " ".join(map(str, row.worths)), row.state, row.steps, *row.settings])
    write_atomically(folder / "trials.csv", lambda file: file.write(text.getvalue().encode()))
    _save(folder / "history.png", lambda axes: draw_history(axes, found))
    if shares := importances(study):
        _save(folder / "importance.png", lambda axes: draw_importances(axes, shares))
    return found


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each setting, greatest first; empty where complete trials are too few, or too few stand out."""
    values = sorted(trial.value or 0 for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    best = math.ceil(BEST_SHARE * len(values))
    if len(values) < FEWEST or values[-best] == values[0]:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def draw_history(axes: Axes, rows: Sequence[Row]) -> None:
    """Values in the order of the trials, and the best one so far."""
    from matplotlib.ticker import MaxNLocator

    by_number = sorted((row for row in rows if row.value is not None), key=lambda row: row.number)
    complete = [row for row in by_number if row.complete]
    stopped = [row for row in by_number if not row.complete]
    axes.scatter([r.number for r in stopped], [r.value or 0 for r in stopped], color="0.6", marker="x", label="stopped")
    axes.scatter([r.number for r in complete], [r.value or 0 for r in complete], color="tab:blue", label="complete")
    best = [max(row.value or 0 for row in complete[: index + 1]) for index in range(len(complete))]
    axes.step([row.number for row in complete], best, where="post", color="tab:blue", linewidth=1, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("value; where stopped, the last one")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)


def draw_importances(axes: Axes, shares: Mapping[str, float]) -> None:
    """A bar for each setting, the greatest on top."""
    names = list(shares)[::-1]
    bars = axes.barh(names, [shares[name] for name in names], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlim(0, 1.1 * max(shares.values()))
    axes.set_xlabel("importance: share in telling the best quarter from all complete trials")


def _save(path: Path, draw: Callable[[Axes], None]) -> None:
    """Draw without a display, and write the PNG, whole or not at all."""
    figure, (axes,) = new_figure(width=9, height=5.5)
    draw(axes)
    write_figure(path, figure)
