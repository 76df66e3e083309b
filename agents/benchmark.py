"""Benchmark: presets on games over seeds, run, resumed and put into one table.

    python -m agents.benchmark --envs ALE/Pong-v5 ALE/Breakout-v5 --presets fast rainbow --total-steps 1000000
    python -m agents.benchmark --envs zerokara/Catch-v0 zerokara/Snake-v0 --presets fast pqn-paper --total-steps 50000
    python -m agents.benchmark --presets dopamine --protocol machado --dopamine dopamine_pong.json

Runs are those of agents.dqn and agents.pqn (presets pqn-...), under runs/<name>-<game>-<preset>-<seed>, as many at once
as there are cores and memory for. The same command again goes on: finished runs are read, interrupted ones resumed.
What is scored, and how, is the protocol's to say (agents/configs/protocols.py); all presets are scored alike.

runs/<name>/ then holds table.md, results.json (every number with its protocol), curves-frames.png, curves-hours.png,
and in logs/ what the runs said. Statistics: agents/benchmarking/statistics.py, after Agarwal et al. 2021.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

from rich.console import Console

from zerokara.agents.benchmarking import plan as benchmark_plan
from zerokara.agents.benchmarking.dopamine_curves import PROTOCOL as DOPAMINE_PROTOCOL
from zerokara.agents.benchmarking.dopamine_curves import Published, beside
from zerokara.agents.benchmarking.plan import Planned, State, plan, state
from zerokara.agents.benchmarking.processes import Fleet, Job
from zerokara.agents.benchmarking.report import Findings, Record, Section, read_record, save_curves, sections
from zerokara.agents.configs.common import ProtocolName, Settings
from zerokara.agents.configs.protocols import PROTOCOLS
from zerokara.core.checkpoint import write_atomically
from zerokara.core.command_line import parse
from zerokara.core.config import Range, UserError, flag, run_main
from zerokara.core.machine import describe_machine, describe_versions, git_commit
from zerokara.core.programs import program
from zerokara.core.progress import Progress
from zerokara.core.report import write_json


@dataclass(frozen=True, kw_only=True)
class Options:
    """Runs to compare, and the hardware for them."""

    RENAMED: ClassVar[Mapping[str, str]] = {"steps": "total_steps"}

    envs: tuple[str, ...] = ("ALE/Pong-v5",)
    """Environments, by their ids."""
    presets: tuple[str, ...] = ("fast",)
    """Presets of agents.dqn by their names, of agents.pqn with pqn- in front."""
    seeds: Annotated[tuple[int, ...], Range(0, 10**6)] = (1, 2, 3)
    """A run for each, of every preset on every environment."""
    protocol: ProtocolName = "nature"
    """Protocol by which all runs are scored (agents/configs/protocols.py)."""
    total_steps: Annotated[int | None, Range(1)] = None
    """Length of each run, in agent steps; None: the protocol's, or the presets' where they agree."""
    evaluations: Annotated[int, Range(1)] = 10
    """Evaluations of a run, evenly spaced, the last one at its end, where the protocol scores by evaluation."""
    settings: tuple[str, ...] = ()
    """Fields of the runs' configs as field=value, over preset and protocol: width_multiplier=0.5 capture_video=true."""
    name: str = "benchmark"
    """Folder under runs/ for what is found, and the beginning of the runs' names."""
    dopamine: tuple[str, ...] = ()
    """Files of Dopamine's published curves, named after their games: dopamine_pong.json."""
    keep_replays: bool = False
    """Keep the replays of finished runs, so that these can be made longer."""
    report: bool = False
    """Start nothing: put what is finished into the table."""
    quiet: bool = False
    """Print nothing but warnings, failed runs and the table."""

    # --- the machine -----------------------------------------------------------------------------------------------
    jobs: Annotated[int, Range(0)] = 0
    """Runs at once at the most; 0: one for each core, or for as many cores as a run has threads."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads of a run; 0: the cores, shared among the runs at once."""
    device: str = "auto"
    """auto (every GPU in turn, where there are some), cpu, cuda, cuda:<n> or mps."""


