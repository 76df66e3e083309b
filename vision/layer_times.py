"""Layer times: where a network's forward pass spends its time.

    python -m vision.layer_times --backbone alexnet
    python -m vision.layer_times --backbone resnet50 --batch-size 4
    python -m vision.layer_times --backbone deep_cnn --image-size 28 --channels 1 --classes 10 --batch-size 100

Jia 2014, "Learning Semantic Image Representations at a Large Scale" (the thesis behind Caffe), shows AlexNet's time by
layer, and that convolutions and fully connected layers take 95% of it on a GPU and 89% on a CPU: both together. Here
every layer is timed by itself, on the input that it had in a real pass; layers take turns, medians count; where there
is a compiler, in bfloat16 also compiled. Then the whole network, as it is and in bfloat16, channels_last, compiled.
Weights are random: time does not depend on them.

The table goes to the terminal, picture and numbers to runs/layer-times/<backbone>-<device>.{png,json}.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zerokara.core.compute import Compute
from zerokara.core.config import Range, UserError, error_summary, parse, run_main
from zerokara.core.machine import describe_machine, describe_versions
from zerokara.core.models.classifier import Classifier, make_classifier
from zerokara.core.report import output_folder, write_figure, write_json
from zerokara.vision.studies.timing import (
    CONNECTED,
    CONVOLUTION,
    OTHER,
    Call,
    TimeFractions,
    record_calls,
    median_seconds,
    median,
    time_fractions,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    CONVOLUTION: "#3b6fb6",
    CONNECTED: "#d9822b",
    "ReLU": "#6aa84f",
    "pooling": "#8e63b5",
    "normalisation": "#c24b6e",
    "dropout": "#9a9a9a",
    OTHER: "#9a9a9a",
}
MOST_BARS = 28  # with more layers only the longest are drawn


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to time, and how."""

    backbone: str = "alexnet"
    """The network, by its name in core.backbones, with its paper's own classifier."""
    image_size: Annotated[int, Range(8, 1024)] = 224
    """Height and width of the images, in pixels."""
    channels: Annotated[int, Range(1, 16)] = 3
    """Channels of the images."""
    classes: Annotated[int, Range(2)] = 1000
    """Classes to tell apart."""
    batch_size: Annotated[int, Range(1)] = 16
    """Images in a pass."""
    rounds: Annotated[int, Range(1)] = 15
    """Turns of each layer, whose median counts."""
    compiled: bool = True
    """Time the compiled network too, and each layer compiled by itself; compilation takes seconds for every layer."""
    out: str = ""
    """Folder for the files; empty: runs/layer-times."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


@dataclass(frozen=True)
class Layer:
    """A layer's time in seconds: in float32, in bfloat16 with channels_last, and that compiled by itself.

    `compiled` is None where nothing could be compiled.
    """

    name: str
    kind: str
    float32: float
    bfloat16: float
    compiled: float | None = None


def candidates(base: Compute, compiled: bool) -> dict[str, Compute]:
    """How the whole network is run, by name.

    Raises:
        UserError: `compiled`, and there is no compiler.
    """
    found = {
        "float32": base,
        "float32 channels_last": dataclasses.replace(base, channels_last=True),
        "bfloat16": dataclasses.replace(base, precision="bfloat16"),
        "bfloat16 channels_last": dataclasses.replace(base, precision="bfloat16", channels_last=True),
    }
    if compiled:
        Compute.choose(  # says so where nothing can be compiled
            device=base.device, precision="float32", compile="on", threads=base.threads, train_step=None
        )
        found |= {
            f"{name} compiled": dataclasses.replace(found[name], compile=True)
            for name in ("float32", "bfloat16 channels_last")
        }
    return found


def prepared(classifier: Classifier, compute: Compute) -> Classifier:
    """A copy in the candidate's type and layout. Weights are converted once, as one would before serving."""
    return compute.module(copy.deepcopy(classifier).to(compute.dtype).eval())


def time_layers(
    classifier: Classifier, x: Tensor, base: Compute, rounds: int, compiled: bool = False
) -> tuple[list[Layer], list[str]]:
    """Every layer in float32 as it is, in bfloat16 with channels_last, and the latter compiled, each by itself.

    Where the compiler fails on a layer, no layer's compiled time is given, and a remark says why.
    """
    half = dataclasses.replace(base, precision="bfloat16", channels_last=True)
    seconds: list[list[float]] = []
    names: list[tuple[str, str]] = []
    remarks: list[str] = []
    for compute, compile_it in ((base, False), (half, False), *([(half, True)] if compiled else [])):
        calls = record_calls(prepared(classifier, compute), compute.layout(x))
        names = [(call.name, call.kind) for call in calls]
        work = {place: call.run for place, call in enumerate(calls)}
        if compile_it:
            work, remarks = compile_each(calls)
            if remarks:
                continue
        # A GPU's layers take microseconds; repeated, they are longer than the clock is rough.
        repeat = 1e-3 if compute.torch_device.type != "cpu" else 0.0
        found = median_seconds(work, rounds, warmup_rounds=3, min_seconds=repeat)
        seconds.append([median(found[place]) for place in range(len(calls))])
    return [Layer(*name, *times) for name, times in zip(names, zip(*seconds, strict=True), strict=True)], remarks


