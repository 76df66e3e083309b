"""Compare what PQN learns in 1, 2 and 4 processes that average gradients or weights, at the same number of steps.

    python -m benchmarks.pqn_processes --games Catch Snake --seeds 1 2 3
    python -m benchmarks.pqn_processes --num-envs 32 --steps 60000 --results docs/results/pqn-small-rollouts.json
    python -m benchmarks.pqn_processes --games Breakout --steps 300000 --average-every rollout rollout-scaled \
        --results docs/results/pqn-breakout.json
    python -m benchmarks.pqn_processes --table             # the results so far, as a table in Markdown

All runs of a game have the same environments, rollouts, updates and steps in total; processes divide them. Results are
written after each run; the same command continues where it was interrupted. The runs are deleted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerokara.agents.benchmarking.atari_sets import SETS, env_id
from zerokara.agents.pqn import SPIN
from zerokara.core.config import UserError, run_main
from zerokara.core.machine import describe_machine, git_commit
from zerokara.core.metrics import read_metrics
from zerokara.core.processes.measuring import command, environment
from zerokara.core.report import read_json, write_json
from zerokara.envs.arcade import GAMES

RESULTS = Path("docs/results/pqn-processes.json")
AVERAGES = {
    "minibatch": ("--average-every", "minibatch"),
    "rollout": ("--average-every", "rollout", "--no-scale-learning-rate"),
    "rollout-scaled": ("--average-every", "rollout"),
}
# As in the test that PQN learns Catch, with more updates per step and shorter schedules.
SETTINGS = (
    *("--rollout-steps", "16", "--num-minibatches", "16", "--learning-rate", "5e-4", "--backbone", "der"),
    *("--hidden-units", "256", "--final-learning-rate", "1e-5", "--no-capture-video", "--eval-episodes", "30"),
    *("--device", "cpu", "--threads", "1", "--precision", "float32", "--compile", "off", "--quiet"),
)


def plan(
    games: Sequence[str], processes: Sequence[int], seeds: Sequence[int], averages: Sequence[str] = tuple(AVERAGES)
) -> dict[str, tuple[str, int, str, int]]:
    """Return the runs by key: game, number of processes, what they average, and seed.

    With one process, all ways of averaging are the same. Seeds come first, so that an interrupted comparison is even.
    """
    ways = [(number, every) for number in processes for every in (averages if number > 1 else ("minibatch",))]
    cells = [(game, number, every, seed) for game in games for seed in seeds for number, every in ways]
    return {" ".join(map(str, cell)): cell for cell in cells}


def env_of(game: str) -> str:
    """Return the environment of a game.

    Raises:
        UserError: there is no such game.
    """
    if f"zerokara/{game}-v0" in GAMES:
        return f"zerokara/{game}-v0"
    if game in SETS["atari-57"]:
        return env_id(game)
    raise UserError(f"There is no game {game!r}: give an arcade game (Catch) or an Atari game (Breakout).")


def arguments_of(game: str, every: str, seed: int, steps: int, num_envs: int) -> list[str]:
    """Return the command line of a run: epsilon and learning rate fall during five and nine tenths of it."""
    lengths = {"total": steps, "epsilon-decay": steps // 2, "learning-rate-decay": steps * 9 // 10}
    return [
        *("--env", env_of(game), *SETTINGS, "--num-envs", str(num_envs), *AVERAGES[every]),
        *("--seed", str(seed), "--name", "run"),
        *(word for name, value in lengths.items() for word in (f"--{name}-steps", str(value))),
        *("--eval-every-steps", str(steps // 3), "--checkpoint-every-steps", str(steps)),
    ]


def measure(game: str, processes: int, every: str, seed: int, steps: int, num_envs: int) -> dict[str, Any]:
    """Train once, and return its mean returns by agent step, and the number of updates.

    Raises:
        UserError: the run failed.
    """
    words = command("agents.pqn", arguments_of(game, every, seed, steps, num_envs), processes)
    with tempfile.TemporaryDirectory() as folder:
        variables = {**environment(processes), **dict([SPIN])}
        done = subprocess.run([sys.executable, *words], cwd=folder, env=variables, stdout=sys.stderr, check=False)
        if done.returncode:
            raise UserError(f"The run {game} {processes} {every} {seed} ended with exit code {done.returncode}.")
        rows = read_metrics(Path(folder, "runs", "run", "metrics.jsonl"))
    returns = {str(row["step"]): round(row["eval/return"], 3) for row in rows if "eval/return" in row}
    return {"returns": returns, "updates": max(row.get("train/updates", 0) for row in rows)}


def table(results: Mapping[str, Any]) -> list[str]:
    """Return a table in Markdown: mean and values of the seeds of the last two evaluations."""
    groups: dict[str, list[Mapping[str, float]]] = {}
    for key, run in results["runs"].items():
        groups.setdefault(key.rpartition(" ")[0], []).append(run["returns"])
    lines = [
        "| game | processes | average every | seeds | two thirds of the steps | all steps |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in groups.items():
        game, number, every = name.split()
        cells = [format_returns([list(run.values())[index] for run in runs]) for index in (1, -1)]
        way = "-" if number == "1" else every
        lines.append(f"| {game} | {number} | {way} | {len(runs)} | {' | '.join(cells)} |")
    return lines


def format_returns(values: Sequence[float]) -> str:
    """Format the mean and the sorted values: "4.50 (4.20, 4.80)"."""
    return f"{statistics.fmean(values):.2f} ({', '.join(f'{value:.2f}' for value in sorted(values))})"


def main(argv: Sequence[str] | None = None) -> None:
    """Do the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["Catch"], help="arcade or Atari games")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds")
    parser.add_argument("--average-every", nargs="+", choices=AVERAGES, default=[*AVERAGES], help="what they average")
    parser.add_argument("--steps", type=int, default=240_000, help="agent steps of a run, in all processes together")
    parser.add_argument("--num-envs", type=int, default=128, help="environments of a run, in all processes together")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--table", action="store_true", help="print the results so far, and measure nothing")
    options = parser.parse_args(argv)
    for game in options.games:
        env_of(game)  # an unknown game is refused before the first run
    settings = {"steps": options.steps, "num_envs": options.num_envs, "settings": list(SETTINGS)}
    results: dict[str, Any] = {**settings, "runs": {}}
    if options.results.exists():
        results = read_json(options.results, steps=int, num_envs=int, settings=list, runs=dict)
        if not options.table and any(results[name] != value for name, value in settings.items()):
            raise UserError(f"{options.results} has runs with other settings: give another file by --results.")
    cells = plan(options.games, options.processes, options.seeds, options.average_every)
    for key, cell in ({} if options.table else cells).items():
        if key not in results["runs"]:
            print(key, file=sys.stderr, flush=True)
            results["runs"][key] = {**measure(*cell, options.steps, options.num_envs), "commit": git_commit()}
            write_json(options.results, {**results, "machine": describe_machine()})
    print("\n".join(table(results)))


if __name__ == "__main__":
    run_main(main)
