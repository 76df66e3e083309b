"""Measure the wall-clock time until a DQN agent reaches a target return, with several seeds. Prints JSON.

    python -m benchmarks.learn pong                # ALE/Pong-v5 to a return of 18, three seeds
    python -m benchmarks.learn arcade --seeds 1    # each arcade game to 95% of the scripted expert's return

The time is that of the whole program, including start-up, hardware probe, compilation, evaluations and videos. A run
ends when the mean unclipped return of 30 full episodes at epsilon .001 reaches the target and 30 further episodes
confirm it. Runs are kept in runs/. If the benchmark is interrupted, finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import print_result
from zerokara.core.config import UserError, run_main
from zerokara.core.metrics import read_metrics
from zerokara.core.report import read_json
from zerokara.envs.arcade import GAMES, make


def expert_mean(game: str, games: int = 100) -> float:
    """Compute the mean return of the scripted expert over full episodes, one per environment."""
    env = make(game, games)
    env.reset(seed=0)
    return_N, done_N = np.zeros(games), np.zeros(games, bool)
    while not done_N.all():
        step = env.step(env.expert())
        return_N += np.where(done_N, 0, step.reward)
        done_N |= step.terminal | step.truncated
    return float(return_N.mean())


def run(env: str, seed: int, aim: float, extra_args: tuple[str, ...]) -> dict[str, Any]:
    """Run one training from the command line and summarize its metrics.

    Raises:
        UserError: the folder holds an unfinished run, whose time is unknown.
    """
    name = f"learn-{env.split('/')[-1]}-{seed}"
    folder = Path("runs") / name
    result = folder / "learn.json"
    if result.exists():
        return read_json(result, minutes=(int, float), reached=bool)
    if folder.exists():
        raise UserError(f"{folder} holds an interrupted run, so its time is unknown; remove it: rm -r {folder}.")
    command = [sys.executable, "-m", "zerokara.agents.dqn", "--env", env, "--seed", str(seed), "--name", name]
    command += ["--stop-at-return", str(aim), *extra_args]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    minutes = (time.perf_counter() - began) / 60
    lines = read_metrics(folder / "metrics.jsonl")
    confirmed = [line for line in lines if line.get("eval/return_confirmed", -np.inf) >= aim]
    summary = {
        "env": env,
        "seed": seed,
        "aim": aim,
        "reached": bool(confirmed),
        "minutes": round(minutes, 2),
        "steps": lines[-1]["step"],
        "evaluations": [[line["step"], round(line["eval/return"], 2)] for line in lines if "eval/return" in line],
        "confirmed": confirmed[-1]["eval/return_confirmed"] if confirmed else None,
        "games_cut": [confirmed[-1]["eval/cut"], confirmed[-1]["eval/cut_confirmed"]] if confirmed else None,
        "command": " ".join(["python", *command[1:]]),
    }
    result.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def main() -> None:
    """Parse the arguments, run all trainings one after another, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pong", "arcade"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--games", nargs="*", choices=tuple(GAMES), default=tuple(GAMES), help="arcade; default: all")
    arguments, extra_args = parser.parse_known_args()
    results = []
    for game in ("ALE/Pong-v5",) if arguments.what == "pong" else arguments.games:
        expert = None if arguments.what == "pong" else expert_mean(game)
        # Without videos, which are not needed here and take longer than these games.
        aim, settings = (18.0, ()) if expert is None else (round(0.95 * expert, 2), ("--no-capture-video",))
        runs = [run(game, seed, aim, (*settings, *extra_args)) for seed in arguments.seeds]
        minutes = [r["minutes"] if r["reached"] else float("inf") for r in runs]
        median = statistics.median(minutes)
        results.append(
            {
                "env": game,
                "expert": expert,
                "aim": aim,
                "median_minutes": median if np.isfinite(median) else None,
                "runs": runs,
            }
        )
    print_result({"what": "minutes to a target return", "games": results})


if __name__ == "__main__":
    run_main(main)
