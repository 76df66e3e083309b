"""Train presets on several environments and seeds, evaluate all runs in the same way, and tabulate the scores.

    python -m agents.benchmark --envs ALE/Pong-v5 ALE/Breakout-v5 --presets fast rainbow --total-steps 1000000
    python -m agents.benchmark --envs zerokara/Catch-v0 zerokara/Snake-v0 --presets fast pqn-paper --total-steps 50000
    python -m agents.benchmark --presets dopamine --protocol machado --dopamine dopamine_pong.json
    python -m agents.benchmark --games atari-5 --presets fast --total-steps 1000000 --results docs/results/agents

Each run is one of agents.dqn, agents.pqn (presets pqn-...) or agents.stream (presets stream-...), in the folder
runs/<name>-<environment>-<preset>-<seed>. As many run at the same time as cores and memory allow. Repeat the same
command to resume: finished runs are only read, and interrupted runs resume. The protocol defines the score
(agents/configs/protocols.py) and is the same for all presets.

Output in runs/<name>/: table.md, results.json (all numbers and the protocol), curves-frames.png, curves-hours.png, and
the output of the runs in logs/. Statistics: agents/benchmarking/statistics.py, after Agarwal et al. 2021. With
--results, each finished run becomes a small JSON file instead, and a page has the tables of all these files
(agents/benchmarking/evidence.py).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

from zerokara.agents.configs.common import ProtocolName
from zerokara.agents.configs.protocols import PROTOCOLS
from zerokara.core.command_line import Requirement, check_command_line, parse
from zerokara.core.config import Range, Stopped, UserError, flag, format_count, note, run_main
from zerokara.core.machine import describe_machine, describe_versions, git_commit, usable_cores
from zerokara.core.programs import program
from zerokara.core.scheduling.cluster import CLUSTER_FIELDS, ClusterOptions


@dataclass(frozen=True, kw_only=True)
class Options(ClusterOptions):
    """Options of the benchmark: runs, scores and hardware."""

    RENAMED: ClassVar[Mapping[str, str]] = {"steps": "total_steps"}
    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = {
        "env_id": "envs",
        "env_ids": "envs",
        "env": "envs",
        "preset": "presets",
        "seed": "seeds",
        "num_seeds": "is --seeds here, followed by all seeds: --seeds 1 2 3.",
        "start_seed": "is --seeds here, followed by all seeds: --seeds 1 2 3.",
        "total_timesteps": "total_steps",
        "eval_freq": "is --evaluations here, the number of evaluations of a run.",
        "eval_every_steps": "is --evaluations here, the number of evaluations of a run.",
        "workers": "jobs",
        "n_jobs": "jobs",
        "exp_name": "name",
        "resume": "is not an option here: repeat the same command to resume.",
        "cuda": "is --device cuda here.",
    }
    REQUIRES: ClassVar[Mapping[str, Requirement]] = {
        "page": (lambda options: bool(options.results), "--results"),
        "dopamine": (lambda options: not options.results, "an empty --results"),
    }
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "runs": ("envs", "games", "presets", "seeds", "total_steps", "settings", "name"),
        "evaluation": ("protocol", "evaluations", "dopamine"),
        "hardware": ("jobs", "threads", "device"),
        "cluster": CLUSTER_FIELDS,
        "output": ("results", "page", "report", "keep_replays", "quiet"),
    }
    COMMON: ClassVar[tuple[str, ...]] = ("envs", "presets", "seeds", "total_steps", "protocol", "name", "jobs")

    envs: tuple[str, ...] = ("ALE/Pong-v5",)
    """Environment ids."""
    games: tuple[str, ...] = ()
    """Atari games in place of --envs. Names, such as Pong, or sets: atari-5, atari-10, atari-26, atari-57."""
    presets: tuple[str, ...] = ("fast",)
    """Names of presets. Those of agents.pqn have the prefix pqn-, those of agents.stream stream-."""
    seeds: Annotated[tuple[int, ...], Range(0, 10**6)] = (1, 2, 3)
    """Seeds. Each preset is trained in each environment once per seed."""
    protocol: ProtocolName = "nature"
    """Protocol that defines the score. See agents/configs/protocols.py."""
    total_steps: Annotated[int | None, Range(1)] = None
    """Agent steps of each run; None: value of the protocol, or of the presets if it is the same for all."""
    evaluations: Annotated[int, Range(1)] = 10
    """Number of evaluations of each run. They are evenly spaced, the last at the end. No effect if the protocol scores
    training episodes."""
    settings: tuple[str, ...] = ()
    """Config fields of the runs as field=value. They take precedence over preset and protocol.
    Example: width_multiplier=0.5 capture_video=true."""
    name: str = "benchmark"
    """Name of the output folder under runs/; also the prefix of the names of the runs."""
    dopamine: tuple[str, ...] = ()
    """Files of learning curves published by Dopamine. They are named by game: dopamine_pong.json."""
    keep_replays: bool = False
    """Keep the replay buffers of finished runs. They are needed to train these runs longer."""
    results: str = ""
    """Folder for a JSON file of each finished run. Runs that have a file are not repeated. none: tables in
    runs/<name>."""
    page: str = ""
    """Markdown page with the tables of --results. They stand between two markers. none: evidence.md in the folder."""
    report: bool = False
    """Only tabulate the finished runs."""
    quiet: bool = False
    """Print only warnings, failed runs and the tables."""

    # --- hardware --------------------------------------------------------------------------------------------------
    jobs: Annotated[int, Range(0)] = 0
    """Maximum number of runs at the same time; 0: number of cores, divided by the threads of a run. On a cluster, 0: as
    many as its resources allow."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads of each run; 0: number of cores, divided by the runs at the same time. On a cluster, 0:
    --ray-cpus."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps. auto uses all CUDA GPUs in turn, or the CPU if there is none."""


