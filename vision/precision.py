"""Precision: what fewer bits do to a trained classifier's error, size and speed.

    python -m vision.precision runs/classify-mnist-deep_cnn-fast-1
    python -m vision.precision runs/classify-mnist-deep_cnn-fast-1 --split test

float32, bfloat16 and float16 by PyTorch, with weights and activations in that type; float32 once more, and int8, by
ONNX Runtime, whose int8 covers convolutions as well as fully connected layers (vision/studies/int8.py). Each is scored
on the same images, one view each, and timed on the same batch of float32 numbers, conversions included; they take
turns and medians count. PyTorch's networks run in the faster of the two memory layouts.

The table goes to the terminal, picture and numbers to runs/<name>/precision-<split>.{png,json}, the network in 8 bits
to model-int8.onnx.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save as to_bytes
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, parse, run_main
from zerokara.core.data import ImageSet
from zerokara.core.machine import describe_machine, describe_versions
from zerokara.core.models import onnx_file
from zerokara.core.programs import program_command
from zerokara.core.report import output_folder, write_figure, write_json
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.studies import int8
from zerokara.vision.studies.finished_run import Trained, load_trained, single_run_folder
from zerokara.vision.studies.timing import median_seconds, median

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Network = Callable[[Tensor], Tensor]
"""From normalised images (B, C, H, W) to logits (B, K), both float32, both on the device."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and how."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Folder of the run."""
    split: Literal["validation", "test"] = "validation"
    """Images to score: those held out of the training set, or the test set."""
    batch_size: Annotated[int, Range(1)] = 100
    """Images in a timed batch."""
    rounds: Annotated[int, Range(1)] = 20
    """Turns of each, whose median counts."""
    int8: bool = True
    """Quantise to 8 bits with ONNX Runtime."""
    calibration: Annotated[int, Range(1)] = 1000
    """Training images on which the ranges of activations are found, the first ones."""
    out: str = ""
    """Folder for the files; empty: the run's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps; ONNX Runtime is on the CPU."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


@dataclass(frozen=True)
class Candidate:
    """A network in some precision."""

    precision: str
    by: str
    """What runs it."""
    layout: str
    """Of images in memory."""
    run: Network
    size_bytes: int
    """Of its weights as a file."""


@dataclass(frozen=True)
class Result:
    """What was found of a candidate."""

    precision: str
    by: str
    layout: str
    error: float
    agrees: float
    """Share of images for which it names the same class as float32 does."""
    size_bytes: int
    images_per_s: float
    """Of the median turn."""
    slowest: float
    quickest: float


def torch_candidates(trained: Trained) -> list[Candidate]:
    """PyTorch's, each in both memory layouts."""
    compute, found = trained.compute, []
    for precision, dtype in DTYPES.items():
        for channels_last in (False, True):
            layout = dataclasses.replace(compute, channels_last=channels_last)
            network = layout.module(copy.deepcopy(trained.classifier).to(dtype).eval())
            order = torch.channels_last if channels_last else torch.contiguous_format
            name = "channels_last" if channels_last else "contiguous"

            def run(
                x: Tensor, network: Network = network, dtype: torch.dtype = dtype, order: torch.memory_format = order
            ) -> Tensor:
                return network(x.to(dtype).contiguous(memory_format=order)).float()

            tensors = {key: Compute.to_host(t).to(t.dtype).contiguous() for key, t in network.state_dict().items()}
            found.append(Candidate(precision, "PyTorch", name, run, len(to_bytes(tensors))))
    return found


def onnx_candidates(trained: Trained, calibration: ImageSet, path: Path) -> tuple[list[Candidate], str]:
    """ONNX Runtime's float32 and int8, of which the latter is written to `path`; and what runs in 8 bits, in words."""
    network = Compute().module(copy.deepcopy(trained.classifier))
    x = normalised(trained, calibration, Compute())
    with tempfile.TemporaryDirectory() as folder:
        float32, quantised = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx_file.write(network, {int8.IMAGES: x[:2]}, int8.LOGITS, float32, {})
        int8.quantize(float32, x.split(100), quantised)
        found = []
        for precision, file in (("float32", float32), ("int8", quantised)):
            session = int8.open_session(file, trained.compute.threads)

            def run(x: Tensor, session: int8.Session = session) -> Tensor:
                return torch.from_numpy(session(Compute.to_host(x).numpy()))

            found.append(Candidate(precision, "ONNX Runtime", "contiguous", run, file.stat().st_size))
        content = quantised.read_bytes()
        counts = int8.count_operations(quantised)
    write_atomically(path, lambda file: file.write(content))
    kinds = {"convolutions": ("QLinearConv", "Conv"), "fully connected layers": ("QGemm", "Gemm")}
    words = [
        f"{counts[eight]} of {counts[eight] + counts[more]} {kind}"
        for kind, (eight, more) in kinds.items()
        if counts[eight] + counts[more]
    ]
    return found, f"in 8 bits: {', '.join(words)}"


