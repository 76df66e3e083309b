"""Measure the time of each layer in the forward pass of a network.

    python -m vision.layer_times --backbone alexnet
    python -m vision.layer_times --backbone resnet50 --batch-size 4
    python -m vision.layer_times --backbone deep_cnn --image-size 28 --channels 1 --classes 10 --batch-size 100

Jia 2014, "Learning Semantic Image Representations at a Large Scale" (the thesis on Caffe), reports the time of AlexNet
by layer: convolutions and fully connected layers together take 95% of it on a GPU and 89% on a CPU. Here every layer is
timed on the input that it had in a forward pass; measurements are interleaved, and the median is reported. In bfloat16
each layer is also compiled, if there is a compiler. Then the whole network is timed in float32 and bfloat16, with and
without channels_last, and compiled. The weights are random, because the time does not depend on them.

The tables are printed. Figure and numbers are written to runs/layer-times/<backbone>-<device>.{png,json}.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Range, UserError, error_summary, run_main
from zerokara.core.machine import describe_machine, describe_versions

MAX_BARS = 28  # only the slowest layers are plotted


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.layer_times."""

    backbone: str = "alexnet"
    """Name of the backbone in core.backbones, with the classification head of its paper."""
    image_size: Annotated[int, Range(8, 1024)] = 224
    """Height and width of the images, in pixels."""
    channels: Annotated[int, Range(1, 16)] = 3
    """Channels of the images."""
    classes: Annotated[int, Range(2)] = 1000
    """Number of classes."""
    batch_size: Annotated[int, Range(1)] = 16
    """Batch size."""
    rounds: Annotated[int, Range(1)] = 15
    """Number of measurements of each layer; the median is reported."""
    compiled: bool = True
    """Also time the compiled network and each compiled layer. Compilation takes seconds for each layer."""
    out: str = ""
    """Output folder; empty: runs/layer-times."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.models.classifier import Classifier, make_classifier
from zerokara.core.report import output_folder, table_console, write_figure, write_json
from zerokara.vision.studies.timing import (
    CONNECTED,
    CONVOLUTION,
    OTHER,
    Call,
    TimeFractions,
    median,
    median_seconds,
    record_calls,
    time_fractions,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    CONVOLUTION: "#3b6fb6",
    CONNECTED: "#d9822b",
    "ReLU": "#6aa84f",
    "pooling": "#8e63b5",
    "normalization": "#c24b6e",
    "dropout": "#9a9a9a",
    OTHER: "#9a9a9a",
}


@dataclass(frozen=True)
class Layer:
    """Times of a layer in seconds: in float32, in bfloat16 with channels_last, and the latter compiled.

    `compiled` is None if the layers could not be compiled.
    """

    name: str
    kind: str
    float32: float
    bfloat16: float
    compiled: float | None = None


def candidates(base: Compute, compiled: bool) -> dict[str, Compute]:
    """Return the hardware settings with which the whole network is timed, by name.

    Args:
        base: device and threads.
        compiled: include compiled networks.

    Raises:
        UserError: `compiled` is set, but there is no compiler.
    """
    settings = {
        "float32": base,
        "float32 channels_last": dataclasses.replace(base, channels_last=True),
        "bfloat16": dataclasses.replace(base, precision="bfloat16"),
        "bfloat16 channels_last": dataclasses.replace(base, precision="bfloat16", channels_last=True),
    }
    if compiled:
        Compute.choose(  # raises an error if nothing can be compiled
            device=base.device, precision="float32", compile="on", threads=base.threads, train_step=None
        )
        settings |= {
            f"{name} compiled": dataclasses.replace(settings[name], compile=True)
            for name in ("float32", "bfloat16 channels_last")
        }
    return settings


def convert(classifier: Classifier, compute: Compute) -> Classifier:
    """Return a copy of the classifier in the dtype and memory layout of `compute`. Weights are converted once."""
    return compute.module(copy.deepcopy(classifier).to(compute.dtype).eval())


def time_layers(
    classifier: Classifier, x: Tensor, base: Compute, rounds: int, compiled: bool = False
) -> tuple[list[Layer], list[str]]:
    """Time every layer in float32, in bfloat16 with channels_last, and the latter compiled.

    If the compiler fails on a layer, no compiled times are returned, and a remark has the reason.
    """
    half = dataclasses.replace(base, precision="bfloat16", channels_last=True)
    seconds: list[list[float]] = []
    names: list[tuple[str, str]] = []
    remarks: list[str] = []
    for compute, compile_layers in ((base, False), (half, False), *([(half, True)] if compiled else [])):
        calls = record_calls(convert(classifier, compute), compute.layout(x))
        names = [(call.name, call.kind) for call in calls]
        work = {index: call.run for index, call in enumerate(calls)}
        if compile_layers:
            work, remarks = compile_each(calls)
            if remarks:
                continue
        # Layers take microseconds on a GPU. They are repeated until the resolution of the timer does not matter.
        min_seconds = 1e-3 if compute.torch_device.type != "cpu" else 0.0
        measured = median_seconds(work, rounds, warmup_rounds=3, min_seconds=min_seconds)
        seconds.append([median(measured[index]) for index in range(len(calls))])
    return [Layer(*name, *times) for name, times in zip(names, zip(*seconds, strict=True), strict=True)], remarks


def compile_each(calls: Sequence[Call]) -> tuple[dict[int, Callable[[], object]], list[str]]:
    """Compile each layer on its own. Return them by index, or a remark if the compiler fails on one.

    All these functions share one code object. The compiler keeps only a few versions of a code object and then falls
    back to eager mode without a warning, so each function gets a code object of its own.
    """
    work: dict[int, Callable[[], object]] = {}
    for index, call in enumerate(calls):
        run = call.run
        if isinstance(run, FunctionType):
            code = run.__code__.replace(co_name=f"layer_{index}")
            run = FunctionType(code, run.__globals__, code.co_name, run.__defaults__, run.__closure__)
        work[index] = run = torch.compile(run, dynamic=False)
        try:
            with torch.no_grad():
                run()
        except RuntimeError as error:  # base class of the compiler's errors
            return {}, [f"compilation of {call.name} failed: {error_summary(error)}"]
    return work, []


def time_whole(
    classifier: Classifier, x: Tensor, computes: dict[str, Compute], rounds: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the median, minimum and maximum seconds of a pass for each setting, and remarks on failed ones."""
    work: dict[str, Callable[[], object]] = {}
    remarks = []
    for name, compute in computes.items():
        network, images = convert(classifier, compute), compute.layout(x)
        run = compute.function(network)
        try:
            with torch.no_grad():
                run(images)
        except Exception as error:
            if not compute.compile:
                raise
            # If the compiler fails, the other settings can still be timed.
            remarks.append(f"{name} failed: {error_summary(error)}")
            continue
        work[name] = lambda run=run, images=images: run(images)  # type: ignore[misc]
    measured = median_seconds(work, rounds, warmup_rounds=3)
    return {
        name: {"median": median(times), "least": min(times), "most": max(times)} for name, times in measured.items()
    }, remarks