def read_options(argv: Sequence[str] | None = None, description: str = "") -> Options:
    """Read the options from the command line.

    Raises:
        UserError: as in `core.command_line.parse`; --envs and --games are both given.
    """

    def check(options: Options, given: Collection[str]) -> Options:
        if options.games and "envs" in given:
            raise UserError("Give --envs or --games, not both: --games takes the place of --envs.")
        return options

    return parse(Options, {}, argv, description, adjust=check)


if __name__ == "__main__":
    check_command_line(read_options, __doc__)  # before the imports below, which take seconds

from zerokara.agents.benchmarking import dopamine_curves
from zerokara.agents.benchmarking.atari_sets import environments
from zerokara.agents.benchmarking.dopamine_curves import PublishedCurve
from zerokara.agents.benchmarking.evidence import ResultsFolder, refuse_other_values, write_page
from zerokara.agents.benchmarking.plan import (
    PlannedRun,
    describe_version_changes,
    deviations_by_preset,
    make_job,
    plan_runs,
    run_state,
)
from zerokara.agents.benchmarking.report import Record, Results, Section, read_record, save_curves, sections
from zerokara.core.checkpoint import write_atomically
from zerokara.core.progress import Progress
from zerokara.core.report import table_console, write_json
from zerokara.core.run_folder import check_name
from zerokara.core.scheduling.monitor import Monitor, last_step
from zerokara.core.scheduling.resources import available_devices, divide_cores, free_memory
from zerokara.core.scheduling.runs import train_runs


def run_all(
    runs: Sequence[PlannedRun],
    options: Options,
    folder: Path,
    max_processes: int,
    on_finish: Callable[[PlannedRun], object] = lambda run: None,
) -> tuple[dict[str, str], str | None]:
    """Run all runs that are not finished.

    Args:
        runs: runs of the benchmark.
        options: options of the benchmark.
        folder: its output folder.
        max_processes: maximum number of runs at the same time.
        on_finish: called with each run that has ended without an error.

    Returns:
        Failed runs (name -> reason), and the name of the signal that stopped the benchmark, or None.

    Raises:
        UserError: the cluster cannot be used.
    """
    progress = Progress(silent=options.quiet)
    states = {run.name: run_state(run) for run in runs}
    by_name = {run.name: run for run in runs}
    monitor = Monitor(
        {run.name: run.config.total_steps for run in runs},
        [name for name, state in states.items() if state == "finished"],
        progress,
        position=lambda name: last_step(by_name[name].folder),
        is_finished=lambda name: run_state(by_name[name]) == "finished",
    )
    jobs = [make_job(run, folder / "logs" / f"{run.name}.log") for run in runs if states[run.name] != "finished"]
    if not jobs:
        return {}, None
    stopped = train_runs(
        jobs,
        len(runs),
        options,
        monitor,
        progress,
        max_processes=max_processes,
        threads=runs[0].config.threads,
        free_memory=lambda: free_memory(sorted({run.config.device for run in runs})),
        on_finish=lambda job, _: on_finish(by_name[job.name]),
    )
    return monitor.failed, stopped


def read_records(runs: Sequence[PlannedRun], protocol: ProtocolName) -> tuple[list[Record], list[str]]:
    """Read the results of the finished runs.

    Returns:
        Results, and a message for each finished run without a score.
    """
    records, messages = [], []
    for run in runs:
        try:
            if run_state(run) == "finished":
                records.append(read_record(run, protocol))
        except UserError as error:
            messages.append(f"{run.name} is not in the table: {error}")
    return records, messages