def normalised(trained: Trained, images: ImageSet, compute: Compute) -> Tensor:
    """Images (N, C, H, W) float32 as the network takes them, on the device."""
    return trained.metadata.normalize(images.images.to(compute.torch_device).float() * (1 / 255))


def score(candidate: Candidate, trained: Trained, images: ImageSet) -> Scores:
    """Its probabilities on a set of images."""
    found = []
    with torch.no_grad():
        for start in range(0, len(images), trained.config.eval_batch_size):
            part = images.take(slice(start, start + trained.config.eval_batch_size))
            found.append(Compute.to_host(candidate.run(normalised(trained, part, trained.compute)).softmax(1)))
    return Scores(torch.cat(found), images.labels)


def compare(candidates: Sequence[Candidate], trained: Trained, images: ImageSet, options: Options) -> list[Result]:
    """Error, size and speed of each; of each precision's layouts only the faster one."""
    x = normalised(trained, images.take(slice(0, options.batch_size)), trained.compute)
    seconds = median_seconds(
        {place: lambda run=c.run: run(x) for place, c in enumerate(candidates)},  # type: ignore[misc]
        options.rounds,
        warmup_rounds=3,
        min_seconds=0.05,
    )
    best: dict[tuple[str, str], int] = {}
    for place, candidate in enumerate(candidates):
        key = candidate.precision, candidate.by
        if key not in best or median(seconds[place]) < median(seconds[best[key]]):
            best[key] = place
    reference: Tensor | None = None
    results = []
    for place in best.values():
        candidate, times = candidates[place], seconds[place]
        scores = score(candidate, trained, images)
        reference = scores.prediction_N if reference is None else reference
        results.append(
            Result(
                candidate.precision,
                candidate.by,
                candidate.layout,
                scores.error,
                float((scores.prediction_N == reference).double().mean()),
                candidate.size_bytes,
                len(x) / median(times),
                len(x) / max(times),
                len(x) / min(times),
            )
        )
    return results


def table(results: Sequence[Result]) -> Table:
    """A row for each."""
    first = results[0]
    caption = "points, agrees and times: against the first row"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("precision", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for column in ("error", "points", "agrees", "kB", "images/s", "times"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.precision,
            result.by,
            f"{result.error:.2%}",
            f"{100 * (result.error - first.error):+.2f}",
            f"{result.agrees:.2%}",
            f"{result.size_bytes / 1000:,.0f}",
            f"{result.images_per_s:,.0f}",
            f"{result.images_per_s / first.images_per_s:.2f}",
        )
    return table


def draw(results: Sequence[Result], title: str) -> Figure:
    """Error, size and speed as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.3 + 0.48 * len(results)), layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    names = [f"{result.precision}\n{result.by}" for result in results]
    panels = (
        ("error, %", [100 * result.error for result in results], "{:.2f}", "#c24b6e"),
        ("size on disk, kB", [result.size_bytes / 1000 for result in results], "{:,.0f}", "#8e63b5"),
        ("images/s", [result.images_per_s for result in results], "{:,.0f}", "#3b6fb6"),
    )
    for axes, (label, values, form, colour) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        bars = axes.barh(range(len(values)), values, 0.6, color=colour)
        axes.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=8)
        axes.set_xlabel(label, fontsize=9)
        axes.margins(x=0.22)
        axes.set_xlim(left=0)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(range(len(names)), names)
    figure.axes[0].invert_yaxis()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, draw, and say where the files are."""
    options = parse(Options, {}, argv, __doc__ or "")
    folder = single_run_folder(options.runs, program_command("vision.precision"))
    if options.int8:
        onnx_file.check_packages("int8", "--no-int8")
    trained = load_trained(folder, device=options.device, threads=options.threads)
    images = trained.images(options.split)
    out = output_folder(options.out, trained.folder)
    candidates, remarks, written = torch_candidates(trained), [], []
    console = Console()
    with Console(stderr=True).status(f"{trained.name}: comparing precisions"):
        if options.int8:
            path = out / "model-int8.onnx"
            calibration = trained.images("train").take(slice(0, options.calibration))
            found, remark = onnx_candidates(trained, calibration, path)
            candidates += found
            remarks.append(remark)
            written.append(path)
        results = compare(candidates, trained, images, options)
    layouts = [f"{result.precision} {result.layout}" for result in results if result.by == "PyTorch"]
    remarks.append(f"PyTorch on {trained.compute.device}: {', '.join(layouts)}")
    content = {
        "run": trained.name,
        "options": dataclasses.asdict(options),
        "images": len(images),
        "threads": trained.compute.threads,
        "results": [dataclasses.asdict(result) for result in results],
        "remarks": remarks,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    title = f"{trained.name}: {len(images):,} {options.split} images, batches of {min(options.batch_size, len(images))}"
    written.append(write_json(out / f"precision-{options.split}.json", content))
    written.append(write_figure(out / f"precision-{options.split}.png", draw(results, title)))
    console.print(title, highlight=False)
    console.print(table(results))
    for line in remarks:
        console.print(line, highlight=False)
    for path in written:
        print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
