"""Grids of runs behind one figure: cells that are trained once, tables, means with their spread.

A cell is a config of vision.classify and a name; it lives in runs/<name>/cells/<cell>/, which holds a checkpoint while
it learns and result.json when it is done. With --resume finished cells are read, a killed one goes on bit for bit, and
seeds or other rows that were added to the command are trained.

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
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from zerokara.core import checkpoint
from zerokara.core.compute import Precision
from zerokara.core.config import Range, UserError, to_dict
from zerokara.core.distributed import World
from zerokara.core.divergence import divergence_error
from zerokara.core.machine import describe_machine
from zerokara.core.report import write_json
from zerokara.core.run import Run
from zerokara.core.run_config import stem
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data, Training, choose_compute, load_split
from zerokara.vision.classification.scoring import score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND = "cell"  # of checkpoints
SAVE_SECONDS = 60.0  # a killed cell loses no more
CONFIDENCE = 0.95
CHANGEABLE = frozenset({"resume", "quiet", "seeds"})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all grids are asked."""

    data: str = "glyphs"
    """Images: glyphs (drawn here), mnist, fashion-mnist, cifar10, cifar100, or a folder or zip of class folders."""
    data_dir: str = ""
    """Where named data lie or are downloaded to; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    seeds: Annotated[tuple[int, ...], Range(0, 10**6)] = (1, 2, 3)
    """Seeds with which every cell is trained."""
    validation_images: Annotated[int, Range(0)] = 0
    """Images held out of the training set, on which errors are measured; 0: a twelfth of it (5,000 of MNIST's)."""
    test: bool = False
    """Measure errors on the test set, once for each cell when it is done; only where they choose nothing."""
    name: str = ""
    """Folder under runs/; empty: made of the program and the data."""
    resume: bool = False
    """Go on with the grid of this name: what is done stays, what is missing is trained."""
    quiet: bool = False
    """Print nothing but warnings and the closing lines."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Arithmetic of the networks; auto: what a short measurement on the first cell finds fastest."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


@dataclass(frozen=True)
class Cell:
    """One network to train."""

    name: str
    """Its folder under cells/."""
    config: Config


@dataclass(frozen=True)
class Result:
    """What came of a cell."""

    cell: Cell
    parameters: int
    error: float
    """Share of validation images, or with --test of test images, that are misread."""
    train_error: float
    """Share of training images misread in the last stretch of learning, as augmented and with dropout."""
    curve: tuple[tuple[float, float, float], ...]
    """(epochs, train error, validation error) along the way."""
    hours: float


# Written down in full where it decides the outcome: a preset that is tuned anew must not change the figures.
NOTHING: Mapping[str, Any] = {
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
    "digits": {**NOTHING, "rotation_degrees": 10.0, "shift": 0.08, "scale": 0.1, "shear_degrees": 10.0},
    "photos": {**NOTHING, "crop_pixels": 4, "flip": True},
}
_SHARED = {
    "schedule": "cosine",
    "label_smoothing": 0.0,
    "ema_half_life_updates": 0.0,
    "compile": "off",
    "select": "last",
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    # For networks without normalisation.
    "adamw": {
        **_SHARED,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 0.02,
        "batch_size": 100,
        "epochs": 15,
        "warmup_epochs": 1.0,
    },
    # After He et al. 2016, section 4.2, with a cosine in the place of steps and on a shorter schedule.
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
    """The config of vision.classify with a recipe's settings, the options' data and machine, and `overrides`."""
    shared = ("data", "data_dir", "validation_images", "test", "device", "precision", "threads")
    fields = {**RECIPES[recipe], **{name: getattr(options, name) for name in shared}, **overrides}
    return Config(**fields)


def train_cells(run: Run, cells: Sequence[Cell], points: int) -> list[Result]:
    """Train what is not done yet, in order; the results of all that are done when it ends or is asked to stop.

    Args:
        run: the grid's.
        cells: with names of their own.
        points: of each learning curve, at most, the last one among them; each costs a look at the validation images.

    Raises:
        UserError: data that cannot be had, cells on the disk that another command trained, weights that are no numbers
            any more.
    """
    results = []
    with run.signals():
        for number, cell in enumerate(cells):
            if run.stop_requested:
                break
            folder = run.path("cells", cell.name, "result.json").parent
            result = _read(folder, cell) or _train(run, cell, folder, points, number, len(cells))
            if result is None:
                break
            run.progress(number + 1, len(cells), {"cell": cell.name, "error": result.error})
            results.append(result)
    return results


def _read(folder: Path, cell: Cell) -> Result | None:
    """The result of a cell that is done."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _same(content.pop("config"), cell.config, folder)
        return Result(cell, **{**content, "curve": tuple(tuple(point) for point in content["curve"])})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is damaged: delete {folder} and go on with --resume to train that cell again."
        ) from None


