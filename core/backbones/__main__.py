"""List the backbones with their parameters, multiply-adds, receptive field and output shape.

Each backbone is combined with the classifier head of its paper.

python -m core.backbones                                         # each with its paper's image size
python -m core.backbones resnet18 googlenet --image-size 64 --measure
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main

_MIN_SECONDS = 1.0  # total duration of the measured steps
_PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Backbones to list, input shape and measurement."""

    names: Annotated[tuple[str, ...], Positional("backbone")] = ()
    """Names of the backbones to list; default: all."""
    image_size: Annotated[int | None, Range(1, 4096)] = None
    """Height and width of the images, in pixels; None: the image size of each paper."""
    channels: Annotated[int | None, Range(1, 4096)] = None
    """Channels of the images; None: the number of each paper."""
    classes: Annotated[int | None, Range(2)] = None
    """Classes of the head, whose parameters are counted too; None: the number of each paper."""
    measure: bool = False
    """Also measure training and inference speed on this machine; takes a few seconds per backbone."""
    batch_size: Annotated[int, Range(1)] = 32
    """Batch size of the speed measurement."""
    device: str = "auto"
    """Device of the speed measurement: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads; 0: the number of cores."""


if __name__ == "__main__":
    check_command_line(partial(parse, Config, {}), __doc__)  # before the imports below, which take seconds

import torch
import torch.nn.functional as F
from rich import box
from rich.table import Table

from zerokara.core.backbones.base import on_meta_device
from zerokara.core.backbones.cost import multiply_adds, receptive_field
from zerokara.core.backbones.registry import BACKBONES, find_backbone
from zerokara.core.backbones.summary import short
from zerokara.core.compute import Compute
from zerokara.core.eager_optim import SGD
from zerokara.core.models.classifier import make_classifier
from zerokara.core.report import table_console


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    config = parse(Config, {}, argv, __doc__ or "")
    console = table_console()
    console.print(make_table(config, config.names or tuple(BACKBONES)))


def make_table(config: Config, names: Sequence[str]) -> Table:
    """Make a table with a row for each name. If no names were given, a backbone that the images do not fit gets a note.

    Raises:
        UserError: a name is unknown, or the images are too small for a backbone that was given by name.
    """
    table = Table(title="Backbones with their papers' heads", title_justify="left", box=box.SIMPLE, pad_edge=False)
    for heading in ("backbone", "input", "classes", "parameters", "multiply-\nadds", "receptive\nfield", "output"):
        table.add_column(heading, justify="left" if heading == "backbone" else "right")
    if config.measure:
        table.add_column("training,\nimages/s", justify="right")
        table.add_column("inference,\nimages/s", justify="right")
    for name in names:
        channels, size = find_backbone(name).default_input
        channels, size = config.channels or channels, config.image_size or size
        classes = config.classes or find_backbone(name).default_classes
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
    with on_meta_device():
        classifier = make_classifier(name, channels, size, classes)
    backbone = classifier.backbone
    cells = [
        f"{sum(p.numel() for p in classifier.parameters()):,}",
        short(multiply_adds(classifier, shape)),
        f"{receptive_field(backbone, shape)}",
        "x".join(map(str, (backbone.out_channels, *backbone.out_size))),
    ]
    if config.measure:
        speeds = {
            precision: images_per_second(config, name, (channels, size, classes), precision)
            for precision in _PRECISIONS
        }
        for index in range(2):
            best = max(speeds, key=lambda precision: speeds[precision][index])
            cells.append(f"{speeds[best][index]:,.0f} {best}")
    return cells


def images_per_second(config: Config, name: str, shape: tuple[int, int, int], precision: str) -> tuple[float, float]:
    """Measure images per second in training (forward, backward, SGD) and in inference: medians, after a warm-up.

    Args:
        config: batch size, device and threads.
        name: of the backbone.
        shape: channels and side of the images, and number of classes.
        precision: "float32" or "bfloat16".
    """
    channels, size, classes = shape
    compute = Compute.choose(
        device=config.device, precision="float32", compile="off", threads=config.threads, train_step=None
    )
    compute = Compute(device=compute.device, precision=precision, channels_last=True, threads=compute.threads)
    classifier = compute.module(make_classifier(name, channels, size, classes))
    optimizer = SGD(classifier.parameters(), lr=1e-4)
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
    while sum(seconds) < _MIN_SECONDS or len(seconds) < 3:
        seconds.append(timed())
    return statistics.median(seconds)


if __name__ == "__main__":
    run_main(main)