def keep_results(runs: Sequence[PlannedRun], options: Options, folder: Path, max_processes: int) -> None:
    """Train the runs that have no file in --results, write the file of each one as soon as it has ended, and the page.

    Raises:
        UserError: a file in --results is damaged; the folder of a run has one that another version started with other
            values; --report, and there is no file.
        Stopped: a signal stopped the benchmark.
    """
    kept = ResultsFolder(Path(options.results), options.settings, options.protocol, max_processes)
    page = Path(options.page) if options.page else kept.path / "evidence.md"
    if options.report and not kept.read():  # a mistyped folder would replace the tables of a page
        raise UserError(f"There is no result in --results {kept.path}: name another folder, or leave --report out.")
    missing = kept.missing(runs)

    def save_if_finished(run: PlannedRun) -> None:
        for record in read_records([run], options.protocol)[0]:
            kept.save(run, record)

    for run in missing:
        save_if_finished(run)  # ended in an earlier call that could not write the file
    failed: dict[str, str] = {}
    stopped: str | None = None
    if not options.report:
        missing = kept.missing(missing)
        refuse_other_values(missing)
        failed, stopped = run_all(missing, options, folder, max_processes, save_if_finished)
    results = kept.read()
    write_page(page, results)
    left = len(kept.missing(runs))
    print(
        f"{page}: {format_count(len(results), 'result')}; of {len(runs)} runs of this command {left} are missing",
        flush=True,
    )
    if stopped:
        raise Stopped
    if failed:
        sys.exit(1)  # the reason of each failure is already printed


def comparison_notes(runs: Sequence[PlannedRun], records: Sequence[Record], options: Options) -> list[str]:
    """List what limits the comparison of these scores with each other or with published ones."""
    notes = deviations_by_preset(runs, options.protocol)
    done = {(record.env, record.preset, record.seed) for record in records}
    notes += describe_version_changes([run for run in runs if (run.env, run.preset, run.seed) in done])
    if missing := [run.name for run in runs if (run.env, run.preset, run.seed) not in done]:
        notes.append(f"{len(missing)} of {len(runs)} runs are missing: {', '.join(missing)}")
    for key in ("git_commit", "versions"):
        if len({json.dumps(record.content.get(key), sort_keys=True) for record in records}) > 1:
            notes.append(f"the runs differ in {key.replace('_', ' ')}; results.json lists the values of each run")
    computes = [record.content["extra"].get("compute", {}) for record in records]
    if len({(compute.get("precision"), compute.get("compile")) for compute in computes}) > 1:
        notes.append("the runs differ in precision or compilation: set both with --settings precision=... compile=...")
    if len(options.seeds) == 1:
        notes.append("no confidence intervals, because there is only one seed")
    return notes


def read_dopamine(
    options: Options, runs: Sequence[PlannedRun]
) -> tuple[Mapping[str, Sequence[PublishedCurve]], list[str]]:
    """Read Dopamine's curves if their protocol is the one of this benchmark.

    Returns:
        Environment -> curves, and notes for the table; without curves, the note gives the reason.

    Raises:
        UserError: a file cannot be read, or belongs to none of the environments.
    """
    curves = dopamine_curves.read_files([Path(name) for name in options.dopamine], options.envs)
    if not curves:
        return {}, []
    reason = "; ".join(deviations_by_preset(runs, options.protocol))
    if options.protocol != dopamine_curves.PROTOCOL:
        reason = f"protocol {options.protocol} has no sticky actions and scores evaluation episodes"
    if reason:
        text = f"Dopamine's curves, of training episodes with sticky actions, are not shown because {reason}"
        return {}, [f"{text}: use --protocol {dopamine_curves.PROTOCOL} to show them."]
    frames = min(curve.frames[0] for of_env in curves.values() for curve in of_env)
    return curves, [f"Dopamine's curves begin after {frames:,.0f} frames, and are shown up to the end of our curves"]


def describe_protocol(runs: Sequence[PlannedRun], options: Options) -> dict[str, Any]:
    """Return the protocol with the values that are in use, as plain values."""
    rules, config = PROTOCOLS[options.protocol], runs[0].config
    by_evaluation = rules.metric.startswith("eval/")
    return {
        "name": options.protocol,
        "source": rules.source,
        "score": rules.score,
        "metric": rules.metric,
        "games": config.eval_episodes if by_evaluation else 100,
        "epsilon": config.eval_epsilon if by_evaluation else None,
        "max_steps": config.eval_max_steps if by_evaluation else None,
        "evaluations": config.total_steps // config.eval_every_steps if by_evaluation else None,
        "steps": config.total_steps,
        "seeds": list(options.seeds),
        "settings": list(options.settings),
    }