# ---- tables and figure


def times_by_setting(layers: Sequence[Layer]) -> dict[str, list[float]]:
    """Return the seconds of every layer for each setting; compiled only if all layers could be compiled."""
    compiled = [layer.compiled for layer in layers if layer.compiled is not None]
    times = {"float32": [layer.float32 for layer in layers], "bfloat16": [layer.bfloat16 for layer in layers]}
    return times | {"bfloat16 compiled": compiled} if compiled else times


def layer_table(layers: Sequence[Layer]) -> Table:
    """Return a table with a row for each layer that takes at least 0.1% of the time."""
    columns = times_by_setting(layers)
    totals = {name: sum(times) for name, times in columns.items()}
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("layer", "kind"):
        table.add_column(column)
    for name in columns:
        table.add_column(f"{name} ms", justify="right")
        table.add_column("fraction", justify="right")
    for index, layer in enumerate(layers):
        times = {name: seconds[index] for name, seconds in columns.items()}
        if max(times[name] / totals[name] for name in columns) >= 1e-3:
            cells = [(f"{1e3 * times[name]:.3f}", f"{times[name] / totals[name]:.1%}") for name in columns]
            table.add_row(layer.name, layer.kind, *(cell for pair in cells for cell in pair))
    table.add_section()
    table.add_row("sum", "", *(cell for name in columns for cell in (f"{1e3 * totals[name]:.3f}", "")))
    return table


