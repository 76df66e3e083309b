"""Soak test: kill training programs at random moments, resume them, and compare with undisturbed runs.

    python -m tests.soak.kills --kills 500
    python -m tests.soak.kills --kills 20 --programs dqn classify --folder build/soak

Each run gets up to twelve signals at random moments: in start-up, in training, while a file is written, in evaluations.
Three of four are SIGKILL, the others SIGTERM. After each the program is started again: with --resume if the run has a
config.json, otherwise with the same command. At the end, weights, optimizer states, random generators, metrics (apart
from the group speed/), replay buffer and pictures must be those of the undisturbed run, bit for bit.

Results are appended to results.jsonl in the folder, so that an interrupted soak test continues with the same command;
--kills counts all of them. The last output is a summary as JSON: numbers of kills, of lost runs (they could not be
resumed) and of different runs (their end differs), by program and by phase. The folders of such runs stay. The exit
status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.programs import REPO, Process, start
from tests.soak.comparison import differences
from tests.soak.phases import PHASES, PhaseReader
from zerokara.core.config import EXIT_STOPPED
from zerokara.core.machine import git_commit

CHILD = "from tests.soak.phases import main; main()"
RUN = "run"
MAX_KILLS = 12  # of one run
LONGEST_SECONDS = 300  # of one process
_FIXED = ("--device", "cpu", "--precision", "float32", "--threads", "1")
_DQN = (
    *("--env", "zerokara/Catch-v0", "--num-envs", "8", "--total-steps", "1600", "--learning-starts", "200"),
    *("--batch-size", "16", "--train-every-steps", "16", "--replay-capacity", "1000", "--target-update-steps", "160"),
    *("--width-multiplier", "0.25", "--hidden-units", "32", "--log-every-steps", "160"),
    *("--checkpoint-every-steps", "240", "--eval-every-steps", "400", "--eval-episodes", "4", "--eval-max-steps", "60"),
    *(*_FIXED, "--compile", "off", "--no-delete-replay"),
)
PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "dqn": ("agents.dqn", *_DQN),
    "dqn-per-noisy-iqn": (
        *("agents.dqn", *_DQN, "--head", "iqn", "--noisy", "--per-alpha", "0.5", "--n-step", "3", "--double"),
    ),
    "stream": (
        *("agents.stream", "--env", "zerokara/Catch-v0", "--total-steps", "600", "--width-multiplier", "0.25"),
        *("--hidden-units", "16", "--epsilon-decay-steps", "300", "--log-every-steps", "50"),
        *("--checkpoint-every-steps", "70", "--eval-every-steps", "200", "--eval-episodes", "4"),
        *("--eval-max-steps", "60", *_FIXED, "--compile", "off"),
    ),
    "dcgan-conditional": (
        *("generative.dcgan", "--conditional", "--generator-width", "0.125", "--discriminator-width", "0.125"),
        *("--latent-dim", "8", "--batch-size", "16", "--updates", "60", "--log-every-updates", "10"),
        *("--checkpoint-every-updates", "10", "--eval-every-updates", "20", "--eval-images", "100"),
        *("--video-every-updates", "15", "--preview-images", "9", "--ema-half-life-updates", "5", *_FIXED),
    ),
    "classify": (
        *("vision.classify", "--train-images", "250", "--validation-images", "100", "--epochs", "4"),
        *("--batch-size", "50", "--width-multiplier", "0.5", "--checkpoint-every-updates", "2"),
        *("--log-every-updates", "3", "--warmup-epochs", "1", "--ema-half-life-updates", "5", "--mixup", "0.2"),
        *("--tta-views", "1", *_FIXED, "--compile", "off"),
    ),
}
"""Name of a program in the results -> its module and arguments."""


@dataclass
class Kill:
    """One signal: when it was sent and what followed."""

    phase: str
    signal: str
    status: int  # exit status of the process


@dataclass
class Result:
    """One run and its kills. `outcome` is "same", "lost" or "different"."""

    program: str
    number: int
    kills: list[Kill] = field(default_factory=list)
    outcome: str = "same"
    details: list[str] = field(default_factory=list)


@dataclass
class Reference:
    """Undisturbed run of a program, and how long each phase lasted each time that it was entered."""

    folder: Path
    durations: dict[str, list[float]]


def start_run(program: str, folder: Path) -> tuple[Process, PhaseReader]:
    """Start the program in the folder: with --resume if there is a run to resume, otherwise with the first command."""
    phases = PhaseReader(folder / "phase")
    module, *words = PROGRAMS[program]
    resume = ["--resume"] if (folder / "runs" / RUN / "config.json").exists() else words
    environment = {"PHASE_LOG": str(folder / "phases.log")}
    return start(folder, "-c", CHILD, str(folder / "phase"), module, "--name", RUN, *resume, **environment), phases


def run_undisturbed(program: str, folder: Path) -> Reference:
    """Run the program to its end.

    Raises:
        RuntimeError: it failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    process, _ = start_run(program, folder)
    out, err = process.communicate(timeout=LONGEST_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"{program} failed without being killed: {out}{err}")
    changes = [line.split() for line in (folder / "phases.log").read_text(encoding="utf-8").splitlines()]
    durations: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for (begin, phase), (end, _) in itertools.pairwise(changes):
        durations[phase].append(float(end) - float(begin))
    return Reference(folder / "runs" / RUN, durations)


