"""What a discriminator's eye is worth to an agent: DQN that starts from it beside DQN from scratch; prints JSON.

    python benchmarks/shared_eye.py
    python benchmarks/shared_eye.py --env zerokara/Shooter-v0 --seeds 1 2 3 4 5 --total-steps 100000

For each seed a discriminator (trunk `dcgan`, without normalisation, with R1) learns to tell stacks of four frames of
random play from painted ones; then the same agent learns twice with the same seed and the same trunk, once with the
discriminator's weights to begin with and once with fresh ones. Compared are the mean raw returns of whole games at
every evaluation, their mean over training, and the step of the first evaluation that reaches the aim. Runs lie under
runs/ and go on where they were interrupted. Frames that the discriminator saw are not charged to the agent: they are of
random play, and their number stands in the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerokara.core.config import UserError, run_main
from zerokara.core.machine import describe_machine

# Full-width it takes a hundred times the arithmetic of the agent's usual eye.
WIDTH = "0.25"
PAINTER = (
    "--frame-stack",
    "4",
    "--discriminator-norm",
    "none",
    "--generator-width",
    "0.5",
    "--film-every-updates",
    "0",
)
PENALTY = ("--r1", "1", "--penalty-every-updates", "4")
AGENT = (
    *("--backbone", "dcgan", "--num-envs", "32", "--train-every-steps", "16", "--learning-starts", "2000"),
    *(
        "--learning-rate",
        "5e-4",
        "--no-capture-video",
        "--no-save-replay",
        "--compile",
        "off",
    ),  # so few updates never pay it
)
SIDES = ("shared", "fresh")


def run(module: str, name: str, words: Sequence[str]) -> Path:
    """The folder of a run as a person would start it, or go on with it where it was interrupted."""
    folder = Path("runs") / name
    going_on = ["--resume"] if (folder / "config.json").exists() else []
    command = [sys.executable, "-m", f"zerokara.{module}", "--name", name, *words, *going_on]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """Step and mean raw return of every evaluation of a run.

    Raises:
        UserError: it has none.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["eval/return"]) for line in lines if "eval/return" in line]
    if not found:
        raise UserError(f"{folder} was never evaluated: give a value of --total-steps above --eval-every-steps.")
    return found


def in_figures(points: Sequence[tuple[int, float]], aim: float | None) -> dict[str, Any]:
    """What is compared of a run."""
    reached = [step for step, value in points if aim is not None and value >= aim]
    return {
        "evaluations": [[step, round(value, 3)] for step, value in points],
        "mean_over_training": statistics.mean(value for _, value in points),
        "last": points[-1][1],
        "steps_to_aim": reached[0] if reached else None,
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train an eye and two agents for every seed."""
    game = arguments.env.split("/")[-1]
    machine = ["--threads", str(arguments.threads)]
    results = []
    for seed in arguments.seeds:
        seeded = ["--seed", str(seed), *machine]
        painter = ["--data", f"frames:{arguments.env}", "--frames", str(arguments.frames)]
        painter += ["--updates", str(arguments.updates), "--discriminator-width", WIDTH, *PAINTER, *PENALTY, *seeded]
        eye = run("generative.dcgan", f"eye-{game}-{seed}", painter)
        agent = [
            "--env",
            arguments.env,
            "--total-steps",
            str(arguments.total_steps),
            "--width-multiplier",
            WIDTH,
            *AGENT,
            *seeded,
        ]
        agent += ["--eval-every-steps", str(arguments.eval_every_steps), "--eval-episodes", str(arguments.games)]
        agent += ["--epsilon-decay-steps", str(max(1, arguments.total_steps // 4))]
        found: dict[str, Any] = {"seed": seed}
        for side in SIDES:
            start = ["--pretrained-backbone", str(eye)] if side == "shared" else []
            folder = run("agents.dqn", f"eye-{game}-{side}-{seed}", [*agent, *start])
            found[side] = in_figures(evaluations(folder), arguments.aim)
        print(json.dumps(found), file=sys.stderr)
        results.append(found)
    gains = [one["shared"]["mean_over_training"] - one["fresh"]["mean_over_training"] for one in results]
    return {
        "what": f"mean raw return on {arguments.env}, {arguments.games} games at each evaluation",
        "machine": describe_machine(),
        "arguments": vars(arguments),
        "trunk": f"dcgan of width {WIDTH}, no normalisation",
        "frames_of_the_eye": arguments.frames,
        "seeds": results,
        "gain_of_mean_over_training": {
            "median": statistics.median(gains),
            "each": [round(gain, 3) for gain in gains],
            "deviation": statistics.stdev(gains) if len(gains) > 1 else None,
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Run them all, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="zerokara/Catch-v0", help="a game whose frames are 84x84")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--frames", type=int, default=20_000, help="stacks of random play that the eye learns from")
    parser.add_argument("--updates", type=int, default=2_000, help="updates of the eye, 64 stacks each")
    parser.add_argument("--total-steps", type=int, default=40_000, help="steps of each agent")
    parser.add_argument("--eval-every-steps", type=int, default=4_000, help="steps between evaluations")
    parser.add_argument("--games", type=int, default=30, help="games of an evaluation")
    parser.add_argument("--aim", type=float, default=None, help="return whose first evaluation is noted")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores")
    print(json.dumps(compare(parser.parse_args(argv)), indent=2))


if __name__ == "__main__":
    run_main(main)
