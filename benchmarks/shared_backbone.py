"""Compare DQN with a backbone pretrained as a GAN discriminator to DQN trained from scratch. Prints JSON.

    python -m benchmarks.shared_backbone
    python -m benchmarks.shared_backbone --env zerokara/Shooter-v0 --seeds 1 2 3 4 5 --total-steps 100000

For each seed, a DCGAN is trained on stacks of four frames of a random policy. Its discriminator has the backbone
`dcgan`, no normalization, and R1 regularization. Then the same agent is trained twice with the same seed and backbone:
once from the discriminator's weights and once from random weights. The result has the mean unclipped return at every
evaluation, its mean over training, and the step of the first evaluation that reaches the target (--aim). Runs are saved
in runs/ and resumed if interrupted. The frames used by the discriminator are not counted as agent steps, because they
come from a random policy; their number is in the result.
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

from benchmarks.result import print_result
from zerokara.core.config import UserError, run_main
from zerokara.core.metrics import read_metrics

# At full width, the discriminator needs a hundred times the arithmetic of the agent's default backbone.
WIDTH = "0.25"
GENERATOR_ARGS = (
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
    ),  # compilation takes longer than it saves for so few updates
)
SIDES = ("shared", "fresh")


def run(module: str, name: str, extra_args: Sequence[str]) -> Path:
    """Start a run from the command line, or resume it. Returns its folder."""
    folder = Path("runs") / name
    resume_args = ["--resume"] if (folder / "config.json").exists() else []
    command = [sys.executable, "-m", f"zerokara.{module}", "--name", name, *extra_args, *resume_args]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """Read step and mean unclipped return of every evaluation of a run.

    Raises:
        UserError: the run has no evaluation, or its metrics are damaged.
    """
    lines = read_metrics(folder / "metrics.jsonl")
    found = [(line["step"], line["eval/return"]) for line in lines if "eval/return" in line]
    if not found:
        raise UserError(f"{folder} has no evaluation: --total-steps must be larger than --eval-every-steps.")
    return found


def summarize(points: Sequence[tuple[int, float]], aim: float | None) -> dict[str, Any]:
    """Summarize the evaluations of a run."""
    reached = [step for step, value in points if aim is not None and value >= aim]
    return {
        "evaluations": [[step, round(value, 3)] for step, value in points],
        "mean_over_training": statistics.mean(value for _, value in points),
        "last": points[-1][1],
        "steps_to_aim": reached[0] if reached else None,
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one discriminator and two agents per seed, and compare the agents."""
    game = arguments.env.split("/")[-1]
    machine = ["--threads", str(arguments.threads)]
    results = []
    for seed in arguments.seeds:
        seeded = ["--seed", str(seed), *machine]
        generator_args = ["--data", f"frames:{arguments.env}", "--frames", str(arguments.frames)]
        generator_args += [
            "--updates",
            str(arguments.updates),
            "--discriminator-width",
            WIDTH,
            *GENERATOR_ARGS,
            *PENALTY,
            *seeded,
        ]
        discriminator_run = run("generative.dcgan", f"eye-{game}-{seed}", generator_args)
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
            start = ["--pretrained-backbone", str(discriminator_run)] if side == "shared" else []
            folder = run("agents.dqn", f"eye-{game}-{side}-{seed}", [*agent, *start])
            found[side] = summarize(evaluations(folder), arguments.aim)
        print(json.dumps(found), file=sys.stderr)
        results.append(found)
    gains = [one["shared"]["mean_over_training"] - one["fresh"]["mean_over_training"] for one in results]
    return {
        "what": f"mean raw return on {arguments.env}, {arguments.games} episodes per evaluation",
        "arguments": vars(arguments),
        "trunk": f"dcgan of width {WIDTH}, no normalization",
        "frames_of_the_eye": arguments.frames,
        "seeds": results,
        "gain_of_mean_over_training": {
            "median": statistics.median(gains),
            "each": [round(gain, 3) for gain in gains],
            "deviation": statistics.stdev(gains) if len(gains) > 1 else None,
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, run the comparison, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="zerokara/Catch-v0", help="a game whose frames are 84x84")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--frames", type=int, default=20_000, help="frame stacks to train the discriminator on")
    parser.add_argument("--updates", type=int, default=2_000, help="discriminator updates with batches of 64")
    parser.add_argument("--total-steps", type=int, default=40_000, help="steps of each agent")
    parser.add_argument("--eval-every-steps", type=int, default=4_000, help="steps between evaluations")
    parser.add_argument("--games", type=int, default=30, help="episodes per evaluation")
    parser.add_argument("--aim", type=float, default=None, help="target return")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    print_result(compare(parser.parse_args(argv)))


if __name__ == "__main__":
    run_main(main)
