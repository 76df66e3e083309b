"""Results of the runs of several seeds: read from their folders, averaged, and printed as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerokara.core.config import UserError
from zerokara.core.metrics import read_metrics
from zerokara.core.progress import format_value
from zerokara.core.report import table_console, tables_within

RESULT_GROUPS = ("final/", "eval/")  # of metrics: results of a finished run; without them, its last evaluation

Numbers = Mapping[str, float | int | None]
"""Runs, mean and sample standard deviation (None for a single run) of a metric."""


def read_results(folder: Path) -> dict[str, float]:
    """Return the results of a finished run: its metrics final/..., or its last evaluation if it has none.

    A result that is NaN or infinite is NaN.

    Raises:
        UserError: it has no metrics, or they are damaged.
    """
    last: dict[str, float] = {}
    for row in read_metrics(folder / "metrics.jsonl"):
        last |= {key: value for key, value in row.items() if isinstance(value, int | float)}
        last |= dict.fromkeys((key for key, value in row.items() if value is None), math.nan)  # written as null
    for group in RESULT_GROUPS:
        if results := {key: value for key, value in last.items() if key.startswith(group)}:
            return results
    return {}


def read_all_results(folders: Mapping[str, Path]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Read the results of finished runs.

    Args:
        folders: name of a run -> its folder.

    Returns:
        Results of each run, and runs whose results cannot be read (name -> reason).
    """
    results: dict[str, dict[str, float]] = {}
    unreadable: dict[str, str] = {}
    for name, folder in folders.items():
        try:
            results[name] = read_results(folder)
        except UserError as error:
            unreadable[name] = str(error)
    return results, unreadable


def summarize(results: Mapping[str, Mapping[str, float]]) -> dict[str, Numbers]:
    """Compute mean and sample standard deviation over the runs of each metric that all runs have.

    Args:
        results: name of a run -> metric -> value.
    """
    runs = list(results.values())
    summary: dict[str, Numbers] = {}
    for metric in runs[0] if runs else ():
        if all(metric in run for run in runs):
            values = [run[metric] for run in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            summary[metric] = {"runs": len(values), "mean": statistics.fmean(values), "deviation": deviation}
    return summary


def print_table(
    summary: Mapping[str, Mapping[str, float | int | None]], runs: Mapping[str, Mapping[str, float]]
) -> None:
    """Print a row for each metric: mean, standard deviation, and the value of each run."""
    columns = ["metric", "mean", "deviation", *runs]
    rows = [
        [
            metric,
            *(_cell(numbers[key]) for key in ("mean", "deviation")),
            *(_cell(run[metric]) for run in runs.values()),
        ]
        for metric, numbers in summary.items()
    ]
    console = table_console()
    for part in tables_within(columns, rows, console.width):
        console.print(part)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that JSON can represent: None for NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def _cell(value: float | int | None) -> str:
    return "-" if value is None else format_value(float(value))