def kill_once(
    process: Process, phases: PhaseReader, reference: Reference, rng: random.Random, kills: int = 1
) -> Kill | None:
    """Send a signal in a random phase. Returns None if the process ended before that.

    Args:
        process: running program.
        phases: its phases.
        reference: undisturbed run of the same program.
        rng: source of the random moment.
        kills: planned kills of this run, which are spread over it: the process does about this part of the run.
    """
    phase = rng.choice([phase for phase, seconds in reference.durations.items() if seconds])
    entered = rng.randint(1, math.ceil(len(reference.durations[phase]) / kills))
    delay = rng.uniform(0, 1.2 * rng.choice(reference.durations[phase]))
    number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    begin = asked = time.monotonic()
    while phases.count(phase) < entered:
        if time.monotonic() > asked + 0.05:
            asked = time.monotonic()
            if process.poll() is not None:
                return None
            if asked > begin + LONGEST_SECONDS:
                raise TimeoutError(f"process {process.pid} did not end within {LONGEST_SECONDS} s")
        time.sleep(0.0001)
    time.sleep(delay)
    actual = phases.phase()
    os.kill(process.pid, number)  # a process that has ended keeps its id until `poll` asks for its exit status
    process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode is not None
    finished = process.returncode == 0  # before the signal, or in spite of it
    return None if finished else Kill(actual, number.name, process.returncode)


def disturb(program: str, number: int, reference: Reference, folder: Path) -> Result:
    """Kill a run up to `MAX_KILLS` times, resume it to its end, and compare it with the undisturbed run."""
    rng = random.Random()  # moments cannot be repeated, since they depend on the speed of the process
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result = Result(program, number)
    process: Process | None = None
    try:
        planned = rng.randint(1, MAX_KILLS)
        for _ in range(planned):
            process, phases = start_run(program, folder)
            kill = kill_once(process, phases, reference, rng, planned)
            if kill is not None:
                result.kills.append(kill)
            if is_failure(process) or kill is None:
                break
        else:
            process, _ = start_run(program, folder)
        out, err = process.communicate(timeout=LONGEST_SECONDS)
    except BaseException:
        if process is not None:
            process.send_signal(signal.SIGKILL)
        raise
    if process.returncode != 0:
        result.outcome, result.details = "lost", [*out.splitlines()[-3:], *err.splitlines()[-12:]]
    elif found := differences(reference.folder, folder / "runs" / RUN):
        result.outcome, result.details = "different", found[:20]
    else:
        shutil.rmtree(folder)
    return result


def is_failure(process: Process) -> bool:
    """Return True if the process ended by an error, and neither by a signal nor as a stopped or finished run."""
    return process.returncode not in (0, EXIT_STOPPED, -signal.SIGKILL, -signal.SIGTERM)


def read_results(path: Path) -> list[Result]:
    """Read the results of earlier calls; a last line that was not written completely is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    content = [json.loads(line) for line in lines]
    return [Result(**{**row, "kills": [Kill(**kill) for kill in row["kills"]]}) for row in content]


def summarize(results: Sequence[Result]) -> dict[str, Any]:
    """Count kills, lost and different runs: all of them, by program and by phase with the signals."""

    def counts(selected: Sequence[Result]) -> dict[str, int]:
        outcomes = Counter(result.outcome for result in selected)
        kills = sum(len(result.kills) for result in selected)
        return {"kills": kills, "runs": len(selected), "lost": outcomes["lost"], "different": outcomes["different"]}

    phases: dict[str, Counter[str]] = {phase: Counter() for phase in PHASES}
    for result in results:
        for kill in result.kills:
            phases[kill.phase][kill.signal] += 1
        for phase in {kill.phase for kill in result.kills} if result.outcome != "same" else ():
            phases[phase][f"{result.outcome} runs"] += 1
    by_program = {name: counts([result for result in results if result.program == name]) for name in PROGRAMS}
    return {
        **counts(results),
        "by_program": {name: numbers for name, numbers in by_program.items() if numbers["runs"]},
        "by_phase": {phase: dict(sorted(numbers.items())) for phase, numbers in phases.items()},
        "exit_statuses_after_SIGTERM": dict(
            Counter(str(kill.status) for result in results for kill in result.kills if kill.signal == "SIGTERM")
        ),
    }


def soak(programs: Sequence[str], kills: int, folder: Path) -> list[Result]:
    """Disturb runs of the programs in turn until there are enough kills. Returns all results of the folder."""
    path = folder / "results.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(path)
    references: dict[str, Reference] = {}
    count = Counter(result.program for result in results)
    while sum(len(result.kills) for result in results) < kills:
        program = min(programs, key=lambda name: count[name])
        if program not in references:
            references[program] = run_undisturbed(program, folder / program / "undisturbed")
        number = max((result.number for result in results if result.program == program), default=-1) + 1
        result = disturb(program, number, references[program], folder / program / str(number))
        results.append(result)
        count[program] += 1
        whole = "".join(f"{json.dumps(asdict(result))}\n" for result in results)
        path.with_suffix(".tmp").write_text(whole, encoding="utf-8")
        path.with_suffix(".tmp").replace(path)
        done = sum(len(each.kills) for each in results)
        print(f"{done}/{kills}: {program} {number}: {len(result.kills)} kills, {result.outcome}", file=sys.stderr)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Run the soak test and print its summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500, help="number of kills, with those of earlier calls")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="programs to kill")
    parser.add_argument("--folder", type=Path, default=REPO / "build" / "soak", help="folder of runs and results")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = options.folder.resolve()
    try:
        soak(options.programs, options.kills, folder)
    except KeyboardInterrupt:
        print("interrupted; continue with the same command", file=sys.stderr)
    summary = summarize(read_results(folder / "results.jsonl"))
    print(json.dumps({"commit": git_commit(), **summary}, indent=2))
    sys.exit(1 if summary["lost"] or summary["different"] else 0)


if __name__ == "__main__":
    main()
