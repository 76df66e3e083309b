"""Devices: the same training on one core, on more, on a GPU where there is one, and in each precision.

    python -m vision.devices --data mnist

Every bar is a process of its own with that many threads; the settings take turns, `--rounds` times, so that what else
the machine does falls on all of them, and the median counts. What is timed is whole updates (augmentation, forward,
backward, optimiser) of one network on the same images, after a warm-up and, on a GPU, up to the last kernel's end. The
speed-up is against one core in float32. Table, devices.json and devices.png go to runs/<name>/.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.core.command_line import parse
from zerokara.core.compute import Compute, Precision
from zerokara.core.config import Range, UserError, run_main, to_dict
from zerokara.core.distributed import World
from zerokara.core.machine import describe_machine, describe_versions
from zerokara.core.programs import program_command
from zerokara.core.report import new_figure, write_figure, write_json
from zerokara.core.run import Run
from zerokara.core.run_config import stem
from zerokara.vision.classification.config import PRESETS, Config
from zerokara.vision.classification.learner import Data, Training

KIND = "devices"
PRECISIONS = tuple(name for name in get_args(Precision) if name != "auto")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train, and where."""

    data: str = "glyphs"
    """Images: glyphs (drawn here), mnist, fashion-mnist, cifar10, cifar100, or a folder or zip of class folders."""
    data_dir: str = ""
    """Where named data lie or are downloaded to; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    backbone: str = "deep_cnn"
    """The eye, by its name in core.backbones."""
    batch_size: Annotated[int, Range(1)] = 100
    """Images in an update."""
    cores: Annotated[tuple[int, ...], Range(1)] = ()
    """Numbers of threads to compare; empty: 1, 2, 4, ... up to all cores. One is always among them."""
    updates: Annotated[int, Range(1)] = 100
    """Updates that are timed in each process, after a tenth of them, at least 3, as warm-up."""
    rounds: Annotated[int, Range(1, 101)] = 5
    """How often every setting has its turn."""
    name: str = ""
    """Folder under runs/; empty: made of the backbone and the data."""
    quiet: bool = False
    """Print nothing but warnings, the table and the closing line."""
    only: str = ""
    """Time one setting in this very process, as cpu:2:bfloat16, and print its images/s: what each bar is made of."""


@dataclass(frozen=True)
class Setting:
    """One bar."""

    device: str
    threads: int
    precision: str

    @classmethod
    def read(cls, text: str) -> Setting:
        """A setting from device:threads:precision.

        Raises:
            UserError: another form, or what this machine cannot do.
        """
        device, _, rest = text.partition(":")
        threads, _, precision = rest.partition(":")
        if not threads.isdecimal() or int(threads) < 1 or precision not in PRECISIONS or device not in ("cpu", "cuda"):
            raise UserError(
                f"--only cannot be {text!r}: it must be device:threads:precision, as cpu:2:{PRECISIONS[-1]}."
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(f"--only {text} asks for a GPU, and this machine or this PyTorch has none: use cpu.")
        return cls(device, int(threads), precision)

    def __str__(self) -> str:
        """As `read` takes it."""
        return f"{self.device}:{self.threads}:{self.precision}"

    @property
    def words(self) -> str:
        """For tables and axes."""
        where = "GPU" if self.device == "cuda" else f"{self.threads} core" + "s" * (self.threads > 1)
        return f"{where}, {self.precision}"


BASE = Setting("cpu", 1, "float32")


def settings(cores: Sequence[int], usable: int, gpu: bool) -> list[Setting]:
    """Every number of cores in every precision, then the GPU in every precision.

    Raises:
        UserError: more cores than this process may use: threads would only wait for each other.
    """
    if wrong := [number for number in cores if number > usable]:
        raise UserError(f"--cores cannot be {wrong[0]}: this process may use {usable}.")
    powers = [2**power for power in range(usable.bit_length())]
    numbers = sorted({1, *(cores or [*powers, usable])})
    found = [Setting("cpu", number, precision) for number in numbers for precision in PRECISIONS]
    return found + [Setting("cuda", 1, precision) for precision in PRECISIONS] * gpu


def train_config(options: Options) -> Config:
    """The config of vision.classify that is timed."""
    fields = {
        **PRESETS["fast"],
        "data": options.data,
        "data_dir": options.data_dir,
        "backbone": options.backbone,
        "batch_size": options.batch_size,
    }
    return Config(**fields)


def images_per_second(options: Options, setting: Setting) -> float:
    """Train in this process, and time it."""
    config = train_config(options)
    images = Data.load(config)
    compute = Compute(device=setting.device, precision=setting.precision, channels_last=True, threads=setting.threads)
    compute.apply()
    training = Training(config, images, compute, World())
    batches = training.epoch_order().split(config.batch_size)[: training.updates_per_epoch]

    def train(updates: int) -> None:
        for number in range(updates):
            training.update(batches[number % len(batches)])
        training.read_metrics()["train/loss"].item()  # waits for the device

    train(max(3, options.updates // 10))
    began = time.perf_counter()
    train(options.updates)
    return options.updates * len(batches[0]) / (time.perf_counter() - began)


def in_a_process(options: Options, setting: Setting) -> float:
    """`images_per_second` in a process that has had so many threads from its first breath.

    Raises:
        UserError: the process failed; the last thing that it said.
    """
    own = {name: value for name, value in to_dict(options).items() if name in ("data", "data_dir", "backbone")}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in own.items()]
    numbers = ["--batch-size", str(options.batch_size), "--updates", str(options.updates), "--only", str(setting)]
    done = subprocess.run(
        [sys.executable, "-m", "zerokara.vision.devices", *words, *numbers],
        env={**os.environ, "OMP_NUM_THREADS": str(setting.threads), "MKL_NUM_THREADS": str(setting.threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{setting} could not be timed: {last.removeprefix('error: ')}")
    return float(json.loads(done.stdout)["images_per_s"])


def take_turns(
    options: Options, bars: Sequence[Setting], measure: Callable[[Options, Setting], float], run: Run
) -> dict[Setting, list[float]]:
    """Images/s of every setting in every round; in every other round they come in reverse order."""
    found: dict[Setting, list[float]] = {setting: [] for setting in bars}
    total = options.rounds * len(bars)
    for turn in range(options.rounds):
        for setting in bars if turn % 2 == 0 else bars[::-1]:
            run.progress(sum(map(len, found.values())), total, {"round": turn + 1, "timing": setting.words})
            found[setting].append(measure(options, setting))
    run.progress(total, total, {})
    return found


def speed_ups(found: Mapping[Setting, Sequence[float]]) -> dict[Setting, dict[str, float]]:
    """Median, least and most images/s of every setting, and its median over that of one core in float32."""
    base = statistics.median(found[BASE])
    return {
        setting: {
            "images_per_s": statistics.median(rates),
            "least": min(rates),
            "most": max(rates),
            "speed_up": statistics.median(rates) / base,
        }
        for setting, rates in found.items()
    }


def table(results: Mapping[Setting, Mapping[str, float]], rounds: int) -> Table:
    """A row for each bar."""
    table = Table(box=box.SIMPLE_HEAD, caption=f"training images/s: median, least and most of {rounds} processes")
    for column in ("where", "images/s", "least", "most", "speed-up"):
        table.add_column(column, justify="left" if column == "where" else "right", no_wrap=True)
    for setting, row in results.items():
        rates = [f"{row[name]:,.0f}" for name in ("images_per_s", "least", "most")]
        table.add_row(setting.words, *rates, f"{row['speed_up']:.2f}")
    return table


def draw(results: Mapping[Setting, Mapping[str, float]], options: Options, run: Run) -> None:
    """devices.png: speed-ups as bars, with the span of the rounds."""
    figure, (axes,) = new_figure(height=1.2 + 0.5 * len(results), width=7.5)
    base = results[BASE]["images_per_s"]
    colours = dict(zip(PRECISIONS, ("tab:orange", "tab:blue", "tab:green", "tab:purple"), strict=False))
    for place, (setting, row) in enumerate(results.items()):
        spans = [[(row["images_per_s"] - row["least"]) / base], [(row["most"] - row["images_per_s"]) / base]]
        axes.barh(place, row["speed_up"], xerr=spans, color=colours[setting.precision], height=0.65, capsize=3)
        note = f"  {row['speed_up']:.2f}x, {row['images_per_s']:,.0f} images/s"
        axes.annotate(note, (row["most"] / base, place), va="center", fontsize=9)
    axes.set_yticks(range(len(results)), [setting.words for setting in results])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(row["most"] / base for row in results.values()))
    axes.set(xlabel="training speed, one core in float32 is 1; whiskers: slowest and fastest round")
    axes.set_title(f"{options.backbone} on {options.data}, batch {options.batch_size}")
    axes.grid(visible=False, axis="y")
    write_figure(run.path("devices.png"), figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Take turns, then table, JSON and figure; with --only, time one setting and print JSON."""
    World.require_single_process(program_command("vision.devices"))
    options = parse(Options, {}, argv, __doc__ or "")
    if options.only:
        print(json.dumps({"images_per_s": images_per_second(options, Setting.read(options.only))}))
        return
    machine: dict[str, Any] = describe_machine()
    bars = settings(options.cores, machine["cores_usable"], torch.cuda.is_available())
    name = options.name or f"{KIND}-{options.backbone}-{stem(options.data)}"
    with Run(options, kind=KIND, name=name, resume=False, quiet=options.quiet) as run:
        results = speed_ups(take_turns(options, bars, in_a_process, run))
        rows = {str(setting): row for setting, row in results.items()}
        content = {"base": str(BASE), "settings": rows, "machine": machine, "versions": describe_versions()}
        write_json(run.path("devices.json"), content)
        draw(results, options, run)
        Console().print(table(results, options.rounds))
        run.close(f"devices.png and devices.json are in {run.folder}")


if __name__ == "__main__":
    run_main(main)