def save(
    folder: Path, results: Results, tables: Sequence[Section], notes: Sequence[str], metadata: Mapping[str, Any]
) -> None:
    """Write table.md, results.json and the plots, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown = "\n\n".join(["# Benchmark", *(table.markdown() for table in tables), *notes]) + "\n"
    write_atomically(folder / "table.md", lambda file: file.write(markdown.encode()))
    write_json(folder / "results.json", {**metadata, "remarks": list(notes), **results.to_dict()})
    for x in ("frames", "hours"):
        save_curves(results, metadata["protocol"]["name"], x, folder / f"curves-{x}.png")


def format_conditions(protocol: Mapping[str, Any], machine: Mapping[str, Any], commit: str | None) -> list[str]:
    """Format protocol, machine and commit as lines below the tables."""
    epsilon = "" if protocol["epsilon"] is None else f", epsilon {protocol['epsilon']}"
    return [
        f"Protocol {protocol['name']} ({protocol['source']}). Score: {protocol['score']}. Values of this benchmark: "
        f"{protocol['games']} episodes{epsilon}, {protocol['steps']:,} steps, seeds "
        f"{', '.join(map(str, protocol['seeds']))}"
        + (f", {' '.join(protocol['settings'])}." if protocol["settings"] else "."),
        f"Machine: {machine['cpu']}, {machine['cores_usable']} cores"
        + "".join(f", {gpu}" for gpu in machine["gpus"])
        + f". Commit {commit or 'unknown'}.",
    ]


def output_folder(options: Options) -> Path:
    """Check the options that need no plan. Returns the output folder of the benchmark.

    Raises:
        UserError: a list is empty, the name is not a valid folder name, or the folder is a run folder.
    """
    for field in ("envs", "presets", "seeds"):
        if not getattr(options, field):
            raise UserError(f"{flag(field)} needs at least one value.")
    check_name(options.name)
    folder = Path("runs") / options.name
    if (folder / "config.json").exists():
        raise UserError(f"{folder} is the folder of a run: choose another --name for the benchmark.")
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Plan the runs, run them, read their results, and write the tables."""
    options = read_options(argv, __doc__ or "")
    if options.games:
        options = replace(options, envs=environments(options.games))
    folder = output_folder(options)
    num_runs = len(set(options.envs)) * len(set(options.presets)) * len(set(options.seeds))
    if options.ray_address:
        max_processes, threads = options.jobs or num_runs, options.threads or options.ray_threads
    else:
        max_processes, threads = divide_cores(usable_cores(), num_runs, options.jobs, options.threads)
    runs = plan_runs(
        options.envs,
        options.presets,
        options.seeds,
        name=options.name,
        protocol=options.protocol,
        steps=options.total_steps,
        evaluations=options.evaluations,
        settings=options.settings,
        threads=threads,
        devices=[options.device] if options.ray_address else available_devices(options.device),
        keep_replays=options.keep_replays,
    )
    if options.results:
        keep_results(runs, options, folder, max_processes)
        return
    published, dopamine_notes = read_dopamine(options, runs)
    failed: dict[str, str] = {}
    if not options.report:
        for text in describe_version_changes(runs):
            note(f"{text}. Finished runs are tabulated as they are, and unfinished ones resume with their settings.")
        failed, stopped = run_all(runs, options, folder, max_processes)
        if stopped:
            finished = sum(run_state(run) == "finished" for run in runs)
            print(
                f"{stopped}: {finished} of {len(runs)} runs are finished; repeat the same command to resume", flush=True
            )
            raise Stopped
    records, unscored = read_records(runs, options.protocol)
    if failed and not records:
        sys.exit(1)  # the reason of each failure is already printed
    if not records:
        print(*unscored, sep="\n", end="\n" if unscored else "", file=sys.stderr)
        raise UserError(f"No run can be scored, so there is no table: read {folder}/logs, or omit --report.")

    protocol, machine, commit = describe_protocol(runs, options), describe_machine(), git_commit()
    results = Results.of(records, published)
    tables = sections(results)
    failures = [f"{name} failed: {reason}" for name, reason in failed.items()]
    notes = [*format_conditions(protocol, machine, commit), *comparison_notes(runs, records, options), *failures]
    notes += [*unscored, *dopamine_notes]
    metadata = {
        "protocol": protocol,
        "versions": describe_versions(),
        "git_commit": commit,
        "machine": machine,
        "command": f"{program()} {shlex.join(sys.argv[1:] if argv is None else argv)}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    save(folder, results, tables, notes, metadata)
    console = table_console()
    for table in tables:
        console.print(f"\n{table.heading}", highlight=False, markup=False, style="bold")
        for part in table.rich(console.width):
            console.print(part)
        console.print(table.note, soft_wrap=True, highlight=False, markup=False, style="dim")
    print()
    for line in notes:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    print(f"{folder}/table.md, results.json, curves-frames.png, curves-hours.png", flush=True)
    if failed or unscored:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
