"""Mutation test: change the code of the training loops at random places, and check that the tests notice.

    python -m scripts.mutants --list                 # print the drawn mutants, as differences of one line
    python -m scripts.mutants                        # run each of them against the tests of its file
    python -m scripts.mutants --again                # after new tests: run those again that survived
    python -m scripts.mutants agents/dqn.py -n 40    # mutants of one file

A mutant is the code with one small change, for example `<` instead of `<=`, a deleted statement or a dropped argument.
It is killed if a test fails, if its modules cannot be imported, or if it takes more than twice as long as the original.
One that survives shows a missing test, or is equivalent: its results are those of the original. Equivalent mutants are
listed with the reason in scripts/equivalent_mutants.json and are not run.

The mutants run in copies of the repository (scripts/mutation_runs.py). Results are appended to a file of JSON lines, so
an interrupted run continues where it was. The last line of the output is a summary. The exit status is 1 if fewer than
90% of the mutants that are not equivalent were killed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.mutation_runs import Pool
from scripts.mutation_sites import KEY, Mutant, find_mutants

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENTS = Path(__file__).with_name("equivalent_mutants.json")
GOAL = 0.9  # fraction of the mutants that must be killed
EXTRA_CPU_SECONDS = 15  # a mutant may take twice as long as the original, and this

_Q, _A = "tests/agents/qlearning", "tests/agents/actors"
# Source file: the tests that must kill its mutants, fast ones first. Tests that train for long are left out.
TESTS: dict[str, tuple[str, ...]] = {
    "agents/dqn.py": (
        f"{_Q}/test_targets_and_losses.py",
        "tests/agents/test_programs.py",
        "tests/agents/test_fire.py",
        "tests/agents/test_dqn_steps.py",
        "tests/agents/configs/test_reference_values.py",
        f"{_Q}/test_learner.py",
        "tests/agents/test_wiring_dqn.py",
    ),
    "agents/pqn.py": (
        f"{_Q}/test_targets_and_losses.py",
        "tests/agents/test_programs.py",
        "tests/agents/test_fire.py",
        "tests/agents/test_wiring_pqn.py",
        "tests/agents/test_pqn.py",
        "tests/agents/test_pqn_lstm.py",
    ),
    "agents/stream.py": (
        "tests/agents/test_programs.py",
        "tests/agents/test_wiring_stream.py",
        "tests/agents/test_stream.py",
    ),
    "agents/actors/actor.py": (f"{_A}/test_actor.py", f"{_A}/test_feed.py"),
    "agents/actors/feed.py": (f"{_A}/test_feed.py", f"{_A}/test_feed_runs.py"),
    "agents/qlearning/heads.py": (
        f"{_Q}/test_targets_and_losses.py",
        "tests/agents/configs/test_reference_values.py",
        f"{_Q}/test_family.py",
    ),
    "agents/qlearning/learner.py": (f"{_Q}/test_learner_graph.py", f"{_Q}/test_learner.py", f"{_Q}/test_family.py"),
    "agents/qlearning/network.py": (
        f"{_Q}/test_network.py",
        f"{_Q}/test_newer_methods.py",
        "tests/agents/test_wiring_stream.py",
        f"{_Q}/test_spr.py",
        "tests/agents/test_pqn_lstm.py",
        f"{_Q}/test_family.py",
    ),
    "agents/qlearning/normalization.py": (f"{_Q}/test_normalization.py", "tests/agents/test_wiring_stream.py"),
    "agents/qlearning/replay.py": (
        f"{_Q}/test_replay.py",
        f"{_Q}/test_replay_files.py",
        f"{_Q}/test_spr.py",
        f"{_A}/test_feed.py",
    ),
    "agents/qlearning/replay_files.py": (f"{_Q}/test_replay_files.py", f"{_Q}/test_replay_processes.py"),
    "agents/qlearning/prioritized_replay.py": (f"{_Q}/test_prioritized_replay.py", f"{_A}/test_feed.py"),
    "agents/qlearning/policy.py": (
        f"{_Q}/test_exploration.py",
        f"{_Q}/test_policy.py",
        "tests/agents/test_custom_backbone.py",
        "tests/agents/test_pqn_lstm.py",
    ),
    "agents/qlearning/schedules.py": (
        f"{_Q}/test_schedules.py",
        f"{_A}/test_actor.py",
        f"{_A}/test_feed.py",
        "tests/agents/configs/test_reference_values.py",
    ),
    "agents/qlearning/losses.py": (
        f"{_Q}/test_targets_and_losses.py",
        f"{_Q}/test_classification_targets.py",
        "tests/agents/configs/test_reference_values.py",
    ),
    "agents/qlearning/spr.py": (f"{_Q}/test_spr.py",),
    "agents/qlearning/traces.py": ("tests/agents/test_wiring_stream.py", "tests/agents/test_stream.py"),
    "agents/training/session.py": (
        "tests/agents/test_dqn_steps.py",
        "tests/agents/training/test_session.py",
        "tests/agents/training/test_end_of_run.py",
        "tests/agents/test_wiring_dqn.py",
    ),
    "agents/training/replay_buffer.py": (
        "tests/agents/training/test_report.py",
        "tests/agents/test_fire.py",
        f"{_A}/test_actor.py",
        "tests/agents/test_dqn_steps.py",
        f"{_A}/test_feed.py",
        "tests/agents/test_wiring_dqn.py",
    ),
    "agents/training/best_agent.py": ("tests/agents/training/test_best_agent.py",),
    "agents/training/evaluation.py": ("tests/agents/training/test_evaluation.py",),
    "agents/training/parts.py": ("tests/agents/training/test_session.py",),
    "agents/training/start.py": ("tests/agents/training/test_start.py", "tests/agents/test_programs.py"),
    "core/epoch_order.py": ("tests/core/test_epoch_order.py",),
    "core/training_loop.py": ("tests/core/test_training_loop.py", "tests/vision/training/test_epochs.py"),
    "core/training_program.py": ("tests/core/test_training_program.py",),
    "generative/dcgan.py": (
        "tests/generative/test_dcgan_losses.py",
        "tests/generative/test_dcgan_loop.py",
        "tests/generative/test_wiring_dcgan.py",
        "tests/generative/gan/test_learner.py",
    ),
    "generative/gan/learner.py": (
        "tests/generative/gan/test_learner_metrics.py",
        "tests/generative/gan/test_ada.py",
        "tests/generative/test_dcgan_loop.py",
        "tests/generative/gan/test_session.py",
        "tests/generative/test_wiring_dcgan.py",
        "tests/generative/gan/test_learner.py",
    ),
    "generative/gan/session.py": ("tests/generative/test_dcgan_loop.py", "tests/generative/gan/test_session.py"),
    "generative/scoring/evaluation.py": (
        "tests/generative/scoring/test_evaluation.py",
        "tests/generative/test_dcgan_loop.py",
        "tests/generative/test_wiring_dcgan.py",
        "tests/generative/test_dcgan.py",
    ),
    "generative/scoring/evaluator.py": (
        "tests/generative/scoring/test_evaluator.py",
        "tests/generative/test_wiring_dcgan.py",
    ),
    "vision/training/epochs.py": ("tests/vision/training/test_epochs.py",),
    "vision/training/supervised.py": ("tests/vision/training/test_supervised.py",),
}


def draw(mutants: Mapping[str, Sequence[Mutant]], number: int, seed: int) -> list[Mutant]:
    """Draw mutants, from each file in proportion to the number of mutants that it has."""
    total = sum(map(len, mutants.values()))
    number = min(number, total)
    exact = {file: number * len(of_file) / max(1, total) for file, of_file in mutants.items()}
    counts = {file: int(count) for file, count in exact.items()}
    by_remainder = sorted(exact, key=lambda file: counts[file] - exact[file])
    for file in by_remainder[: number - sum(counts.values())]:
        counts[file] += 1
    rng = random.Random(seed)
    return [mutant for file, of_file in mutants.items() for mutant in sorted(rng.sample(of_file, counts[file]))]


def read_equivalents(path: Path) -> dict[tuple[str, ...], str]:
    """Read the reasons why mutants are equivalent, by their `key`."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {tuple(entry[field] for field in KEY): entry["reason"] for entry in entries}


