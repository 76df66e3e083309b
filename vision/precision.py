"""Compare error, size and speed of a trained classifier in float32, bfloat16, float16 and int8.

    python -m vision.precision runs/classify-mnist-deep_cnn-fast-1
    python -m vision.precision runs/classify-mnist-deep_cnn-fast-1 --split test

PyTorch runs float32, bfloat16 and float16, with weights and activations in that type. ONNX Runtime runs float32 and
int8, which covers convolutions and fully connected layers (vision/studies/int8.py). All are evaluated on the same
images (one view each) and timed on the same float32 batch, including type conversions. Measurements are interleaved,
and the median is reported. PyTorch uses the faster of its two memory layouts.

The table is printed. Figure and numbers are written to runs/<name>/precision-<split>.{png,json}, the int8 network to
model-int8.onnx.

Shapes: N images, B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from zerokara.core.command_line import Requirement, check_command_line, parse
from zerokara.core.config import Positional, Range, run_main
from zerokara.core.machine import describe_machine, describe_versions
from zerokara.core.programs import program_command


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.precision."""

    REQUIRES: ClassVar[Mapping[str, Requirement]] = {"calibration": (lambda options: options.int8, "--int8")}

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Run folder."""
    split: Literal["validation", "test"] = "validation"
    """Images to evaluate: the validation images, or the test set."""
    batch_size: Annotated[int, Range(1)] = 100
    """Images in a timed batch."""
    rounds: Annotated[int, Range(1)] = 20
    """Number of measurements of each candidate; the median is reported."""
    int8: bool = True
    """Quantize to 8 bits with ONNX Runtime."""
    calibration: Annotated[int, Range(1)] = 1000
    """Number of training images on which the ranges of activations are measured (the first ones)."""
    out: str = ""
    """Output folder; empty: the run folder."""
    device: str = "auto"
    """Device of PyTorch: auto, cpu, cuda, cuda:<n> or mps. ONNX Runtime runs on the CPU."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save as to_bytes
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.models import onnx_file
from zerokara.core.report import output_folder, table_console, write_figure, write_json
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.studies import int8
from zerokara.vision.studies.finished_run import Trained, load_trained, single_run_folder
from zerokara.vision.studies.timing import median, median_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Network = Callable[[Tensor], Tensor]
"""Function from normalized images (B, C, H, W) to logits (B, K), both float32 on the device."""


@dataclass(frozen=True)
class Candidate:
    """Network in one precision and memory layout."""

    precision: str
    by: str
    """Library that runs it."""
    layout: str
    """Memory layout of images."""
    run: Network
    size_bytes: int
    """Size of its weights as a file."""


@dataclass(frozen=True)
class Result:
    """Measurements of a candidate."""

    precision: str
    by: str
    layout: str
    error: float
    agrees: float
    """Fraction of images with the same predicted class as in float32."""
    size_bytes: int
    images_per_s: float
    """Speed of the median measurement."""
    slowest: float
    quickest: float


def torch_candidates(trained: Trained) -> list[Candidate]:
    """Return the candidates of PyTorch, each in both memory layouts."""
    compute, candidates = trained.compute, []
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
            candidates.append(Candidate(precision, "PyTorch", name, run, len(to_bytes(tensors))))
    return candidates