def compile_each(calls: Sequence[Call]) -> tuple[dict[int, Callable[[], object]], list[str]]:
    """Each layer compiled by itself, by place; or a remark where the compiler fails on one.

    All these functions have one code object, of which the compiler would keep few versions and then give up in silence:
    each gets one of its own.
    """
    work: dict[int, Callable[[], object]] = {}
    for place, call in enumerate(calls):
        run = call.run
        if isinstance(run, FunctionType):
            code = run.__code__.replace(co_name=f"layer_{place}")
            run = FunctionType(code, run.__globals__, code.co_name, run.__defaults__, run.__closure__)
        work[place] = run = torch.compile(run, dynamic=False)
        try:
            with torch.no_grad():
                run()
        except RuntimeError as error:  # which the compiler's own are
            return {}, [f"{call.name} compiled failed: {error_summary(error)}"]
    return work, []


def time_whole(
    classifier: Classifier, x: Tensor, computes: dict[str, Compute], rounds: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Median, least and largest seconds of a pass by candidate; and a remark where one could not be run."""
    work: dict[str, Callable[[], object]] = {}
    remarks = []
    for name, compute in computes.items():
        network, images = prepared(classifier, compute), compute.layout(x)
        run = compute.function(network)
        try:
            with torch.no_grad():
                run(images)
        except Exception as error:
            if not compute.compile:
                raise
            # Whatever the compiler stumbles over, the rest can be timed without it.
            remarks.append(f"{name} failed: {error_summary(error)}")
            continue
        work[name] = lambda run=run, images=images: run(images)  # type: ignore[misc]
    found = median_seconds(work, rounds, warmup_rounds=3)
    return {
        name: {"median": median(times), "least": min(times), "most": max(times)} for name, times in found.items()
    }, remarks


# ---- table and picture


def times_of(layers: Sequence[Layer]) -> dict[str, list[float]]:
    """Seconds of every layer by the way in which they were run; compiled only where all could be."""
    compiled = [layer.compiled for layer in layers if layer.compiled is not None]
    found = {"float32": [layer.float32 for layer in layers], "bfloat16": [layer.bfloat16 for layer in layers]}
    return found | {"bfloat16 compiled": compiled} if compiled else found


def layer_table(layers: Sequence[Layer]) -> Table:
    """A row for each layer that takes at least a thousandth of the time."""
    columns = times_of(layers)
    totals = {name: sum(times) for name, times in columns.items()}
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("layer", "kind"):
        table.add_column(column)
    for name in columns:
        table.add_column(f"{name} ms", justify="right")
        table.add_column("share", justify="right")
    for place, layer in enumerate(layers):
        times = {name: seconds[place] for name, seconds in columns.items()}
        if max(times[name] / totals[name] for name in columns) >= 1e-3:
            cells = [(f"{1e3 * times[name]:.3f}", f"{times[name] / totals[name]:.1%}") for name in columns]
            table.add_row(layer.name, layer.kind, *(cell for pair in cells for cell in pair))
    table.add_section()
    table.add_row("all", "", *(cell for name in columns for cell in (f"{1e3 * totals[name]:.3f}", "")))
    return table


def share_table(by_precision: dict[str, TimeFractions]) -> Table:
    """The splits: what is counted, and of what."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("share of the time")
    for name in by_precision:
        table.add_column(name, justify="right")
    rows = {
        "convolutions and fully connected layers, of all": "both",
        "convolutions, of all": "convolution",
        "fully connected layers, of all": "connected",
        "convolutions, of all but the fully connected": "convolution_without_connected",
    }
    for title, field in rows.items():
        table.add_row(title, *(f"{getattr(found, field):.1%}" for found in by_precision.values()))
    return table


def whole_table(whole: dict[str, dict[str, float]], batch_size: int) -> Table:
    """A row for each way to run the whole network."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("whole network")
    for column in ("median ms", "from", "to", "images/s", "times float32"):
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
    """Bars by layer, in float32 and bfloat16, and bars for the whole network."""
    from matplotlib.figure import Figure

    longest = sorted(layers, key=lambda layer: -max(layer.float32, layer.bfloat16))[:MOST_BARS]
    shown = [layer for layer in layers if layer in longest and layer.kind != "dropout"]
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
    """A bar for each layer and each way to run it, coloured by kind."""
    from matplotlib.patches import Patch

    place = range(len(layers))
    colours = [COLOURS[layer.kind] for layer in layers]
    columns = times_of(layers)
    height = 0.8 / len(columns)
    first = -0.4 + height / 2
    for number, (times, alpha) in enumerate(zip(columns.values(), (1.0, 0.55, 0.25), strict=False)):
        milliseconds = [1e3 * time for time in times]
        axes.barh([y + first + number * height for y in place], milliseconds, height, color=colours, alpha=alpha)
    for y, layer in zip(place, layers, strict=True):
        if layer.float32 / total >= 0.01:
            axes.annotate(
                f"{layer.float32 / total:.0%}",
                (1e3 * layer.float32, y + first),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(list(place), [layer.name for layer in layers], fontsize=8)
    last = ", palest: that compiled layer by layer" if len(columns) > 2 else ""
    axes.set_xlabel("ms; dark: float32 with its share, pale: bfloat16 channels_last" + last, fontsize=8)
    axes.set_title("by layer" + (f", without {omitted} short ones" if omitted else ""), fontsize=9, loc="left")
    kinds = dict.fromkeys(layer.kind for layer in layers)
    axes.legend(handles=[Patch(color=COLOURS[kind], label=kind) for kind in kinds], fontsize=8, frameon=False)


def draw_whole(axes: Axes, whole: dict[str, dict[str, float]]) -> None:
    """A bar for each way to run the network; the thin line reaches from the quickest to the slowest pass."""
    place = list(range(len(whole)))
    medians = [1e3 * times["median"] for times in whole.values()]
    below = [1e3 * (times["median"] - times["least"]) for times in whole.values()]
    above = [1e3 * (times["most"] - times["median"]) for times in whole.values()]
    axes.barh(place, medians, 0.55, color="#54606e", xerr=[below, above], error_kw={"lw": 0.8, "ecolor": "0.55"})
    for y, name in enumerate(whole):
        ratio = whole["float32"]["median"] / whole[name]["median"]
        told = f"{medians[y]:.3g} ms" + ("" if name == "float32" else f", {ratio:.2f} times as fast")
        axes.text(0.02, y + 0.42, told, transform=axes.get_yaxis_transform(), fontsize=7, va="center")
    axes.set_yticks(place, [name.replace(" ", "\n") for name in whole], fontsize=8)
    axes.set_xlabel("ms, median; line: least to most", fontsize=8)
    axes.set_title("whole network", fontsize=9, loc="left")
    axes.margins(y=0.08)


# ---- the program


def main(argv: Sequence[str] | None = None) -> None:
    """Time the layers, then the whole; tables, picture, and where the files are."""
    options = parse(Options, {}, argv, __doc__ or "")
    base = Compute.choose(
        device=options.device, precision="float32", compile="off", threads=options.threads, train_step=None
    )
    console, remarks = Console(width=None if sys.stdout.isatty() else 160), []
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
        for name, times in times_of(layers).items()
    }
    machine = describe_machine()
    content: dict[str, Any] = {
        "options": dataclasses.asdict(options),
        "device": base.device,
        "threads": base.threads,
        "layers": [dataclasses.asdict(layer) for layer in layers],
        "shares": {name: dataclasses.asdict(found) for name, found in by_precision.items()},
        "whole": whole,
        "remarks": remarks + failures,
        "machine": machine,
        "versions": describe_versions(),
    }
    on = (
        machine["gpus"][base.torch_device.index or 0]
        if base.torch_device.type == "cuda"
        else f"CPU, threads: {base.threads}"
    )
    title = f"{options.backbone}, {options.batch_size} images of {options.image_size}x{options.image_size}, {on}"
    stem = f"{options.backbone}-{base.torch_device.type}"
    written = [
        write_json(folder / f"{stem}.json", content),
        write_figure(folder / f"{stem}.png", draw(layers, whole, title)),
    ]
    console.print(title, highlight=False)
    for table in (layer_table(layers), share_table(by_precision), whole_table(whole, options.batch_size)):
        console.print(table)
    told = sum(layer.float32 for layer in layers) / whole["float32"]["median"]
    console.print(f"float32: the layers, each by itself, take {told:.0%} of the whole pass's time", highlight=False)
    for line in remarks + failures:
        console.print(line, highlight=False)
    for path in written:
        print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
