"""List the backbones: what each costs and gives for an input, with its paper's head.

python -m core.backbones                                         # each at its paper's image size
python -m core.backbones resnet18 googlenet --image-size 64 --measure
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.core.backbones.cost import multiply_adds, receptive_field
from zerokara.core.backbones.registry import BACKBONES, find_backbone
from zerokara.core.backbones.summary import short
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.models.classifier import make_classifier

_SECONDS = 1.0  # at least, of measured steps
_PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is listed, and for which input."""

    names: Annotated[tuple[str, ...], Positional("backbone")] = ()
    """Backbones; all of them where none is named."""
    image_size: Annotated[int | None, Range(1, 4096)] = None
    """Height and width of the images, in pixels; None: each paper's own."""
    channels: Annotated[int | None, Range(1, 4096)] = None
    """Channels of the images; None: each paper's own."""
    classes: Annotated[int | None, Range(2)] = None
    """Classes of the head that counts among the parameters; None: each paper's own."""
    measure: bool = False
    """Measure training and inference on this machine as well; takes seconds for each."""
    batch_size: Annotated[int, Range(1)] = 32
    """Images that are measured together."""
    device: str = "auto"
    """Where to measure: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    config = parse(Config, {}, argv, __doc__ or "")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(make_table(config, config.names or tuple(BACKBONES)))


def make_table(config: Config, names: Sequence[str]) -> Table:
    """A row for each name. Where all were asked for, one that leaves nothing of the images says so in its row.

    Raises:
        UserError: an unknown name; an input that does not fit, where the backbone was asked for by name.
    """
    table = Table(title="Backbones with their papers' heads", title_justify="left", box=box.SIMPLE, pad_edge=False)
    for heading in ("backbone", "input", "classes", "parameters", "multiply-\nadds", "receptive\nfield", "output"):
        table.add_column(heading, justify="left" if heading == "backbone" else "right")
    if config.measure:
        table.add_column("training,\nimages/s", justify="right")
        table.add_column("inference,\nimages/s", justify="right")
    for name in names:
        channels, size = find_backbone(name).usual_input
        channels, size = config.channels or channels, config.image_size or size
        classes = config.classes or find_backbone(name).usual_classes
        try:
            cells = _row(config, name, channels, size, classes)
        except UserError:
            if config.names:
                raise
            cells = ["the images are too small"]
        table.add_row(name, f"{channels}x{size}x{size}", str(classes), *cells)
    return table


def _row(config: Config, name: str, channels: int, size: int, classes: int) -> list[str]:
    shape = (1, channels, size, size)
    with torch.device("meta"):
        classifier = make_classifier(name, channels, size, classes)
    eye = classifier.backbone
    cells = [
        f"{sum(p.numel() for p in classifier.parameters()):,}",
        short(multiply_adds(classifier, shape)),
        f"{receptive_field(eye, shape)}",
        "x".join(map(str, (eye.out_channels, *eye.out_size))),
    ]
    if config.measure:
        speeds = {
            precision: images_per_second(config, name, (channels, size, classes), precision)
            for precision in _PRECISIONS
        }
        for place in range(2):
            best = max(speeds, key=lambda precision: speeds[precision][place])
            cells.append(f"{speeds[best][place]:,.0f} {best}")
    return cells


def images_per_second(config: Config, name: str, shape: tuple[int, int, int], precision: str) -> tuple[float, float]:
    """Images per second in training (forward, backward, SGD) and in inference: medians, after a warm-up.

    Args:
        shape: channels and side of the images, and classes.
        precision: "float32" or "bfloat16".
    """
    channels, size, classes = shape
    compute = Compute.choose(
        device=config.device, precision="float32", compile="off", threads=config.threads, train_step=None
    )
    compute = Compute(device=compute.device, precision=precision, channels_last=True, threads=compute.threads)
    classifier = compute.module(make_classifier(name, channels, size, classes))
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1e-4)
    x = compute.layout(torch.rand(config.batch_size, channels, size, size).to(compute.torch_device))
    label = torch.zeros(config.batch_size, dtype=torch.int64).to(compute.torch_device)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with compute.autocast():
            logits, auxiliaries = classifier.logits_and_auxiliaries(x)
        loss = F.cross_entropy(logits.float(), label)
        for weight, auxiliary in auxiliaries:
            loss = loss + weight * F.cross_entropy(auxiliary.float(), label)
        loss.backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), compute.autocast():
            classifier(x)

    training = _median_seconds(train)
    classifier.eval()
    return config.batch_size / training, config.batch_size / _median_seconds(infer)


def _median_seconds(step: Callable[[], None]) -> float:
    def timed() -> float:
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    timed()
    seconds: list[float] = []
    while sum(seconds) < _SECONDS or len(seconds) < 3:
        seconds.append(timed())
    return statistics.median(seconds)


if __name__ == "__main__":
    run_main(main)