def onnx_candidates(trained: Trained, calibration: ImageSet, path: Path) -> tuple[list[Candidate], str]:
    """Return the candidates of ONNX Runtime, float32 and int8, and a message about the layers that run in int8.

    Args:
        trained: the classifier.
        calibration: training images for the ranges of activations.
        path: file to which the int8 network is written.
    """
    network = Compute().module(copy.deepcopy(trained.classifier))
    x = trained.metadata.normalize_uint8(calibration.images)
    with tempfile.TemporaryDirectory() as folder:
        float32, quantized = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx_file.write(network, {int8.IMAGES: x[:2]}, int8.LOGITS, float32, {})
        int8.quantize(float32, x.split(100), quantized)
        candidates = []
        for precision, file in (("float32", float32), ("int8", quantized)):
            session = int8.open_session(file, trained.compute.threads)

            def run(x: Tensor, session: int8.Session = session) -> Tensor:
                return torch.from_numpy(session(Compute.to_host(x).numpy()))

            candidates.append(Candidate(precision, "ONNX Runtime", "contiguous", run, file.stat().st_size))
        content = quantized.read_bytes()
        counts = int8.count_operations(quantized)
    write_atomically(path, lambda file: file.write(content))
    kinds = {"convolutions": ("QLinearConv", "Conv"), "fully connected layers": ("QGemm", "Gemm")}
    parts = [
        f"{counts[in_int8]} of {counts[in_int8] + counts[in_float]} {kind}"
        for kind, (in_int8, in_float) in kinds.items()
        if counts[in_int8] + counts[in_float]
    ]
    return candidates, f"in int8: {', '.join(parts)}"


def score(candidate: Candidate, trained: Trained, images: ImageSet) -> Scores:
    """Evaluate a candidate on images."""
    batches = []
    with torch.no_grad():
        for start in range(0, len(images), trained.config.eval_batch_size):
            part = images.take(slice(start, start + trained.config.eval_batch_size))
            x = trained.metadata.normalize_uint8(part.images.to(trained.compute.torch_device))
            batches.append(Compute.to_host(candidate.run(x).softmax(1)))
    return Scores(torch.cat(batches), images.labels)


def compare(candidates: Sequence[Candidate], trained: Trained, images: ImageSet, options: Options) -> list[Result]:
    """Measure error, size and speed of the candidates. Only the faster memory layout of each precision is returned."""
    x = trained.metadata.normalize_uint8(images.images[: options.batch_size].to(trained.compute.torch_device))
    seconds = median_seconds(
        {index: lambda run=c.run: run(x) for index, c in enumerate(candidates)},  # type: ignore[misc]
        options.rounds,
        warmup_rounds=3,
        min_seconds=0.05,
    )
    best: dict[tuple[str, str], int] = {}
    for index, candidate in enumerate(candidates):
        key = candidate.precision, candidate.by
        if key not in best or median(seconds[index]) < median(seconds[best[key]]):
            best[key] = index
    reference: Tensor | None = None
    results = []
    for index in best.values():
        candidate, times = candidates[index], seconds[index]
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
    """Return a table with a row for each result."""
    first = results[0]
    caption = "points (of error), agrees (same prediction) and times (speed): relative to the first row"
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
    """Plot error, size and speed as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.3 + 0.48 * len(results)), layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    names = [f"{result.precision}\n{result.by}" for result in results]
    panels = (
        ("error, %", [100 * result.error for result in results], "{:.2f}", "#c24b6e"),
        ("size on disk, kB", [result.size_bytes / 1000 for result in results], "{:,.0f}", "#8e63b5"),
        ("images/s", [result.images_per_s for result in results], "{:,.0f}", "#3b6fb6"),
    )
    for axes, (label, values, form, color) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        bars = axes.barh(range(len(values)), values, 0.6, color=color)
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
    """Run the program: compare the precisions, print the table, write the files and print their paths."""
    options = parse(Options, {}, argv, __doc__ or "")
    folder = single_run_folder(options.runs, program_command("vision.precision"))
    if options.int8:
        onnx_file.check_packages("int8", "--no-int8")
    trained = load_trained(folder, device=options.device, threads=options.threads)
    images = trained.images(options.split)
    out = output_folder(options.out, trained.folder)
    candidates, remarks, written = torch_candidates(trained), [], []
    console = table_console()
    with Console(stderr=True).status(f"{trained.name}: comparing precisions"):
        if options.int8:
            path = out / "model-int8.onnx"
            calibration = trained.images("train").take(slice(0, options.calibration))
            onnx, remark = onnx_candidates(trained, calibration, path)
            candidates += onnx
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
