"""Start a training program with the number of processes that is fastest on this machine, which is measured first.

    python -m core.processes vision.classify -- --data mnist --name digits
    python -m core.processes agents.pqn --processes 2 -- --env ALE/Pong-v5

One process with all cores, or several that divide cores, batches and environments (docs/distributed.md)? A trial of
each number runs the program for some seconds in a temporary folder. Several processes are started by torchrun.

The command line has three parts: the training program, the options of this program and, after --, the options of the
training program. The run is that of the training program, and its config.json has the choice. With --resume among its
options, nothing is measured: the number of processes is the saved one, or that of --processes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from zerokara.core.command_line import check_command_line, parse_with_program
from zerokara.core.config import Positional, Range, UserError, format_count, run_main
from zerokara.core.machine import usable_cores

# Training programs that several processes run together.
TRAINING_PROGRAMS = (
    *("agents.dqn", "agents.pqn", "generative.dcgan", "generative.fast_style", "vision.classify"),
    *("vision.segment", "vision.detect", "vision.caption", "vision.binary"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the program."""

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = {
        "nproc_per_node": "processes",
        "nproc": "processes",
        "num_processes": "processes",
        "n_jobs": "processes",
        "name": "is an option of the training program: give it after the two hyphens that begin its options.",
        "resume": "is an option of the training program: give it after the two hyphens that begin its options.",
    }
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {"processes": ("program", "processes", "seconds")}

    program: Annotated[str, Positional("program")] = ""
    """Training program, such as vision.classify."""
    processes: Annotated[int, Range(0, 1024)] = 0
    """Number of processes; 0: the fastest, which is measured."""
    seconds: Annotated[float, Range(0, 600, low_open=True)] = 5.0
    """Seconds of a measurement, without the start of the program."""


def read_command_line(argv: Sequence[str] | None, description: str) -> tuple[Options, str, list[str]]:
    """Read the command line as `core.command_line.parse_with_program`."""
    return parse_with_program(Options, argv, description, TRAINING_PROGRAMS)


if __name__ == "__main__":
    check_command_line(read_command_line, __doc__)  # before the imports below, which take seconds

from zerokara.core.processes.measuring import (
    Speed,
    candidates,
    command,
    compare,
    environment,
    fastest,
    measure,
)
from zerokara.core.run_folder import read_config
from zerokara.core.scheduling.resources import available_devices
from zerokara.core.speed_trial import CHOICE


def check_algorithm(config: Any) -> None:
    """Check that the number of processes changes the speed only, so that it may be chosen by it.

    Raises:
        UserError: it changes what is computed.
    """
    if getattr(config, "average_every", "") == "rollout":
        raise UserError(
            "With --average-every rollout the number of processes changes what is learned, not only the speed: give "
            "it by --processes, or leave --average-every rollout out."
        )
    if getattr(config, "actors", 0):
        raise UserError("--actors cannot be combined with several processes: start it with python -m agents.dqn.")


def most_processes(device: str, threads: int) -> int:
    """Return the largest number of processes to measure: one for each GPU, or for each core or group of threads.

    Args:
        device: option of the training program. A GPU with a number, and MPS, are for a single process.
        threads: option of the training program; 0: the processes divide the cores.
    """
    devices = available_devices("auto" if device == "cuda" else device)
    if devices[0].startswith("cuda"):
        return len(devices)
    return 1 if devices == ["mps"] else max(1, usable_cores() // max(1, threads))


def trial_arguments(config: Any) -> list[str]:
    """Return the options that a trial has besides those of the run.

    A trial of DQN must do updates within seconds, and needs no replay buffer on disk.
    """
    if not hasattr(config, "learning_starts"):
        return ["--quiet"]
    starts, capacity = min(config.learning_starts, 1_000), min(config.replay_capacity, 20_000)
    return ["--quiet", "--no-save-replay", "--learning-starts", str(starts), "--replay-capacity", str(capacity)]


def saved_number(folder: Path) -> tuple[int, str]:
    """Return the number of processes with which a run was started, and the line about it.

    Raises:
        UserError: there is no such run, or its number was not chosen by this program.
    """
    saved = read_config(folder)["extra"].get("processes")
    number = saved.get("number") if isinstance(saved, dict) else None
    if not isinstance(number, int):
        raise UserError(f"{folder} was started without this program: give its number of processes by --processes.")
    cores = usable_cores()
    changed = f", chosen for {saved.get('cores')} cores; there are {cores} now" if saved.get("cores") != cores else ""
    return number, f"{format_count(number, 'process')}, as at the start of the run{changed}"


def choose(module: str, config: Any, arguments: Sequence[str], options: Options) -> tuple[dict[str, Any], str]:
    """Measure and choose the number of processes of a new run.

    Returns:
        The choice as it is saved, and the line about it.
    """
    numbers = candidates(most_processes(config.device, config.threads))
    unit = "agent steps/s" if module.startswith("agents.") else "updates/s"
    speeds: list[Speed] = []
    notes = ["nothing, because there is one core or device for it"]
    if len(numbers) > 1:
        print(
            f"measuring the speed of {', '.join(map(str, numbers))} processes, {options.seconds:g} s each", flush=True
        )
        trial = [*arguments, *trial_arguments(config)]
        speeds, notes = compare(numbers, partial(measure, module, trial, seconds=options.seconds))
    number = fastest(speeds)
    measured = [f"{format_count(speed.processes, 'process')} {speed.per_s:.4g} {unit}" for speed in speeds]
    line = f"{format_count(number, 'process')}; measured: {'; '.join([*measured, *notes])}"
    saved = {
        "number": number,
        "cores": usable_cores(),
        "unit": unit,
        "speeds": {str(speed.processes): round(speed.per_s, 4) for speed in speeds},
        "notes": notes,
    }
    return saved, line


def main(argv: Sequence[str] | None = None) -> None:
    """Choose the number of processes, and become the training program, or torchrun with it."""
    options, module, arguments = read_command_line(argv, __doc__ or "")
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError("torchrun has started this program, which itself starts torchrun: type it without torchrun.")
    config = importlib.import_module(f"zerokara.{module}").read_config(arguments)
    folder = Path("runs") / config.name
    if not config.resume and (folder / "config.json").exists():
        raise UserError(f"{folder} already holds a run: resume it with --resume, or choose another --name.")
    saved: dict[str, Any] = {}
    if options.processes:
        number, line = options.processes, f"{format_count(options.processes, 'process')}, as --processes says"
        saved = {"number": number, "cores": usable_cores()}
    elif config.resume:
        number, line = saved_number(folder)
    else:
        check_algorithm(config)
        saved, line = choose(module, config, arguments, options)
        number = saved["number"]
    print(f"processes: {line}", flush=True)
    variables = {**environment(number), **({CHOICE: json.dumps(saved)} if saved else {})}
    os.execve(sys.executable, [sys.executable, *command(module, arguments, number)], variables)


if __name__ == "__main__":
    run_main(main)
