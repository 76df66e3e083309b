"""Train with several seeds, at the same time on this machine or on a cluster, and compute the mean of the results.

    python -m core.seeds vision.classify --seeds 1 2 3 --name digits -- --data mnist --preset best
    python -m core.seeds generative.dcgan --seeds 1 2 3 --ray-address auto --ray-gpus 1 -- --data cifar10

The command line has three parts: the training program, the options of this program and, after --, the options of the
training program, which all runs share. The runs are runs/<name>-<seed>. Repeat the same command to resume: finished
runs are only read, and interrupted runs resume.

Output in runs/<name>/: results.json (results of all runs, means and standard deviations), logs/ (output of the runs),
seeds.json (the command), finished/ (a file for each finished run). docs/cluster.md describes clusters.
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from zerokara.core.command_line import check_command_line, parse_with_program
from zerokara.core.config import (
    MAX_MESSAGE,
    Positional,
    Range,
    Stopped,
    UserError,
    flag,
    from_dict,
    run_main,
    to_dict,
)
from zerokara.core.machine import describe_machine, describe_versions, git_commit, usable_cores
from zerokara.core.programs import program, short_names
from zerokara.core.scheduling.cluster import CLUSTER_FIELDS, ClusterOptions
from zerokara.core.scheduling.job import Job

# Programs that train: their modules have the function read_config, which reads a command line.
TRAINING_PROGRAMS = (
    *("agents.dqn", "agents.pqn", "agents.stream", "generative.dcgan", "generative.fast_style", "vision.classify"),
    *("vision.segment", "vision.detect", "vision.caption", "vision.binary"),
)
SET_HERE = ("--name", "--seed", "--resume")


@dataclass(frozen=True, kw_only=True)
class Options(ClusterOptions):
    """Options of the program."""

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = {
        "seed": "seeds",
        "num_seeds": "is --seeds here, followed by all seeds: --seeds 1 2 3.",
        "workers": "jobs",
        "n_jobs": "jobs",
        "exp_name": "name",
        "resume": "is not an option here: repeat the same command to resume.",
    }
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "runs": ("program", "seeds", "name"),
        "hardware": ("jobs", "threads"),
        "cluster": CLUSTER_FIELDS,
        "output": ("quiet",),
    }

    program: Annotated[str, Positional("program")] = ""
    """Training program, such as vision.classify."""
    seeds: Annotated[tuple[int, ...], Range(0, 10**6)] = (1, 2, 3)
    """Seeds, each of which trains once."""
    name: str = ""
    """Folder under runs/ and prefix of the runs (none: seeds-<program>)."""
    jobs: Annotated[int, Range(0)] = 0
    """Maximum number of runs at the same time; 0: number of cores, divided by the threads of a run. On a cluster, 0: as
    many as its resources allow."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads of each run; 0: number of cores, divided by the runs at the same time. On a cluster, 0:
    --ray-cpus."""
    quiet: bool = False
    """Print only warnings, failed runs and the results."""


@dataclass(frozen=True)
class SeedRun:
    """Run of one seed."""

    seed: int
    config: Any
    arguments: tuple[str, ...]  # command line that gives `config`

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.config.name)

    @property
    def folder(self) -> Path:
        """Run folder: runs/<name>."""
        return Path("runs") / self.name


def read_command_line(argv: Sequence[str] | None, description: str) -> tuple[Options, str, list[str]]:
    """Read the command line as `core.command_line.parse_with_program`.

    Raises:
        UserError: as there; there are no seeds, or the program is given an option that is set here.
    """
    options, module, arguments = parse_with_program(Options, argv, description, TRAINING_PROGRAMS)
    if not options.seeds:
        raise UserError("--seeds needs at least one value.")
    for word in arguments:
        if word.split("=")[0] in SET_HERE:
            raise UserError(f"{word} cannot be given after --: this program itself names, seeds and resumes the runs.")
    return options, module, arguments


if __name__ == "__main__":
    check_command_line(read_command_line, __doc__)  # before the imports below, which take seconds

from zerokara.core.checkpoint import write_atomically
from zerokara.core.progress import Progress
from zerokara.core.report import read_json, write_json
from zerokara.core.run_folder import check_name, read_config
from zerokara.core.run_options import HARDWARE_FIELDS
from zerokara.core.scheduling.monitor import Monitor
from zerokara.core.scheduling.resources import available_devices, divide_cores
from zerokara.core.scheduling.runs import train_runs
from zerokara.core.seeds.results import finite, print_table, read_all_results, summarize

MAY_DIFFER = frozenset({"name", "seed", "resume", "quiet", "track", *HARDWARE_FIELDS})  # between the runs
COMMAND_FILE = "seeds.json"  # in the folder of the results: program and arguments of the first start


def device_of(module: str, arguments: Sequence[str]) -> str:
    """Return the device that the arguments of a training program select; without --device it is "auto".

    Raises:
        UserError: an argument is invalid.
    """
    return str(importlib.import_module(f"zerokara.{module}").read_config(arguments).device)


def plan_runs(options: Options, module: str, arguments: Sequence[str], devices: Sequence[str]) -> list[SeedRun]:
    """List the runs of all seeds.

    Args:
        module: of the training program.
        arguments: of the training program, which all runs share.
        devices: assigned to the runs in turn.

    Raises:
        UserError: an argument of the training program is invalid.
    """
    training = importlib.import_module(f"zerokara.{module}")
    runs = []
    for number, seed in enumerate(dict.fromkeys(options.seeds)):
        device = devices[number % len(devices)]
        own = ["--seed", str(seed), "--name", f"{options.name}-{seed}", *(["--quiet"] if options.quiet else [])]
        words = ["--threads", str(options.threads), *arguments, "--device", device, *own]
        runs.append(SeedRun(seed, training.read_config(words), tuple(words)))
    return runs


def check_same_command(folder: Path, module: str, arguments: Sequence[str], runs: Sequence[SeedRun]) -> None:
    """Check that the runs, if there are any, were started by this program with the same command.

    Args:
        folder: of the results.
        module: of the training program.
        arguments: of the training program, which all runs share.
        runs: of all seeds.

    Raises:
        UserError: they were started in another way.
    """
    started: list[str] = []
    path = folder / COMMAND_FILE
    if path.exists():
        saved = read_json(path, restore_command(path, module, arguments, runs), program=str, arguments=list, runs=list)
        started = saved["runs"]
        if (saved["program"], saved["arguments"]) != (module, list(arguments)):
            before = shlex.join([saved["program"], "--", *map(str, saved["arguments"])])
            raise UserError(
                f"{folder} was started with {before} and cannot resume with {shlex.join([module, '--', *arguments])}: "
                f"use the same command, or choose another --name."
            )
    if taken := [run.folder for run in runs if run.name not in started and (run.folder / "config.json").exists()]:
        raise UserError(f"{taken[0]} already holds a run that was started otherwise: choose another --name.")


def restore_command(path: Path, module: str, arguments: Sequence[str], runs: Sequence[SeedRun]) -> str:
    """Return the advice for a damaged file of the command, without which its runs are not resumed.

    Args:
        path: of the file.
        module: of the training program.
        arguments: of the training program, which all runs share.
        runs: of all seeds.
    """
    logged = (log.stem for log in (path.parent / "logs").glob("*.log"))  # also of seeds that are not given any more
    content = json.dumps(command_content(module, arguments, {*logged, *(run.name for run in runs)}))
    if len(content) > MAX_MESSAGE // 2:  # the message would be abbreviated
        return "choose another --name"
    return (
        f"if the runs were started with this same command, restore the file with: printf %s {shlex.quote(content)} > "
        f"{path}; otherwise choose another --name"
    )


def command_content(module: str, arguments: Sequence[str], names: Collection[str]) -> dict[str, Any]:
    """Return the content of the file of the command.

    Args:
        module: of the training program.
        arguments: of the training program, which all runs share.
        names: of the runs that were started.
    """
    return {"program": module, "arguments": list(arguments), "runs": sorted(names)}


def make_job(run: SeedRun, module: str, log: Path) -> Job:
    """Return the process that starts or resumes a run."""
    command = ("-m", f"zerokara.{module}")
    resumed = (*command, "--name", run.name, "--resume")
    return Job(run.name, (*command, *run.arguments), log, run_folder=run.folder, resume_arguments=resumed)


def run_all(
    runs: Sequence[SeedRun], options: Options, module: str, arguments: Sequence[str], folder: Path
) -> tuple[Mapping[str, str], str | None]:
    """Run all runs that are not finished.

    Returns:
        Failed runs (name -> reason), and the name of the signal that stopped the program, or None.

    Raises:
        UserError: the cluster cannot be used.
    """
    progress = Progress(silent=options.quiet)
    finished = [run.name for run in runs if is_finished(run, folder)]
    monitor = Monitor({run.name: 1 for run in runs}, finished, progress, position=lambda name: 0)
    jobs = [make_job(run, module, folder / "logs" / f"{run.name}.log") for run in runs if run.name not in finished]
    if not jobs:
        return {}, None

    def save_command() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        saved = folder / COMMAND_FILE
        earlier = read_json(saved, runs=list)["runs"] if saved.exists() else []
        write_json(saved, command_content(module, arguments, {*earlier, *(run.name for run in runs)}))

    stopped = train_runs(
        jobs,
        len(runs),
        options,
        monitor,
        progress,
        max_processes=options.jobs,
        threads=options.threads,
        on_start=save_command,
        on_finish=lambda job, last_line: mark_finished(job.name, folder, last_line),
    )
    return monitor.failed, stopped


def is_finished(run: SeedRun, folder: Path) -> bool:
    """Return True if a process of the run has ended with exit code 0, and its folder is still there."""
    return (folder / "finished" / run.name).exists() and (run.folder / "config.json").exists()


def mark_finished(name: str, folder: Path, line: str) -> None:
    """Record that a run is finished, with its closing line."""
    (folder / "finished").mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "finished" / name, lambda file: file.write(f"{line}\n".encode()))


def differing_settings(runs: Sequence[SeedRun]) -> list[str]:
    """Describe the settings in which runs differ, because versions of zerokara with other defaults started them.

    A run whose config.json is damaged is named with the reason.
    """
    configs, lines = {}, []
    for run in runs:
        try:
            saved = read_config(run.folder)["config"]
            configs[run.name] = to_dict(from_dict(type(run.config), saved, str(run.folder)))
        except UserError as error:
            lines.append(f"those of {run.name} are unknown: {error}")
    for field in (name for name in next(iter(configs.values()), {}) if name not in MAY_DIFFER):
        names: dict[str, list[str]] = {}
        for name, config in configs.items():
            names.setdefault(str(config[field]), []).append(name)
        if len(names) > 1:
            lines.append(f"{flag(field)} " + ", ".join(f"{value} in {' '.join(of)}" for value, of in names.items()))
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Plan the runs, run them, read their results, and print the table."""
    options, module, arguments = read_command_line(argv, __doc__ or "")
    name = options.name or f"seeds-{short_names()[module]}"
    num_runs = len(set(options.seeds))
    if options.ray_address:
        jobs, threads = options.jobs or num_runs, options.threads or options.ray_threads
        devices = [device_of(module, arguments)]
    else:
        jobs, threads = divide_cores(usable_cores(), num_runs, options.jobs, options.threads)
        devices = available_devices(device_of(module, arguments))
        if not options.jobs and devices[0].startswith("cuda"):  # runs on one GPU would compete for its memory
            jobs = min(jobs, len(devices))
    options = replace(options, name=name, jobs=jobs, threads=threads)
    check_name(name)
    folder = Path("runs") / name
    if (folder / "config.json").exists():
        raise UserError(f"{folder} is the folder of a run: choose another --name for the results.")
    runs = plan_runs(options, module, arguments, devices)
    check_same_command(folder, module, arguments, runs)
    failed, stopped = run_all(runs, options, module, arguments, folder)
    finished = [run for run in runs if is_finished(run, folder)]
    if stopped:
        print(
            f"{stopped}: {len(finished)} of {len(runs)} runs are finished; repeat the same command to resume",
            flush=True,
        )
        raise Stopped
    results, unreadable = read_all_results({run.name: run.folder for run in finished})
    differences = differing_settings(finished)
    summary = summarize(results)
    content = {
        "program": module,
        "arguments": arguments,
        "seeds": [run.seed for run in finished if run.name in results],
        "summary": {metric: finite(numbers) for metric, numbers in summary.items()},
        "runs": {run: finite(values) for run, values in results.items()},
        "failed": dict(failed),
        "unreadable": unreadable,
        "differences": differences,
        "versions": describe_versions(),
        "git_commit": git_commit(),
        "machine": describe_machine(),
        "command": f"{program()} {shlex.join(sys.argv[1:] if argv is None else argv)}",
    }
    write_json(folder / "results.json", content)
    print_table(summary, results)
    if differences:
        print(f"different versions of zerokara may have given the runs different settings: {'; '.join(differences)}")
    for run_name, reason in unreadable.items():
        print(f"{run_name} is left out of the results: {reason}")
    finished_runs = f"{len(finished)} of {len(runs)} runs are finished"
    left_out = f", {len(unreadable)} of them left out" if unreadable else ""
    print(f"{finished_runs}{left_out}: {folder / 'results.json'}", flush=True)
    if failed or unreadable:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