def fraction_table(by_precision: dict[str, TimeFractions]) -> Table:
    """Return a table with the fractions of the time by kind of layer."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("fraction of the time")
    for name in by_precision:
        table.add_column(name, justify="right")
    rows = {
        "convolutions and fully connected layers, of all layers": "both",
        "convolutions, of all layers": "convolution",
        "fully connected layers, of all layers": "connected",
        "convolutions, of all layers that are not fully connected": "convolution_without_connected",
    }
    for title, field in rows.items():
        table.add_row(title, *(f"{getattr(fractions, field):.1%}" for fractions in by_precision.values()))
    return table


def whole_table(whole: dict[str, dict[str, float]], batch_size: int) -> Table:
    """Return a table with a row for each setting of the whole network."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("whole network")
    for column in ("median ms", "min", "max", "images/s", "speed-up"):
        table.add_column(column, justify="right")
    for name, times in whole.items():
        table.add_row(
            name,
            *(f"{1e3 * times[key]:.2f}" for key in ("median", "least", "most")),
            f"{batch_size / times['median']:,.0f}",
            f"{whole['float32']['median'] / times['median']:.2f}",
        )
    return table


def draw(layers: Sequence[Layer], whole: dict[str, dict[str, float]], title: str) -> Figure:
    """Plot bars for each layer in float32 and bfloat16, and bars for the whole network."""
    from matplotlib.figure import Figure

    slowest = sorted(layers, key=lambda layer: -max(layer.float32, layer.bfloat16))[:MAX_BARS]
    shown = [layer for layer in layers if layer in slowest and layer.kind != "dropout"]
    figure = Figure(figsize=(11, 1.6 + 0.21 * max(len(shown), 14)), layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_layers(left, shown, len(layers) - len(shown), sum(layer.float32 for layer in layers))
    draw_whole(right, whole)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.invert_yaxis()
    return figure


def draw_layers(axes: Axes, layers: Sequence[Layer], omitted: int, total: float) -> None:
    """Plot a bar for each layer and setting, colored by kind of layer."""
    from matplotlib.patches import Patch

    positions = range(len(layers))
    colors = [COLORS[layer.kind] for layer in layers]
    columns = times_by_setting(layers)
    height = 0.8 / len(columns)
    first = -0.4 + height / 2
    for number, (times, alpha) in enumerate(zip(columns.values(), (1.0, 0.55, 0.25), strict=False)):
        milliseconds = [1e3 * time for time in times]
        axes.barh([y + first + number * height for y in positions], milliseconds, height, color=colors, alpha=alpha)
    for y, layer in zip(positions, layers, strict=True):
        if layer.float32 / total >= 0.01:
            axes.annotate(
                f"{layer.float32 / total:.0%}",
                (1e3 * layer.float32, y + first),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(list(positions), [layer.name for layer in layers], fontsize=8)
    compiled_label = ", palest: the same, each layer compiled" if len(columns) > 2 else ""
    axes.set_xlabel(
        "ms; dark: float32 with its fraction of the time, pale: bfloat16 channels_last" + compiled_label, fontsize=8
    )
    axes.set_title("by layer" + (f", without the {omitted} fastest" if omitted else ""), fontsize=9, loc="left")
    kinds = dict.fromkeys(layer.kind for layer in layers)
    axes.legend(handles=[Patch(color=COLORS[kind], label=kind) for kind in kinds], fontsize=8, frameon=False)


def draw_whole(axes: Axes, whole: dict[str, dict[str, float]]) -> None:
    """Plot a bar for each setting of the network, with error bars from the fastest to the slowest pass."""
    positions = list(range(len(whole)))
    medians = [1e3 * times["median"] for times in whole.values()]
    below = [1e3 * (times["median"] - times["least"]) for times in whole.values()]
    above = [1e3 * (times["most"] - times["median"]) for times in whole.values()]
    axes.barh(positions, medians, 0.55, color="#54606e", xerr=[below, above], error_kw={"lw": 0.8, "ecolor": "0.55"})
    for y, name in enumerate(whole):
        ratio = whole["float32"]["median"] / whole[name]["median"]
        label = f"{medians[y]:.3g} ms" + ("" if name == "float32" else f", {ratio:.2f}x speed-up")
        axes.text(0.02, y + 0.42, label, transform=axes.get_yaxis_transform(), fontsize=7, va="center")
    axes.set_yticks(positions, [name.replace(" ", "\n") for name in whole], fontsize=8)
    axes.set_xlabel("ms, median; error bars: minimum to maximum", fontsize=8)
    axes.set_title("whole network", fontsize=9, loc="left")
    axes.margins(y=0.08)


# ---- program


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: time layers and network, print the tables, write the files and print their paths."""
    options = parse(Options, {}, argv, __doc__ or "")
    base = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    console, remarks = table_console(), []
    try:
        computes = candidates(base, options.compiled)
    except UserError as error:
        remarks.append(f"not compiled: {error}")
        computes = candidates(base, compiled=False)
    torch.manual_seed(0)
    classifier = make_classifier(options.backbone, options.channels, options.image_size, options.classes)
    x = torch.randn(options.batch_size, options.channels, options.image_size, options.image_size)
    x = x.to(base.torch_device)
    folder = output_folder(options.out, Path("runs") / "layer-times")
    with Console(stderr=True).status(f"timing {options.backbone} on {base.device}"):
        compiled = any(compute.compile for compute in computes.values())
        layers, failed_layers = time_layers(classifier, x, base, options.rounds, compiled)
        remarks += failed_layers
        whole, failures = time_whole(classifier, x, computes, options.rounds)
    by_precision = {
        name: time_fractions([(layer.kind, time) for layer, time in zip(layers, times, strict=True)])
        for name, times in times_by_setting(layers).items()
    }
    machine = describe_machine()
    content: dict[str, Any] = {
        "options": dataclasses.asdict(options),
        "device": base.device,
        "threads": base.threads,
        "layers": [dataclasses.asdict(layer) for layer in layers],
        "shares": {name: dataclasses.asdict(fractions) for name, fractions in by_precision.items()},
        "whole": whole,
        "remarks": remarks + failures,
        "machine": machine,
        "versions": describe_versions(),
    }
    hardware = (
        machine["gpus"][base.torch_device.index or 0]
        if base.torch_device.type == "cuda"
        else f"CPU, threads: {base.threads}"
    )
    title = f"{options.backbone}, {options.batch_size} images of {options.image_size}x{options.image_size}, {hardware}"
    stem = f"{options.backbone}-{base.torch_device.type}"
    written = [
        write_json(folder / f"{stem}.json", content),
        write_figure(folder / f"{stem}.png", draw(layers, whole, title)),
    ]
    console.print(title, highlight=False)
    for table in (layer_table(layers), fraction_table(by_precision), whole_table(whole, options.batch_size)):
        console.print(table)
    fraction = sum(layer.float32 for layer in layers) / whole["float32"]["median"]
    console.print(f"float32: the sum of the layers is {fraction:.0%} of the time of the whole pass", highlight=False)
    for line in remarks + failures:
        console.print(line, highlight=False)
    for path in written:
        print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