def _same(saved: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Refuse a cell that was trained with other settings: it would stand in the table under a wrong name."""
    machine = {"device", "threads"}
    now = to_dict(config)
    if differing := [name for name in now if name not in machine and saved.get(name) != now[name]]:
        raise UserError(
            f"{folder} was trained with another {' and '.join(differing)} than this command asks for: "
            f"start a fresh grid under another --name, or delete that folder."
        )


@functools.lru_cache(maxsize=1)
def _load(config: Config) -> Data:
    return Data.load(config)


def load_data(config: Config) -> Data:
    """The images of a cell, read again only where they are others than the last cell's."""
    names = ("data", "data_dir", "image_size", "grayscale", "validation_images", "train_images")
    seed = {"seed": config.seed} if config.train_images else {}  # which images, where they are not all
    return _load(Config(**{**{name: getattr(config, name) for name in names}, **seed}))


def _train(run: Run, cell: Cell, folder: Path, points: int, number: int, cells: int) -> Result | None:
    """Train a cell from wherever it stands; None where a signal came first."""
    images = load_data(cell.config)
    compute = run.compute(lambda: choose_compute(cell.config, images, World()), cells)
    training = Training(cell.config, images, compute, World())
    latest = folder / "checkpoint.pt"
    curve: list[tuple[float, float, float]] = []
    if latest.exists():
        state = checkpoint.load(latest, KIND)
        _same(state["config"], cell.config, folder)
        training.load_state_dict(state["training"])
        curve = [tuple(point) for point in state["curve"]]

    def check() -> None:
        if not training.is_finite():
            raise divergence_error(f"update {training.updates:,} of the cell {cell.name}", folder)

    def save() -> None:
        check()  # before weights that are no numbers replace good ones
        state = {"training": training.state_dict(), "curve": curve, "config": to_dict(cell.config)}
        checkpoint.save(latest, state, KIND)

    every = max(training.updates_per_epoch, -(-training.total_updates // points))
    saved = time.monotonic()
    while training.updates < training.total_updates:
        training.update(training.next_batch())
        if training.updates % every == 0 or training.updates == training.total_updates:
            check()
            error = training.score(images.validation, views=training.config.tta_views).error
            train_error = 1 - float(training.read_metrics()["train/accuracy"])
            curve.append((training.updates / training.updates_per_epoch, train_error, error))
        if run.stop_requested:
            save()
            return None
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
        if training.updates % 10 == 0:
            fields = {"cell": cell.name, "of its updates": f"{training.updates / training.total_updates:.0%}"}
            run.progress(number, cells, fields)
    result = Result(
        cell,
        parameters=sum(parameter.numel() for parameter in training.network.parameters()),
        error=_test_error(training) if cell.config.test else curve[-1][2],
        train_error=curve[-1][1],
        curve=tuple(curve),
        hours=training.stopwatch(),
    )
    content = {field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "cell"}
    write_json(folder / "result.json", {"config": to_dict(cell.config), **content})
    latest.unlink(missing_ok=True)
    return result


def _test_error(training: Training) -> float:
    """The error on the test set, which is read here and nowhere else."""
    test = load_split(training.config, "test")
    return score(
        training.evaluation_network, training.metadata, training.compute, test, views=training.config.tta_views
    ).error


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and the 95% interval of the mean, by Student's t, of some runs."""

    runs: int
    mean: float
    deviation: float
    """Of the runs, with n - 1; 0 of a single one."""
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """The spread of numbers, at least one; a single one has no interval but itself."""
    from scipy import stats

    values_R = np.array(list(values), float)
    mean = float(values_R.mean())
    if len(values_R) == 1:
        return Spread(1, mean, 0.0, mean, mean)
    error = float(stats.sem(values_R))
    low, high = stats.t.interval(CONFIDENCE, len(values_R) - 1, mean, error) if error else (mean, mean)
    return Spread(len(values_R), mean, float(values_R.std(ddof=1)), float(low), float(high))


def percent(found: Spread) -> str:
    """A mean error and the deviation of its runs: "1.25 ± 0.10 %", without a spread where there is one run."""
    return f"{found.mean:.2%}" if found.runs == 1 else f"{found.mean * 100:.2f} ± {found.deviation * 100:.2f} %"


def errors_of(options: Options) -> str:
    """What an error is a share of, for axes and captions."""
    return f"{'test' if options.test else 'validation'} error"


def default_name(kind: str, options: Options) -> str:
    """depth-mnist for --data mnist."""
    return f"{kind}-{stem(options.data)}"


def save_results(run: Run, options: Options, results: Sequence[Result]) -> None:
    """results.json: what was measured of every cell that is done, and on what."""
    cells = [
        {"cell": one.cell.name, "parameters": one.parameters, "error": one.error, "train_error": one.train_error}
        for one in results
    ]
    write_json(run.path("results.json"), {"error": errors_of(options), "machine": describe_machine(), "cells": cells})


def closing(run: Run, done: int, cells: int, command: str) -> str:
    """What to say in the end, and how to go on where it came early."""
    if done == cells:
        return f"{cells} cells trained: tables and pictures are in {run.folder}"
    reason = run.stop_requested or "stopped"
    return f"{reason}: {done} of {cells} cells trained; go on with: {command} --name {run.folder.name} --resume"


def plot_spread(
    axes: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], label: str, colour: str, style: str = "-"
) -> None:
    """A line through the means, bars for their 95% intervals, and a pale dot for every run.

    Args:
        x: places.
        runs: at each place the values of its runs.
    """
    found = [spread(values) for values in runs]
    means = np.array([one.mean for one in found])
    lows = np.array([max(0.0, one.low) for one in found])  # no error is less
    bars = [means - lows, [one.high for one in found] - means]
    axes.errorbar(x, means, yerr=bars, fmt=f"o{style}", color=colour, capsize=4, linewidth=1.8, label=label)
    for place, values in zip(x, runs, strict=True):
        axes.scatter([place] * len(values), values, s=14, color=colour, alpha=0.6, linewidths=0)
