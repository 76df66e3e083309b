"""Soak test of several processes: kill some of them at random moments, let torchrun restart them, compare the results.

    python -m tests.soak.group_kills --kills 50
    python -m tests.soak.group_kills --kills 20 --programs pqn --processes 3 --folder build/soak-group

Each run is started once, by `torchrun --max-restarts`. At random moments SIGKILL ends its first process, its last one,
one in the middle, all of them, or one that is writing a checkpoint. torchrun then starts all processes again, which
resume from the newest checkpoints that they have in common. At the end, checkpoints, weights, metrics and replay
buffers must be those of an undisturbed run, bit for bit.

Results are appended to results.jsonl in the folder; the same command continues an interrupted soak test. The last
output is a summary as JSON: kills by program and by target, lost runs (torchrun ended with an error), runs that hung,
and different runs. The exit status is 1 if there are any of the last three.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.programs import REPO, Process, start
from tests.soak import kills
from tests.soak.comparison import differences
from zerokara.core.machine import git_commit

TARGETS = ("first", "last", "all", "saving", "middle")  # the last only of three processes or more
MAX_KILLS = 6  # of one run
_CHECKPOINT_IN_PROGRESS = re.compile(r"\.checkpoint-(\d+)\.pt\.tmp")
UNSEEDED = ("rng/python/", "rng/numpy/")  # generators in the checkpoints that the programs neither seed nor draw from
LONGEST_SECONDS = 900  # of one run, with its restarts
_PQN = (
    *("agents.pqn", "--env", "zerokara/Catch-v0", "--num-envs", "12", "--total-steps", "9600", "--rollout-steps", "10"),
    *("--num-minibatches", "2", "--width-multiplier", "0.25", "--hidden-units", "32", "--log-every-steps", "480"),
    *("--checkpoint-every-steps", "480", "--eval-every-steps", "2400", "--eval-episodes", "4", "--no-capture-video"),
    *("--device", "cpu", "--precision", "float32", "--threads", "1", "--compile", "off"),
)
PROGRAMS: dict[str, tuple[str, ...]] = {
    "dqn": (
        *(*kills.PROGRAMS["dqn"], "--no-capture-video", "--total-steps", "4800"),
        *("--num-envs", "12", "--batch-size", "24", "--train-every-steps", "24", "--target-update-steps", "240"),
    ),
    "pqn": _PQN,
    "pqn-rollout": (*_PQN, "--average-every", "rollout"),
    "dcgan-conditional": (*kills.PROGRAMS["dcgan-conditional"], "--batch-size", "24"),
    "classify": (*kills.PROGRAMS["classify"], "--batch-size", "48"),
}
"""Name of a program in the results -> its module and arguments, which 2, 3, 4 and 6 processes can divide."""


@dataclass
class Result:
    """One run and the targets of its kills. `outcome` is "same", "lost", "hung" or "different"."""

    program: str
    processes: int
    number: int
    kills: list[str] = field(default_factory=list)
    outcome: str = "same"
    details: list[str] = field(default_factory=list)


def start_group(program: str, processes: int, folder: Path) -> Process:
    """Start a new run of the program in the folder by torchrun."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    module, *words = PROGRAMS[program]
    launch = ("--standalone", "--nproc-per-node", str(processes), "--max-restarts", str(10 * MAX_KILLS))
    return start(
        folder, "-m", "torch.distributed.run", *launch, "-m", f"zerokara.{module}", "--name", kills.RUN, *words
    )


def ranks(process: Process) -> dict[int, psutil.Process]:
    """Return the processes that torchrun has started, by rank."""
    found: dict[int, psutil.Process] = {}
    for child in psutil.Process(process.pid).children():
        try:
            found[int(child.environ()["RANK"])] = child
        except (psutil.Error, KeyError):  # it has just ended, or is not a process of the group
            continue
    return found


def saving_rank(run: Path, since: float) -> int | None:
    """Return the rank of a process that is writing a checkpoint; None if there is none.

    Args:
        run: run folder.
        since: a file that was last written before this time (of `time.time`) was left by a killed process.
    """
    for path in run.glob(".checkpoint-*.tmp"):
        match = _CHECKPOINT_IN_PROGRESS.fullmatch(path.name)
        try:
            if match and path.stat().st_mtime > since:
                return int(match[1])
        except FileNotFoundError:  # it has just been completed
            continue
    return None