class Watch:
    """Progress display of the runs, and one line for each run that ended."""

    def __init__(
        self, runs: Sequence[Planned], states: Mapping[str, State], progress: Progress, options: Options
    ) -> None:
        self.runs = {run.name: run for run in runs}
        self.failed: dict[str, str] = {}  # name -> why
        self._progress, self._keep_replays = progress, options.keep_replays
        self._total = sum(run.config.total_steps for run in runs)
        self._steps = {run.name: run.config.total_steps if states[run.name] == "finished" else 0 for run in runs}
        self._finished = sum(step > 0 for step in self._steps.values())

    def look(self, jobs: Sequence[Job]) -> None:
        """The bar: steps of all runs together."""
        for job in jobs:
            self._steps[job.name] = last_step(self.runs[job.name].folder)
        names = ", ".join(job.name for job in jobs) if len(jobs) < 3 else str(len(jobs))
        fields = {"finished": f"{self._finished} of {len(self.runs)}", "running": names}
        self._progress.show(min(sum(self._steps.values()), self._total), self._total, fields)

    def ended(self, job: Job, code: int, said: str, stopped: bool) -> None:
        """Say how a run ended; of a finished one, what only its going on would need is given back to the disk."""
        run = self.runs[job.name]
        if code == 0 and state(run) == "finished":
            self._finished += 1
            self._steps[run.name] = run.config.total_steps
            if not self._keep_replays:
                drop_replays(run)
            self._progress.print(f"{run.name}: {said}")
        elif stopped:
            self._progress.print(f"{run.name}: stopped; {said or 'before it began'}")
        else:
            why = f"killed by {signal.Signals(-code).name}" if code < 0 else "" if code else "stopped by somebody"
            self.failed[run.name] = why or said.removeprefix("error: ") or f"exit code {code}"
            self._progress.warn(f"{run.name} failed, the others go on: {self.failed[run.name]} All it said: {job.log}")


def last_step(folder: Path) -> int:
    """The step of the last whole line of metrics; 0 where there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return int(json.loads(file.read().split(b"\n")[-2])["step"])
    except (OSError, IndexError, KeyError, ValueError):
        return 0


def drop_replays(run: Planned) -> None:
    """Remove the replay's files of a finished run: gigabytes that nobody reads any more."""
    for folder in run.folder.glob("replay-*"):
        shutil.rmtree(folder, ignore_errors=True)


def run_all(runs: Sequence[Planned], options: Options, folder: Path, at_once: int) -> tuple[dict[str, str], str | None]:
    """Run what is not finished. Returns what failed, and why; and the signal that ended it before its time."""
    progress = Progress(silent=options.quiet)
    states = {run.name: state(run) for run in runs}
    watch = Watch(runs, states, progress, options)
    jobs = [
        benchmark_plan.job(run, states[run.name] == "begun", folder / "logs" / f"{run.name}.log")
        for run in runs
        if states[run.name] != "finished"
    ]
    if not jobs:
        return {}, None
    progress.print(f"{len(jobs)} of {len(runs)} runs to go, {at_once} at once, {runs[0].config.threads} threads each")

    def ended(job: Job, code: int, said: str) -> None:
        watch.ended(job, code, said, stopped=fleet.stopped is not None)

    fleet = Fleet(at_once, benchmark_plan.room(sorted({run.config.device for run in runs})), ended, watch.look)
    try:
        fleet.run(jobs)
    finally:
        progress.close()
    return watch.failed, fleet.stopped


def read_all(runs: Sequence[Planned], protocol: ProtocolName) -> tuple[list[Record], list[str]]:
    """The finished runs in numbers, and a sentence for each of those that have no score."""
    records, remarks = [], []
    for run in runs:
        try:
            if state(run) == "finished":
                records.append(read_record(run, protocol))
        except UserError as error:
            remarks.append(f"{run.name} is not in the table: {error}")
    return records, remarks


def remarks_on(runs: Sequence[Planned], records: Sequence[Record], options: Options) -> list[str]:
    """Collect remarks for a reader who compares these numbers with others."""
    remarks = benchmark_plan.departures(runs[0].config, options.protocol)
    done = {(record.env, record.preset, record.seed) for record in records}
    if missing := [run.name for run in runs if (run.env, run.preset, run.seed) not in done]:
        remarks.append(f"{len(missing)} of {len(runs)} runs are missing: {', '.join(missing)}")
    for what in ("git_commit", "versions"):
        if len({json.dumps(record.content.get(what), sort_keys=True) for record in records}) > 1:
            remarks.append(f"the runs differ in their {what.replace('_', ' ')}, which results.json has for each")
    computes = [record.content["extra"].get("compute", {}) for record in records]
    if len({(compute.get("precision"), compute.get("compile")) for compute in computes}) > 1:
        remarks.append("the runs differ in precision or compilation: name them by --settings precision=... compile=...")
    if len(options.seeds) == 1:
        remarks.append("one seed gives no interval")
    return remarks


def dopamine(options: Options, config: Settings) -> tuple[Mapping[str, Sequence[Published]], list[str]]:
    """Dopamine's curves where the protocol agrees with theirs; else a sentence that says why they are not shown.

    Raises:
        UserError: a file that cannot be used.
    """
    curves = beside([Path(name) for name in options.dopamine], options.envs)
    if not curves:
        return {}, []
    why = "; ".join(benchmark_plan.departures(config, options.protocol))
    if options.protocol != DOPAMINE_PROTOCOL:
        why = f"protocol {options.protocol} has no sticky actions and scores by evaluation"
    if why:
        remark = f"Dopamine's curves are of training games with sticky actions and are not shown, for {why}"
        return {}, [f"{remark}: --protocol {DOPAMINE_PROTOCOL} agrees with them."]
    frames = min(curve.frames[0] for of_game in curves.values() for curve in of_game)
    return curves, [f"Dopamine's curves begin after {frames:,.0f} frames, and are shown as far as ours go"]


