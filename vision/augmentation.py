"""Measure the error with and without augmentation for training sets of several sizes.

    python -m vision.augmentation --data mnist --seeds 1 2 3 4 5

A table and a PNG file in runs/<name>/ have the error over the size of the training set, with its deviation over seeds.
All networks make the same number of updates: with the same number of epochs, networks on small sets would be trained
too little. For each seed, the runs with and without augmentation use the same images.

docs/experiments.md has the results. An interrupted grid is resumed with --resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from zerokara.core.command_line import check_command_line
from zerokara.core.config import Range, UserError, run_main
from zerokara.core.programs import program_command
from zerokara.core.run_config import configure
from zerokara.vision.studies import names
from zerokara.vision.studies.options import Options as GridOptions

KIND = "augmentation"
MODES = {"without": ("tab:red", "--"), "with": ("tab:blue", "-")}


@dataclass(frozen=True, kw_only=True)
class Options(GridOptions):
    """Options of vision.augmentation."""

    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_AUGMENTATION
    CHANGEABLE: ClassVar = frozenset({"sizes"})
    GROUPS: ClassVar = names.GROUPS_AUGMENTATION
    COMMON: ClassVar = names.COMMON_AUGMENTATION

    sizes: Annotated[tuple[int, ...], Range(0)] = (100, 300, 1_000, 3_000, 10_000, 0)
    """Sizes of the training set (0: all images). The images are stratified by class and chosen at random by the
    seed."""
    seeds: Annotated[tuple[int, ...], Range(0, 10**6)] = (1, 2, 3, 4, 5)
    """Random seeds, each of which trains every cell once."""
    updates: Annotated[int, Range(1)] = 3_000
    """Updates of every network, rounded up to whole epochs."""
    backbone: str = "deep_cnn"
    """Name of the backbone (python -m core.backbones lists them)."""
    pictures: Literal["digits", "photos"] = "digits"
    """Augmentation: rotation and shift (digits), or crop and flip (photos). digits: rotation, translation, scaling,
    shear; photos: random crop, horizontal flip."""


def read_options(argv: Sequence[str] | None = None, description: str = "") -> Options:
    """Read the options from the command line; with --resume, from the run's folder.

    Raises:
        UserError: as in `core.run_config.configure`.
    """
    return configure(Options, {}, argv, description, kind=KIND, name_fields=("data",))


if __name__ == "__main__":
    check_command_line(read_options, __doc__)  # before the imports below, which take seconds

from rich import box
from rich.table import Table

from zerokara.core.backbones.registry import find_backbone
from zerokara.core.distributed import World
from zerokara.core.report import new_figure, plain_ticks, table_console, write_figure
from zerokara.core.run import Run
from zerokara.core.training_program import open_run
from zerokara.vision.studies import grid
from zerokara.vision.studies.grid import (
    AUGMENTATION,
    NO_AUGMENTATION,
    Cell,
    Result,
    base_config,
    error_label,
    format_percent,
    mean_interval,
)


def make_cells(options: Options, available: int) -> list[Cell]:
    """Return a cell for each size, seed and mode (with and without augmentation). Size 0 is all `available` images.

    Raises:
        UserError: a size is larger than the training set.
    """
    if wrong := [size for size in options.sizes if size > available]:
        raise UserError(f"--sizes cannot be {wrong[0]}: there are {available:,} training images; 0 uses all of them.")
    cells = []
    for size in options.sizes:
        batch_size = min(100, size or available)
        epochs = -(-options.updates // max(1, (size or available) // batch_size))
        for seed in options.seeds:
            for mode in MODES:
                config = base_config(
                    options,
                    "adamw",
                    backbone=options.backbone,
                    seed=seed,
                    train_images=size,
                    batch_size=batch_size,
                    epochs=epochs,
                    warmup_epochs=epochs / 10,
                    **(AUGMENTATION[options.pictures] if mode == "with" else NO_AUGMENTATION),
                )
                cells.append(Cell(f"{size or 'all'}-{mode}-seed{seed}", config))
    return cells


def errors_by_size(results: Sequence[Result], available: int) -> dict[str, dict[int, list[float]]]:
    """Group the errors of the runs by mode and size."""
    errors: dict[str, dict[int, list[float]]] = {mode: {} for mode in MODES}
    for result in sorted(results, key=lambda result: result.cell.config.train_images or available):
        config = result.cell.config
        off = all(getattr(config, name) == value for name, value in NO_AUGMENTATION.items())
        mode = "without" if off else "with"
        errors[mode].setdefault(result.cell.config.train_images or available, []).append(result.error)
    return errors


def table(errors: dict[str, dict[int, list[float]]], options: Options) -> Table:
    """Return a table with a row for each size: both errors and the relative change by augmentation."""
    table = Table(box=box.SIMPLE_HEAD, caption=f"{error_label(options)}: mean ± standard deviation over seeds")
    for column in ("training images", "runs", *MODES, "change"):
        table.add_column(column, justify="right")
    for size in sorted({size for by_size in errors.values() for size in by_size}):
        intervals = {mode: mean_interval(errors[mode][size]) for mode in MODES if size in errors[mode]}
        both = len(intervals) == len(MODES) and intervals["without"].mean > 0
        change = f"{intervals['with'].mean / intervals['without'].mean - 1:+.0%}" if both else "-"
        cells = [format_percent(intervals[mode]) if mode in intervals else "-" for mode in MODES]
        table.add_row(f"{size:,}", "/".join(str(one.runs) for one in intervals.values()), *cells, change)
    return table


def draw(errors: dict[str, dict[int, list[float]]], options: Options, run: Run) -> None:
    """Write augmentation.png: both curves with logarithmic axes."""
    from matplotlib.ticker import NullLocator

    figure, (axes,) = new_figure()
    for mode, (color, style) in MODES.items():
        if by_size := errors[mode]:
            values = [[100 * error for error in runs] for runs in by_size.values()]
            grid.plot_mean_interval(axes, list(by_size), values, f"{mode} augmentation", color, style)
    all_errors = [100 * error for by_size in errors.values() for runs in by_size.values() for error in runs if error]
    if all_errors:
        axes.set_ylim(0.7 * min(all_errors), 1.4 * max(all_errors))
    axes.set(xscale="log", yscale="log", xlabel="training images", ylabel=f"{error_label(options)}, %")
    axes.set_title(f"{options.data}, {options.backbone}: {options.updates:,} updates each; bars: 95% confidence")
    axes.set_xticks(sorted({size for by_size in errors.values() for size in by_size}))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.legend(frameon=False)
    write_figure(run.path("augmentation.png"), figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: train the grid, then write table, figure and results.json of the finished cells."""
    World.require_single_process(program_command("vision.augmentation"))
    options = read_options(argv, __doc__ or "")
    find_backbone(options.backbone)
    available = len(grid.load_data(base_config(options, "adamw")).train)
    cells = make_cells(options, available)
    with open_run(options, KIND) as run:
        done = grid.train_cells(run, cells, curve_points=1)
        if done:
            errors = errors_by_size(done, available)
            table_console().print(table(errors, options))
            draw(errors, options, run)
        grid.save_results(run, options, done)
        run.close(grid.closing_message(run, len(done), len(cells), program_command("vision.augmentation")))


if __name__ == "__main__":
    run_main(main)
