"""Compare the training speed on one CPU core, several cores and a GPU, in each precision.

    python -m vision.devices --data mnist

Each setting runs in a process of its own. The settings are interleaved for `--rounds` rounds, so that other load on the
machine affects all of them, and the median is reported. Complete updates (augmentation, forward, backward, optimizer)
of one network on the same images are timed after a warm-up; on a GPU the time includes the end of the last kernel. The
speed-up is relative to one core in float32. Table, devices.json and devices.png are written to runs/<name>/.
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
from functools import partial
from typing import Annotated, Any, get_args

from zerokara.core.choices import Precision
from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Range, UserError, format_count, run_main, to_dict
from zerokara.core.machine import describe_machine, describe_versions
from zerokara.core.programs import program_command
from zerokara.core.run_config import stem
from zerokara.vision.classification.config import PRESETS, Config

KIND = "devices"
PRECISIONS = tuple(name for name in get_args(Precision) if name != "auto")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.devices."""

    data: str = "glyphs"
    """Data set: glyphs (synthetic digits), mnist, fashion-mnist, cifar10, cifar100, or a folder or zip file of class
    folders."""
    data_dir: str = ""
    """Folder in which named data sets are found or into which they are downloaded; empty: $ZEROKARA_DATA, else
    ~/.cache/zerokara."""
    backbone: str = "deep_cnn"
    """Name of the backbone; python -m core.backbones lists them."""
    batch_size: Annotated[int, Range(1)] = 100
    """Images in an update."""
    cores: Annotated[tuple[int, ...], Range(1)] = ()
    """Numbers of CPU threads to compare; empty: 1, 2, 4, ... up to all cores. 1 is always included."""
    updates: Annotated[int, Range(1)] = 100
    """Updates that are timed in each process. A tenth of them, at least 3, are run before as warm-up."""
    rounds: Annotated[int, Range(1, 101)] = 5
    """Number of measurements of each setting."""
    name: str = ""
    """Name of the run folder under runs/; empty: composed of backbone and data."""
    quiet: bool = False
    """Print only warnings, the table and the closing message."""
    only: str = ""
    """Time one setting in this process, for example cpu:2:bfloat16, and print its images/s as JSON."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from rich import box
from rich.table import Table

from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.report import new_figure, table_console, write_figure, write_json
from zerokara.core.run import Run
from zerokara.vision.classification.learner import Data, Training


@dataclass(frozen=True)
class Setting:
    """Device, number of threads and precision: one bar of the figure."""

    device: str
    threads: int
    precision: str

    @classmethod
    def read(cls, text: str) -> Setting:
        """Parse device:threads:precision.

        Raises:
            UserError: the text has another form, or this machine has no GPU.
        """
        device, _, rest = text.partition(":")
        threads, _, precision = rest.partition(":")
        if not threads.isdecimal() or int(threads) < 1 or precision not in PRECISIONS or device not in ("cpu", "cuda"):
            raise UserError(
                f"--only cannot be {text!r}: it must be device:threads:precision, as cpu:2:{PRECISIONS[-1]}."
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(f"--only {text} needs a GPU, but this machine or this PyTorch has none: use cpu.")
        return cls(device, int(threads), precision)

    def __str__(self) -> str:
        """Format the setting as `read` parses it."""
        return f"{self.device}:{self.threads}:{self.precision}"

    @property
    def label(self) -> str:
        """Label for tables and axes."""
        device = "GPU" if self.device == "cuda" else format_count(self.threads, "core")
        return f"{device}, {self.precision}"


BASE = Setting("cpu", 1, "float32")


def settings(cores: Sequence[int], usable: int, gpu: bool) -> list[Setting]:
    """Return all combinations of number of cores and precision, then the GPU in each precision.

    Args:
        cores: numbers of cores; empty: powers of 2 up to `usable`.
        usable: number of cores that this process may use.
        gpu: include the GPU.

    Raises:
        UserError: more cores than this process may use.
    """
    if wrong := [number for number in cores if number > usable]:
        raise UserError(f"--cores cannot be {wrong[0]}: this process may use {usable}.")
    powers = [2**power for power in range(usable.bit_length())]
    numbers = sorted({1, *(cores or [*powers, usable])})
    on_cpu = [Setting("cpu", number, precision) for number in numbers for precision in PRECISIONS]
    return on_cpu + [Setting("cuda", 1, precision) for precision in PRECISIONS] * gpu


def train_config(options: Options) -> Config:
    """Return the config of vision.classify that is timed."""
    fields = {
        **PRESETS["fast"],
        "data": options.data,
        "data_dir": options.data_dir,
        "backbone": options.backbone,
        "batch_size": options.batch_size,
    }
    return Config(**fields)


def images_per_second(options: Options, setting: Setting) -> float:
    """Time training updates in this process. Return images per second."""
    config = train_config(options)
    images = Data.load(config)
    compute = Compute(device=setting.device, precision=setting.precision, channels_last=True, threads=setting.threads)
    compute.apply()
    training = Training(config, images, compute, World())
    batches = training.epoch_order().split(config.batch_size)[: training.updates_per_epoch]

    def train(updates: int) -> None:
        for number in range(updates):
            training.update(batches[number % len(batches)])
        training.read_metrics()["train/loss"].item()  # synchronizes with the device

    train(max(3, options.updates // 10))
    start = time.perf_counter()
    train(options.updates)
    return options.updates * len(batches[0]) / (time.perf_counter() - start)


def time_in_subprocess(options: Options, setting: Setting) -> float:
    """Run `images_per_second` in a new process that starts with this number of threads.

    Raises:
        UserError: the process failed; the message has its last line of output.
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