def protocol_of(runs: Sequence[Planned], options: Options) -> dict[str, Any]:
    """The protocol in force, in plain values."""
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
    folder: Path, findings: Findings, tables: Sequence[Section], notes: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Write table.md, results.json and the curves, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown = "\n\n".join(["# Benchmark", *(table.markdown() for table in tables), *notes]) + "\n"
    write_atomically(folder / "table.md", lambda file: file.write(markdown.encode()))
    write_json(folder / "results.json", {**about, "remarks": list(notes), **findings.to_dict()})
    for x in ("frames", "hours"):
        save_curves(findings, about["protocol"]["name"], x, folder / f"curves-{x}.png")


def in_words(protocol: Mapping[str, Any], machine: Mapping[str, Any], commit: str | None) -> list[str]:
    """The lines under the table."""
    epsilon = "" if protocol["epsilon"] is None else f", epsilon {protocol['epsilon']}"
    return [
        f"Protocol {protocol['name']} ({protocol['source']}). Score: {protocol['score']}. In force: "
        f"{protocol['games']} games{epsilon}, {protocol['steps']:,} steps, seeds "
        f"{', '.join(map(str, protocol['seeds']))}"
        + (f", {' '.join(protocol['settings'])}." if protocol["settings"] else "."),
        f"Machine: {machine['cpu']}, {machine['cores_usable']} cores"
        + "".join(f", {gpu}" for gpu in machine["gpus"])
        + f". Commit {commit or 'unknown'}.",
    ]


def check(options: Options) -> Path:
    """The benchmark's folder.

    Raises:
        UserError: something to compare is missing, the name makes no folder, or the folder is a run's.
    """
    for field in ("envs", "presets", "seeds"):
        if not getattr(options, field):
            raise UserError(f"{flag(field)} needs at least one value.")
    if not re.fullmatch(r"\w[\w.+=-]*", options.name):
        raise UserError(
            f"--name cannot be {options.name!r}: it must be letters, digits and . _ + = - to make a folder."
        )
    folder = Path("runs") / options.name
    if (folder / "config.json").exists():
        raise UserError(f"{folder} is the folder of a run: give the benchmark another --name.")
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Plan, check, run, read, and put it into a table."""
    options = parse(Options, {}, argv, __doc__ or "")
    folder = check(options)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = len(set(options.envs)) * len(set(options.presets)) * len(set(options.seeds))
    at_once, threads = benchmark_plan.share(cores, number, options.jobs, options.threads)
    runs = plan(
        options.envs,
        options.presets,
        options.seeds,
        name=options.name,
        protocol=options.protocol,
        steps=options.total_steps,
        evaluations=options.evaluations,
        settings=options.settings,
        threads=threads,
        devices=benchmark_plan.devices(options.device),
    )
    curves, about_curves = dopamine(options, runs[0].config)
    failed: dict[str, str] = {}
    if not options.report:
        failed, stopped = run_all(runs, options, folder, at_once)
        if stopped:
            finished = sum(state(run) == "finished" for run in runs)
            print(f"{stopped}: {finished} of {len(runs)} runs are finished; the same command goes on", flush=True)
            sys.exit(128 + signal.Signals[stopped])
    records, unscored = read_all(runs, options.protocol)
    if failed and not records:
        sys.exit(1)  # each said why
    if not records:
        raise UserError(f"No run is finished, so there is no table: read {folder}/logs, or leave --report out.")

    protocol, machine, commit = protocol_of(runs, options), describe_machine(), git_commit()
    findings = Findings.of(records, curves)
    tables = sections(findings)
    failures = [f"{name} failed: {why}" for name, why in failed.items()]
    notes = [*in_words(protocol, machine, commit), *remarks_on(runs, records, options), *failures, *unscored]
    notes += about_curves
    about = {
        "protocol": protocol,
        "versions": describe_versions(),
        "git_commit": commit,
        "machine": machine,
        "command": f"{program()} {shlex.join(sys.argv[1:] if argv is None else argv)}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    save(folder, findings, tables, notes, about)
    console = Console()
    for table in tables:
        console.print(f"\n{table.heading}", highlight=False, markup=False, style="bold")
        for part in table.rich(console.width):
            console.print(part)
        console.print(table.note, soft_wrap=True, highlight=False, markup=False, style="dim")
    print()
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    print(f"{folder}/table.md, results.json, curves-frames.png, curves-hours.png", flush=True)
    if failed or unscored:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
