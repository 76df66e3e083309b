"""Grids of training runs for one experiment, with means and confidence intervals over seeds.

A cell is a config of vision.classify and a name. Its folder runs/<name>/cells/<cell>/ has a checkpoint during training
and result.json when training is finished. With --resume, finished cells are read, an interrupted cell is resumed bit
for bit, and cells that were added to the command (further seeds, for example) are trained.

Shapes: R runs (seeds) of one setting.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zerokara.core import checkpoint
from zerokara.core.compute import TrainStep
from zerokara.core.config import Stopped, UserError, from_dict, to_dict
from zerokara.core.distributed import World
from zerokara.core.divergence import check_finite
from zerokara.core.machine import describe_machine
from zerokara.core.report import write_json
from zerokara.core.run import Run
from zerokara.core.run_options import HARDWARE_FIELDS
from zerokara.core.training_program import choose_compute
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data, Training, load_split
from zerokara.vision.classification.scoring import score
from zerokara.vision.studies.options import Options
from zerokara.vision.training.epochs import probe_update, total_updates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND = "cell"  # kind of the checkpoints
SAVE_SECONDS = 60.0  # between checkpoints of a cell
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """Training run of a grid."""

    name: str
    """Name of its folder under cells/."""
    config: Config


@dataclass(frozen=True)
class Result:
    """Result of a cell."""

    cell: Cell
    parameters: int
    error: float
    """Fraction of misclassified validation images (with --test: of test images)."""
    train_error: float
    """Fraction of misclassified training images since the previous point of the curve, with augmentation, dropout."""
    curve: tuple[tuple[float, float, float], ...]
    """Learning curve: (epochs, train error, validation error)."""
    hours: float
    precision: str = ""
    """Precision in which it was trained; empty: written by a version that did not record it."""


# The settings that determine the results are listed here in full, so that tuning a preset does not change them.
NO_AUGMENTATION: Mapping[str, Any] = {
    "rotation_degrees": 0.0,
    "shift": 0.0,
    "scale": 0.0,
    "shear_degrees": 0.0,
    "elastic_pixels": 0.0,
    "crop_pixels": 0,
    "flip": False,
    "brightness": 0.0,
    "contrast": 0.0,
    "cutout": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
AUGMENTATION: Mapping[str, Mapping[str, Any]] = {
    "digits": {**NO_AUGMENTATION, "rotation_degrees": 10.0, "shift": 0.08, "scale": 0.1, "shear_degrees": 10.0},
    "photos": {**NO_AUGMENTATION, "crop_pixels": 4, "flip": True},
}
_SHARED = {
    "background": "white",
    "schedule": "cosine",
    "label_smoothing": 0.0,
    "ema_half_life_updates": 0.0,
    "compile": "off",
    "select": "last",
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    # For networks without normalization layers.
    "adamw": {
        **_SHARED,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 0.02,
        "batch_size": 100,
        "epochs": 15,
        "warmup_epochs": 1.0,
    },
    # As in He et al. 2016, section 4.2, but with a cosine schedule instead of steps, and shorter.
    "sgd": {
        **_SHARED,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "batch_size": 128,
        "epochs": 40,
        "warmup_epochs": 2.0,
    },
}


def base_config(options: Options, recipe: str, **overrides: Any) -> Config:
    """Return a config with the settings of a recipe, data and hardware of the options, and `overrides`."""
    shared = ("data", "data_dir", "validation_images", "test", "device", "precision", "threads")
    fields = {**RECIPES[recipe], **{name: getattr(options, name) for name in shared}, **overrides}
    return Config(**fields)


def train_cells(run: Run, cells: Sequence[Cell], curve_points: int) -> list[Result]:
    """Train the cells that are not finished, in order. Return the results of all finished cells, in the same order.

    A signal ends the function early; `run.stopped` is then True.

    Args:
        run: run of the grid.
        cells: cells with unique names.
        curve_points: maximum number of points of each learning curve, including the last one. Each of them needs an
            evaluation of the validation images.

    Raises:
        UserError: the data are missing, a cell on disk was trained with other settings or in another precision, or
            training diverged.
    """
    results: dict[str, Result] = {}
    for cell in cells:
        if result := _read(run.folder / "cells" / cell.name, cell):
            results[cell.name] = result
    chosen = run.extra.get("compute", {}).get("precision", "")
    for precision in {cell.config.precision for cell in cells} - {"auto"}:
        _check_precision(run, precision, chosen)
    try:
        for number, cell in enumerate(cells):
            if cell.name not in results:
                folder = run.path("cells", cell.name, "result.json").parent
                with run.interruptible():
                    results[cell.name] = _train(run, cell, folder, curve_points, number, len(cells))
            run.progress(number + 1, len(cells), {"cell": cell.name, "error": results[cell.name].error})
    except Stopped:
        run.stopped = True
    return [results[cell.name] for cell in cells if cell.name in results]


def _read(folder: Path, cell: Cell) -> Result | None:
    """Return the result of a finished cell, or None."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_same_config(content.pop("config"), cell.config, folder)
        return Result(cell, **{**content, "curve": tuple(tuple(point) for point in content["curve"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(path) from None


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: delete {path.parent} and use --resume to train that cell again.")


def _check_precision(run: Run, precision: str, chosen: str) -> None:
    """Raise an error if a finished cell was trained in another precision: one table would mix the two.

    Args:
        run: run of the grid.
        precision: in which further cells are trained.
        chosen: precision in which a cell was trained if its file does not tell, because it is that of an older version
            and the command had --precision auto: that chosen when the run began. Empty: unknown.
    """
    for path in sorted(run.folder.glob("cells/*/result.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            trained = content.get("precision") or content["config"].get("precision", "auto")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _damaged(path) from None
        trained = chosen if trained == "auto" else trained
        if trained not in ("", precision):
            raise UserError(
                f"{path.parent} was trained in {trained}, and this command computes in {precision}: give --precision "
                f"{trained}, start a new grid with another --name, or delete that folder."
            )


def _check_same_config(saved: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Raise an error if the cell was trained with other settings: its result would appear under a wrong name."""
    machine = set(HARDWARE_FIELDS)
    now, saved = to_dict(config), to_dict(from_dict(Config, saved, str(folder / "result.json")))
    if differing := [name for name in now if name not in machine and saved.get(name) != now[name]]:
        raise UserError(
            f"{folder} was trained with another {' and '.join(differing)} than this command has: "
            f"start a new grid with another --name, or delete that folder."
        )


@functools.lru_cache(maxsize=1)
def _load(config: Config) -> Data:
    return Data.load(config)


def load_data(config: Config) -> Data:
    """Return the images of a cell. They are read again only if they differ from those of the previous cell."""
    names = ("data", "data_dir", "image_size", "grayscale", "background", "validation_images", "train_images")
    seed = {"seed": config.seed} if config.train_images else {}  # the subset depends on the seed
    return _load(Config(**{**{name: getattr(config, name) for name in names}, **seed}))


def _train(run: Run, cell: Cell, folder: Path, curve_points: int, number: int, cells: int) -> Result:
    """Train a cell from its last checkpoint.

    Raises:
        Stopped: a signal stopped it. It is saved, but not if the signal interrupted an evaluation.
    """
    images = load_data(cell.config)
    batch_size = min(cell.config.batch_size, len(images.train))
    timed = TrainStep(
        functools.partial(probe_update, Training, cell.config, images), batch_size, cell.config.accumulation_steps
    )
    updates = cells * total_updates(cell.config, images)  # about: the cells differ
    started = run.extra.get("compute", {})
    compute = run.compute(lambda: choose_compute(cell.config, World(), timed, updates), cells)
    try:
        _check_precision(run, compute.precision, started.get("precision", ""))
    except UserError:
        if started:
            run.save_extra(compute=started)  # that of the finished cells
        raise
    training = Training(cell.config, images, compute, World())
    latest = folder / "checkpoint.pt"
    curve: list[tuple[float, float, float]] = []
    if latest.exists():
        state = checkpoint.load(latest, KIND)
        _check_same_config(state["config"], cell.config, folder)
        training.load_state_dict(state["training"])
        curve = [tuple(point) for point in state["curve"]]

    def check() -> None:
        check_finite(training.network, f"update {training.updates:,} of the cell {cell.name}", folder)

    def save() -> None:
        check()  # before non-finite weights overwrite a good checkpoint
        state = {"training": training.state_dict(), "curve": curve, "config": to_dict(cell.config)}
        checkpoint.save(latest, state, KIND)

    validation_interval = max(training.updates_per_epoch, -(-training.total_updates // curve_points))
    saved = time.monotonic()
    with run.interruptible(on=False):  # a signal waits for the end of an update; it interrupts an evaluation
        while training.updates < training.total_updates:
            training.update(training.next_batch())
            if training.updates % validation_interval == 0 or training.updates == training.total_updates:
                check()
                with run.interruptible():
                    error = training.score(images.validation, views=training.config.tta_views).error
                train_error = 1 - float(training.read_metrics()["train/accuracy"])
                curve.append((training.updates / training.updates_per_epoch, train_error, error))
            if run.stop_requested:
                save()
                raise Stopped
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
            if training.updates % 10 == 0:
                fields = {"cell": cell.name, "progress": f"{training.updates / training.total_updates:.0%}"}
                run.progress(number, cells, fields)
    result = Result(
        cell,
        parameters=sum(parameter.numel() for parameter in training.network.parameters()),
        error=_test_error(training) if cell.config.test else curve[-1][2],
        train_error=curve[-1][1],
        curve=tuple(curve),
        hours=training.stopwatch(),
        precision=compute.precision,
    )
    content = {field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "cell"}
    write_json(folder / "result.json", {"config": to_dict(cell.config), **content})
    latest.unlink(missing_ok=True)
    return result


def _test_error(training: Training) -> float:
    """Return the error on the test set. The test set is not read anywhere else."""
    test = load_split(training.config, "test")
    return score(
        training.evaluation_network, training.metadata, training.compute, test, views=training.config.tta_views
    ).error


@dataclass(frozen=True)
class MeanInterval:
    """Mean and standard deviation over runs, and the 95% confidence interval of the mean (Student's t)."""

    runs: int
    mean: float
    deviation: float
    """Sample standard deviation over the runs (divisor n - 1); 0 for a single run."""
    low: float
    high: float


def mean_interval(values: Iterable[float]) -> MeanInterval:
    """Return mean, deviation and confidence interval of at least one value. For a single value low = mean = high."""
    from scipy import stats

    values_R = np.array(list(values), float)
    mean = float(values_R.mean())
    if len(values_R) == 1:
        return MeanInterval(1, mean, 0.0, mean, mean)
    error = float(stats.sem(values_R))
    low, high = stats.t.interval(CONFIDENCE, len(values_R) - 1, mean, error) if error else (mean, mean)
    return MeanInterval(len(values_R), mean, float(values_R.std(ddof=1)), float(low), float(high))


def format_percent(result: MeanInterval) -> str:
    """Format a mean error and its standard deviation, "1.25 ± 0.10 %", or the error alone for a single run."""
    return f"{result.mean:.2%}" if result.runs == 1 else f"{result.mean * 100:.2f} ± {result.deviation * 100:.2f} %"


def error_label(options: Options) -> str:
    """Return the label of the error for axes and captions: on which split it is measured."""
    return f"{'test' if options.test else 'validation'} error"


def save_results(run: Run, options: Options, results: Sequence[Result]) -> None:
    """Write results.json: the results of all finished cells, the split and the machine."""
    cells = [
        {"cell": one.cell.name, "parameters": one.parameters, "error": one.error, "train_error": one.train_error}
        for one in results
    ]
    write_json(run.path("results.json"), {"error": error_label(options), "machine": describe_machine(), "cells": cells})


def closing_message(run: Run, done: int, cells: int, command: str) -> str:
    """Return the closing message, with the command to resume if not all cells are trained."""
    if done == cells:
        return f"{cells} cells trained: tables and figures are in {run.folder}"
    reason = run.stop_requested or "stopped"
    return f"{reason}: {done} of {cells} cells trained; resume with: {run.resume_command(command)}"


def plot_mean_interval(
    axes: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], label: str, color: str, style: str = "-"
) -> None:
    """Plot a line through the means, error bars for their 95% intervals, and a pale dot for each run.

    Args:
        axes: axes to draw on.
        x: position of each mean.
        runs: for each position, the values of its runs.
        label: label of the line.
        color: color of line and dots.
        style: line style.
    """
    intervals = [mean_interval(values) for values in runs]
    means = np.array([interval.mean for interval in intervals])
    lows = np.array([max(0.0, interval.low) for interval in intervals])  # errors are not negative
    bars = [means - lows, [interval.high for interval in intervals] - means]
    axes.errorbar(x, means, yerr=bars, fmt=f"o{style}", color=color, capsize=4, linewidth=1.8, label=label)
    for position, values in zip(x, runs, strict=True):
        axes.scatter([position] * len(values), values, s=14, color=color, alpha=0.6, linewidths=0)