def kill_once(process: Process, run: Path, target: str, delay: float, since: float = 0.0) -> bool:
    """Kill processes of the group after a delay in seconds.

    Args:
        process: torchrun.
        run: folder of its run.
        target: one of `TARGETS`.
        delay: in seconds; "saving" then waits for the next checkpoint.
        since: time of the last kill (of `time.time`).

    Returns:
        False if torchrun ended before that, or a process that was saving had saved when it was killed.

    Raises:
        TimeoutError: the group neither saves nor ends.
    """
    begin, writer, group = time.monotonic(), None, dict[int, psutil.Process]()
    while time.monotonic() < begin + delay or (target == "saving" and (writer := saving_rank(run, since)) is None):
        if process.poll() is not None:
            return False
        if time.monotonic() > begin + LONGEST_SECONDS:
            raise TimeoutError(f"no checkpoint was begun within {LONGEST_SECONDS} s")
        if target == "saving" and not (group and all(each.is_running() for each in group.values())):
            group = ranks(process)  # now, because looking for them takes longer than a small checkpoint
        time.sleep(0.0005 if target == "saving" else 0.02)
    if target != "saving":
        group = ranks(process) if process.poll() is None else {}
    chosen: dict[str, list[int | None]] = {
        "first": [0],
        "last": [max(group, default=0)],
        "middle": [len(group) // 2],
        "all": list(group),
        "saving": [writer],
    }
    victims = [group[rank] for rank in chosen[target] if rank is not None and rank in group]
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    return bool(victims) and (target != "saving" or (run / f".checkpoint-{writer}.pt.tmp").exists())


def disturb(program: str, processes: int, number: int, reference: Path, seconds: float, folder: Path) -> Result:
    """Kill processes of a run up to `MAX_KILLS` times, wait for its end, and compare it with the undisturbed run.

    Args:
        program: name in PROGRAMS.
        processes: size of the group.
        number: number of the run.
        reference: run folder of the undisturbed run.
        seconds: duration of the undisturbed run.
        folder: working directory of the run.
    """
    rng = random.Random()  # moments cannot be repeated, since they depend on the speed of the processes
    result = Result(program, processes, number)
    process = start_group(program, processes, folder)
    run = folder / "runs" / kills.RUN
    try:
        planned = rng.randint(1, MAX_KILLS)
        longest = seconds * min(1, 2 / planned)  # so that the kills are spread over the run
        since = 0.0
        for _ in range(planned):
            target = rng.choice(TARGETS if processes > 2 else TARGETS[:-1])
            if kill_once(process, run, target, rng.uniform(0, longest), since):
                result.kills.append(target)
            since = time.time()
        out, err = process.communicate(timeout=LONGEST_SECONDS)
    except TimeoutError as error:
        result.outcome, result.details = "hung", str(error).splitlines()[-12:]
        for each in (*ranks(process).values(), psutil.Process(process.pid)):
            each.kill()
        process.communicate()
        return result
    if process.returncode != 0:
        result.outcome, result.details = "lost", [*out.splitlines()[-3:], *err.splitlines()[-30:]]
    elif found := [each for each in differences(reference, run) if not any(part in each for part in UNSEEDED)]:
        result.outcome, result.details = "different", found[:20]
    else:
        shutil.rmtree(folder)
    return result


def summarize(results: Sequence[Result]) -> dict[str, Any]:
    """Count kills and the outcomes of runs: all of them, by program, and kills by target."""

    def counts(selected: Sequence[Result]) -> dict[str, int]:
        outcomes = Counter(result.outcome for result in selected)
        total = {"kills": sum(len(result.kills) for result in selected), "runs": len(selected)}
        return total | {outcome: outcomes[outcome] for outcome in ("lost", "hung", "different")}

    programs = dict.fromkeys(result.program for result in results)
    return {
        **counts(results),
        "by_program": {name: counts([result for result in results if result.program == name]) for name in programs},
        "by_target": dict(sorted(Counter(target for result in results for target in result.kills).items())),
    }


def soak(programs: Sequence[str], processes: int, number: int, folder: Path) -> list[Result]:
    """Disturb runs of the programs in turn until there are enough kills. Returns all results of the folder."""
    path = folder / "results.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(path)
    references: dict[str, tuple[Path, float]] = {}
    while sum(len(result.kills) for result in results) < number:
        count = Counter(result.program for result in results)
        program = min(programs, key=lambda name: count[name])
        if program not in references:
            begin = time.monotonic()
            undisturbed = folder / program / "undisturbed"
            process = start_group(program, processes, undisturbed)
            out, err = process.communicate(timeout=LONGEST_SECONDS)
            if process.returncode != 0:
                raise RuntimeError(f"{program} failed without being killed: {out}{err}")
            references[program] = undisturbed / "runs" / kills.RUN, time.monotonic() - begin
        results.append(
            disturb(program, processes, count[program], *references[program], folder / program / str(count[program]))
        )
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(asdict(results[-1]))}\n")
        done = sum(len(each.kills) for each in results)
        print(f"{done}/{number}: {program}: {results[-1].kills}, {results[-1].outcome}", file=sys.stderr)
    return results


def read_results(path: Path) -> list[Result]:
    """Read the results of earlier calls."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the soak test and print its summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills, with those of earlier calls")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="programs to kill")
    parser.add_argument("--processes", type=int, default=2, help="processes of a run")
    parser.add_argument("--folder", type=Path, default=REPO / "build" / "soak-group", help="folder of runs and results")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = options.folder.resolve()
    try:
        soak(options.programs, options.processes, options.kills, folder)
    except KeyboardInterrupt:
        print("interrupted; continue with the same command", file=sys.stderr)
    summary = summarize(read_results(folder / "results.jsonl"))
    print(json.dumps({"commit": git_commit(), **summary}, indent=2))
    sys.exit(1 if summary["lost"] or summary["hung"] or summary["different"] else 0)


if __name__ == "__main__":
    main()
