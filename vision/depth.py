"""Compare stacks of small filters with large filters, and plain with residual networks of growing depth.

    python -m vision.depth --data mnist
    python -m vision.depth --data cifar10 --pictures photos --part layers --depths 20 56 110 --seeds 1

Two experiments, each with a grid of runs, a table and a PNG file in runs/<name>/:

* filters: one 5x5 against two 3x3, one 7x7 against three 3x3 (Simonyan and Zisserman 2015, section 2.3). A stack has
  the same receptive field with fewer weights per pair of channels. All four networks have as many parameters.
* layers: plain against residual networks of several depths (He et al. 2016, section 4.2 and figure 6). The training
  error of plain networks increases with depth, so this is not overfitting; shortcuts remove the effect.

docs/experiments.md has the results. An interrupted grid is resumed with --resume.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from zerokara.core.command_line import check_command_line
from zerokara.core.config import Range, UserError, run_main
from zerokara.core.programs import program_command
from zerokara.core.run_config import configure
from zerokara.vision.classification.config import Config
from zerokara.vision.studies import names
from zerokara.vision.studies.options import Options as GridOptions

KIND = "depth"
COLORS = {"plain": "tab:red", "resnet": "tab:blue"}
LABELS = {"plain": "plain", "resnet": "residual"}
NAMES = {"one5x5": "one 5x5", "two3x3": "two 3x3", "one7x7": "one 7x7", "three3x3": "three 3x3"}


@dataclass(frozen=True, kw_only=True)
class Options(GridOptions):
    """Options of vision.depth."""

    FOREIGN_NAMES: ClassVar = names.FOREIGN_NAMES_DEPTH
    CHANGEABLE: ClassVar = frozenset({"part", "depths"})
    REQUIRES: ClassVar = names.REQUIRES_DEPTH
    GROUPS: ClassVar = names.GROUPS_DEPTH
    COMMON: ClassVar = names.COMMON_DEPTH

    part: Literal["filters", "layers", "both"] = "both"
    """Experiment on sizes of filters, on depth (layers), or both. layers: plain against residual networks of several
    depths."""
    depths: Annotated[tuple[int, ...], Range(8, 1202)] = (20, 56, 110)
    """Layers of the plain and residual networks, of the form 6n + 2."""
    pictures: Literal["digits", "photos"] = "digits"
    """Augmentation: rotation and shift (digits), or crop and flip (photos). digits: rotation, translation, scaling,
    shear; photos: random crop, horizontal flip."""
    epochs: Annotated[int, Range(0)] = 0
    """Length of each run in epochs (0: 15 for filters, 40 for layers)."""
    train_images: Annotated[int, Range(0)] = 0
    """Number of training images to use, chosen by the seed (0: all)."""


def read_options(argv: Sequence[str] | None = None, description: str = "") -> Options:
    """Read the options from the command line; with --resume, from the run's folder.

    Raises:
        UserError: as in `core.run_config.configure`.
    """
    return configure(Options, {}, argv, description, kind=KIND, name_fields=("data",))


if __name__ == "__main__":
    check_command_line(read_options, __doc__)  # before the imports below, which take seconds

import torch
from rich import box
from rich.table import Table
from torch import nn

from zerokara.core.backbones.kernels import CHANNELS, KERNELS
from zerokara.core.distributed import World
from zerokara.core.models.classifier import make_classifier
from zerokara.core.report import new_figure, plain_ticks, table_console, write_figure
from zerokara.core.run import Run
from zerokara.core.training_program import open_run
from zerokara.vision.classification.learner import Data
from zerokara.vision.studies import grid
from zerokara.vision.studies.grid import Cell, Result, base_config, error_label, format_percent, mean_interval


def weights_per_pair(kernels: Sequence[int]) -> int:
    """Return the weights of a stack of square filters per pair of an input and an output channel."""
    return sum(kernel * kernel for kernel in kernels)


def receptive_field(kernels: Sequence[int]) -> int:
    """Return the side in pixels of the receptive field of a stack of filters with stride 1."""
    return 1 + sum(kernel - 1 for kernel in kernels)


def measured_receptive_field(kernels: Sequence[int]) -> int:
    """Return the side of the square on which the gradient of the central output is not zero."""
    side = 2 * receptive_field(kernels) + 1
    x = torch.zeros(1, 1, side, side, requires_grad=True)
    y = x
    for kernel in kernels:
        conv = nn.Conv2d(1, 1, kernel, padding=kernel // 2, bias=False)
        nn.init.ones_(conv.weight)
        y = conv(y)
    (gradient,) = torch.autograd.grad(y[0, 0, side // 2, side // 2], x)
    rows = torch.nonzero(gradient[0, 0].any(1)).flatten()
    return int(rows[-1] - rows[0]) + 1


def count_parameters(backbone: str, images: Data, width: float = 1.0) -> int:
    """Return the number of parameters of a classifier with this backbone for these images."""
    channels, height, width_px = images.train.shape
    with torch.random.fork_rng():
        network = make_classifier(
            backbone, channels, (height, width_px), len(images.train.classes), head="pooled", width=width
        )
    return sum(parameter.numel() for parameter in network.parameters())


def width_for(count: Callable[[float], int], parameters: int) -> float:
    """Return the width (a whole number of channels) at which `count(width)` is closest to `parameters`."""
    low, high = 4, 16 * CHANNELS  # channels
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle / CHANNELS) <= parameters else (low, middle)
    return min(low, high, key=lambda channels: abs(count(channels / CHANNELS) - parameters)) / CHANNELS


def filter_cells(options: Options, images: Data) -> list[Cell]:
    """Return a cell for each stack of filters and seed, all with about the parameters of 5x5 filters on 32 channels."""
    parameters = count_parameters("one5x5", images)
    cells = []
    for backbone in KERNELS:
        width = width_for(lambda width, backbone=backbone: count_parameters(backbone, images, width), parameters)  # type: ignore[misc]
        for seed in options.seeds:
            config = base_config(
                options,
                "adamw",
                backbone=backbone,
                width_multiplier=width,
                head="pooled",
                seed=seed,
                train_images=options.train_images,
                **grid.AUGMENTATION[options.pictures],
            )
            cells.append(Cell(f"{backbone}-seed{seed}", with_epochs(config, options.epochs)))
    return cells


def layer_cells(options: Options) -> list[Cell]:
    """Return a cell for each kind of network, depth and seed. Shallow networks come first because they train faster."""
    cells = []
    for seed in options.seeds:
        for depth in options.depths:
            for kind in COLORS:
                config = base_config(
                    options,
                    "sgd",
                    backbone=f"{kind}{depth}",
                    seed=seed,
                    train_images=options.train_images,
                    tta_views=1,
                    **grid.AUGMENTATION[options.pictures],
                )
                cells.append(Cell(f"{kind}{depth}-seed{seed}", with_epochs(config, options.epochs)))
    return cells


def with_epochs(config: Config, epochs: int) -> Config:
    """Return the config with another number of epochs and the same fraction of warm-up; 0: unchanged."""
    if not epochs:
        return config
    return dataclasses.replace(config, epochs=epochs, warmup_epochs=config.warmup_epochs * epochs / config.epochs)


def by_backbone(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group the results by backbone, in the order of their first occurrence."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.cell.config.backbone, []).append(result)
    return groups


def filter_table(results: Sequence[Result], options: Options) -> Table:
    """Return a table with a row for each stack of filters."""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="weights: per pair of channels; field: receptive field in pixels, computed / measured",
    )
    for column in ("filters", "weights", "field", "channels", "parameters", "runs", error_label(options)):
        table.add_column(column, justify="left" if column == "filters" else "right")
    for backbone, runs in by_backbone(results).items():
        kernels = KERNELS[backbone].kernels
        table.add_row(
            NAMES[backbone],
            str(weights_per_pair(kernels)),
            f"{receptive_field(kernels)} / {measured_receptive_field(kernels)}",
            str(round(runs[0].cell.config.width_multiplier * CHANNELS)),
            f"{runs[0].parameters:,}",
            str(len(runs)),
            format_percent(mean_interval(run.error for run in runs)),
        )
    return table


def layer_table(results: Sequence[Result], options: Options) -> Table:
    """Return a table with a row for each network."""
    table = Table(
        box=box.SIMPLE_HEAD, caption="training error: with augmentation, over the last interval of the learning curve"
    )
    for column in ("network", "layers", "parameters", "runs", "training error", error_label(options)):
        table.add_column(column, justify="left" if column == "network" else "right")
    for backbone, runs in by_backbone(results).items():
        kind, depth = split_name(backbone)
        errors = mean_interval(run.error for run in runs)
        train_errors = mean_interval(run.train_error for run in runs)
        table.add_row(
            LABELS[kind],
            str(depth),
            f"{runs[0].parameters:,}",
            str(len(runs)),
            format_percent(train_errors),
            format_percent(errors),
        )
    return table


def split_name(backbone: str) -> tuple[str, int]:
    """Split the name of a backbone into kind and depth: plain20 -> ("plain", 20)."""
    kind = backbone.rstrip("0123456789")
    return kind, int(backbone.removeprefix(kind))


def draw_filters(results: Sequence[Result], options: Options, run: Run) -> None:
    """Write filters.png: weights and receptive fields of the stacks, and errors at equal numbers of parameters."""
    groups = by_backbone(results)
    figure, (left, right) = new_figure(2, width=5.0)
    labels = [NAMES[name] for name in groups]
    for position, name in enumerate(groups):
        kernels = KERNELS[name].kernels
        color = "tab:blue" if len(kernels) > 1 else "tab:orange"
        left.bar(position, weights_per_pair(kernels), color=color, width=0.6)
        field = measured_receptive_field(kernels)
        label = f"{weights_per_pair(kernels)}\nfield {field}x{field}"
        left.annotate(label, (position, weights_per_pair(kernels)), ha="center", va="bottom", fontsize=9)
        errors = [[100 * one.error for one in groups[name]]]
        grid.plot_mean_interval(right, [position], errors, "", color)
    left.set(title="weights per pair of channels", ylim=(0, 60))
    several = len({round(runs[0].parameters, -3) for runs in groups.values()})
    counts = sorted(runs[0].parameters for runs in groups.values())
    about = f"{counts[0]:,} to {counts[-1]:,} parameters" if several > 1 else f"about {counts[0]:,} parameters each"
    right.set(title=f"{error_label(options)}, {about}", ylabel=f"{error_label(options)}, %")
    for axes in (left, right):
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.6, len(labels) - 0.4)
    figure.suptitle(f"{options.data}: error bars are 95% confidence intervals of the mean, dots are seeds", fontsize=9)
    write_figure(run.path("filters.png"), figure)


def draw_layers(results: Sequence[Result], options: Options, run: Run) -> None:
    """Write layers.png: learning curves of the training error, and both final errors over depth."""
    groups = by_backbone(results)
    figure, all_axes = new_figure(3, width=4.6)
    depths = sorted({split_name(name)[1] for name in groups})
    styles = dict(zip(depths, ("-", "--", ":", "-."), strict=False))
    for name, runs in groups.items():
        kind, depth = split_name(name)
        for number, one in enumerate(runs):
            epochs, train_errors, _ = zip(*one.curve, strict=True)
            all_axes[0].plot(
                epochs,
                [100 * error for error in train_errors],
                styles.get(depth, "-"),
                color=COLORS[kind],
                label=f"{LABELS[kind]}, {depth} layers" if number == 0 else None,
                linewidth=1.5,
            )
    all_axes[0].set(title="during training", xlabel="epoch", ylabel="training error, %", yscale="log")
    plain_ticks(all_axes[0].yaxis)
    measures: list[tuple[str, Callable[[Result], float]]] = [
        ("training error", lambda one: one.train_error),
        (error_label(options), lambda one: one.error),
    ]
    for axes, (label, measure) in zip(all_axes[1:], measures, strict=True):
        for kind, color in COLORS.items():
            rows = sorted((split_name(name)[1], runs) for name, runs in groups.items() if split_name(name)[0] == kind)
            if rows:
                values = [[100 * measure(one) for one in runs] for _, runs in rows]
                grid.plot_mean_interval(axes, [depth for depth, _ in rows], values, LABELS[kind], color)
        axes.set(title=f"final {label}", xlabel="layers", ylabel=f"{label}, %", ylim=(0, None))
        axes.set_xticks(depths)
    for axes in (all_axes[0], all_axes[2]):
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{options.data}: error bars are 95% confidence intervals of the mean, dots are seeds", fontsize=9)
    write_figure(run.path("layers.png"), figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: train both grids, then write tables, figures and results.json of the finished cells."""
    World.require_single_process(program_command("vision.depth"))
    options = read_options(argv, __doc__ or "")
    if wrong := [depth for depth in options.depths if depth % 6 != 2]:
        raise UserError(f"--depths cannot be {wrong[0]}: these networks have 6n + 2 layers, such as 20, 56 and 110.")
    images = grid.load_data(base_config(options, "adamw", train_images=options.train_images, seed=options.seeds[0]))
    filters = filter_cells(options, images) if options.part != "layers" else []
    layers = layer_cells(options) if options.part != "filters" else []
    console = table_console()
    with open_run(options, KIND) as run:
        done_filters = grid.train_cells(run, filters, curve_points=1)
        done_layers = grid.train_cells(run, layers, curve_points=20)
        if done_filters:
            console.print(filter_table(done_filters, options))
            draw_filters(done_filters, options, run)
        if done_layers:
            console.print(layer_table(done_layers, options))
            draw_layers(done_layers, options, run)
        grid.save_results(run, options, [*done_filters, *done_layers])
        run.close(
            grid.closing_message(
                run, len(done_filters) + len(done_layers), len(filters) + len(layers), program_command("vision.depth")
            )
        )


if __name__ == "__main__":
    run_main(main)