def time_all(
    options: Options, all_settings: Sequence[Setting], measure: Callable[[Options, Setting], float], run: Run
) -> dict[Setting, list[float]]:
    """Return images per second of each setting in each round. Every second round has the reverse order."""
    rates: dict[Setting, list[float]] = {setting: [] for setting in all_settings}
    total = options.rounds * len(all_settings)
    for round_number in range(options.rounds):
        for setting in all_settings if round_number % 2 == 0 else all_settings[::-1]:
            run.progress(sum(map(len, rates.values())), total, {"round": round_number + 1, "timing": setting.label})
            rates[setting].append(measure(options, setting))
    run.progress(total, total, {})
    return rates


def speed_ups(rates: Mapping[Setting, Sequence[float]]) -> dict[Setting, dict[str, float]]:
    """Return the median, minimum and maximum images/s of each setting, and its speed-up over one core in float32."""
    base = statistics.median(rates[BASE])
    return {
        setting: {
            "images_per_s": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "speed_up": statistics.median(values) / base,
        }
        for setting, values in rates.items()
    }


def table(results: Mapping[Setting, Mapping[str, float]], rounds: int) -> Table:
    """Return a table with a row for each setting."""
    table = Table(box=box.SIMPLE_HEAD, caption=f"training images/s: median, minimum and maximum of {rounds} processes")
    for column in ("setting", "images/s", "min", "max", "speed-up"):
        table.add_column(column, justify="left" if column == "setting" else "right", no_wrap=True)
    for setting, row in results.items():
        rates = [f"{row[name]:,.0f}" for name in ("images_per_s", "least", "most")]
        table.add_row(setting.label, *rates, f"{row['speed_up']:.2f}")
    return table


def draw(results: Mapping[Setting, Mapping[str, float]], options: Options, run: Run) -> None:
    """Write devices.png: speed-ups as bars, with the range over the rounds."""
    figure, (axes,) = new_figure(height=1.2 + 0.5 * len(results), width=7.5)
    base = results[BASE]["images_per_s"]
    colors = dict(zip(PRECISIONS, ("tab:orange", "tab:blue", "tab:green", "tab:purple"), strict=False))
    for position, (setting, row) in enumerate(results.items()):
        spans = [[(row["images_per_s"] - row["least"]) / base], [(row["most"] - row["images_per_s"]) / base]]
        axes.barh(position, row["speed_up"], xerr=spans, color=colors[setting.precision], height=0.65, capsize=3)
        label = f"  {row['speed_up']:.2f}x, {row['images_per_s']:,.0f} images/s"
        axes.annotate(label, (row["most"] / base, position), va="center", fontsize=9)
    axes.set_yticks(range(len(results)), [setting.label for setting in results])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(row["most"] / base for row in results.values()))
    axes.set(xlabel="training speed relative to one core in float32; error bars: slowest and fastest round")
    axes.set_title(f"{options.backbone} on {options.data}, batch {options.batch_size}")
    axes.grid(visible=False, axis="y")
    write_figure(run.path("devices.png"), figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: time all settings, write table, JSON and figure. With --only, time one and print JSON."""
    World.require_single_process(program_command("vision.devices"))
    options = parse(Options, {}, argv, __doc__ or "")
    if options.only:
        print(json.dumps({"images_per_s": images_per_second(options, Setting.read(options.only))}))
        return
    machine: dict[str, Any] = describe_machine()
    all_settings = settings(options.cores, machine["cores_usable"], torch.cuda.is_available())
    name = options.name or f"{KIND}-{options.backbone}-{stem(options.data)}"
    with Run(options, kind=KIND, name=name, resume=False, quiet=options.quiet) as run:
        results = speed_ups(time_all(options, all_settings, time_in_subprocess, run))
        rows = {str(setting): row for setting, row in results.items()}
        content = {"base": str(BASE), "settings": rows, "machine": machine, "versions": describe_versions()}
        write_json(run.path("devices.json"), content)
        draw(results, options, run)
        table_console().print(table(results, options.rounds))
        run.close(f"devices.png and devices.json are in {run.folder}")


if __name__ == "__main__":
    run_main(main)