def describe(mutant: Mutant, comment: str = "") -> str:
    """Describe a mutant as a difference of one line."""
    head = f"{mutant.file}:{mutant.line} {mutant.function}: {mutant.operator}{comment}"
    return f"{head}\n  - {mutant.original}\n  + {mutant.mutated}"


def measure(pool: Pool, tests: Mapping[str, Sequence[str]], files: Iterable[str]) -> dict[str, float]:
    """Run the tests of each file with the original code. Return their CPU seconds.

    Raises:
        SystemExit: a test fails.
    """
    seconds: dict[str, float] = {}
    waiting = list(files)
    while waiting or pool.running:
        if waiting and pool.free:
            file = waiting.pop(0)
            pool.start(file, tests[file], cpu_limit=3600)
            continue
        job, outcome = pool.wait()
        if outcome.status:
            sys.exit(f"error: the tests of {job.name} fail with the original code: {outcome.failed}")
        seconds[job.name] = outcome.cpu_seconds
        print(f"{job.name}: its tests pass in {outcome.cpu_seconds} s of CPU time", file=sys.stderr)
    return seconds


def run(mutants: Sequence[Mutant], root: Path, tests: Mapping[str, Sequence[str]], workers: int, out: Path) -> None:
    """Run the tests of mutants. Print a line with the result of each, and append it to the file `out`."""
    waiting = {mutant.id: mutant for mutant in mutants}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, out.open("a", encoding="utf-8") as lines:
        pool = Pool(root, Path(folder), workers)
        seconds = measure(pool, tests, sorted({mutant.file for mutant in mutants}))
        while waiting or pool.running:
            if waiting and pool.free:
                mutant = waiting.pop(next(iter(waiting)))
                pool.start(mutant.id, tests[mutant.file], EXTRA_CPU_SECONDS + round(2 * seconds[mutant.file]), mutant)
                continue
            job, outcome = pool.wait()
            assert job.mutant is not None
            result = {"result": "killed" if outcome.status else "survived", **outcome._asdict()}
            line = json.dumps({**job.mutant.to_dict(), **result})
            print(line, flush=True)
            print(line, file=lines, flush=True)


def read_results(out: Path) -> dict[str, str]:
    """Read the last result, killed or survived, of each mutant, by its `id`."""
    lines = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    return {line["id"]: line["result"] for line in lines}


def summarize(mutants: Sequence[Mutant], results: Mapping[str, str], drawn: int) -> dict[str, Any]:
    """Count the killed and the surviving ones among the mutants that are not equivalent."""
    killed, survived = ([m for m in mutants if results.get(m.id) == result] for result in ("killed", "survived"))
    return {
        "drawn": drawn,
        "equivalent": drawn - len(mutants),
        "killed": len(killed),
        "survived": len(survived),
        "not_run": len(mutants) - len(killed) - len(survived),
        "killed_fraction": round(len(killed) / max(1, len(killed) + len(survived)), 3),
    }


def main(
    argv: Sequence[str] | None = None,
    root: Path = ROOT,
    tests: Mapping[str, Sequence[str]] = TESTS,
    equivalent: Path = EQUIVALENTS,
) -> int:
    """Draw mutants, list or run them, and print a summary. Return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("files", nargs="*", help="source files; without any, all of the table TESTS")
    parser.add_argument("-n", "--number", type=int, default=200, help="number of mutants")
    parser.add_argument("--seed", type=int, default=19, help="seed of the draw")
    parser.add_argument("--list", action="store_true", help="print the drawn mutants without running them")
    parser.add_argument("--again", action="store_true", help="run those again that survived")
    parser.add_argument("--workers", type=int, default=2, help="mutants that run at the same time")
    parser.add_argument("--out", type=Path, help="file of results; default build/mutants-<seed>.jsonl")
    arguments = parser.parse_args(argv)
    files = arguments.files or list(tests)
    for file in files:
        if file not in tests or not (root / file).is_file():
            sys.exit(f"error: {file} is missing, or not in the table TESTS of scripts/mutants.py: correct the table.")

    sites = {file: find_mutants(file, (root / file).read_bytes()) for file in files}
    drawn, equivalents = draw(sites, arguments.number, arguments.seed), read_equivalents(equivalent)
    print(f"seed {arguments.seed}: {len(drawn)} of {sum(map(len, sites.values()))} mutants", file=sys.stderr)
    if arguments.list:
        for mutant in drawn:
            print(describe(mutant, f" (equivalent: {equivalents[mutant.key]})" if mutant.key in equivalents else ""))
        return 0

    out = arguments.out or root / "build" / f"mutants-{arguments.seed}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()
    mutants, results = [mutant for mutant in drawn if mutant.key not in equivalents], read_results(out)
    due = {None, "survived"} if arguments.again else {None}
    waiting = [mutant for mutant in mutants if results.get(mutant.id) in due]
    if waiting:
        run(waiting, root, tests, arguments.workers, out)
        results = read_results(out)
    for mutant in mutants:
        if results.get(mutant.id) == "survived":
            print(describe(mutant, " (survived)"))
    summary = summarize(mutants, results, len(drawn))
    print(json.dumps({"seed": arguments.seed, **summary}))
    return int(summary["killed_fraction"] < GOAL)


if __name__ == "__main__":
    sys.exit(main())
