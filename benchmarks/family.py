"""What the family costs: presets beside the peers' eager style, priorities beside none, PQN beside its emulators; JSON.

    python -m benchmarks.family rainbow        # training steps/s at the paper's settings, beside benchmarks/eager.py
    python -m benchmarks.family btr
    python -m benchmarks.family prioritised    # training steps/s, drawn by priority beside drawn all alike
    python -m benchmarks.family pqn            # steps/s while learning, beside ale-py's vector environment alone
    python -m benchmarks.family presets        # training steps/s of every preset but btr

By turns, in a process for each side (benchmarks/turns.py), after each has learnt for a while. The replay holds 20,000
transitions in both, because the peers' million would take 56 GB, and learning begins after 1,024 steps; nothing else
departs from the preset.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import ale, turns
from benchmarks.eager import Peer
from zerokara import envs
from zerokara.agents import dqn, pqn
from zerokara.agents.configs import pqn as pqn_config
from zerokara.agents.configs.dqn import PRESETS, Config
from zerokara.core.compute import Compute
from zerokara.core.config import run_main
from zerokara.core.distributed import World
from zerokara.core.machine import describe_machine
from zerokara.core.run import Run

Session = dqn.Training | pqn.Training


def settings(preset: str, arguments: argparse.Namespace, **changes: Any) -> Config:
    """A preset with a small replay and a short warm-up."""
    small = {"replay_capacity": 20_000, "learning_starts": 1_024, "env": arguments.env, "threads": arguments.threads}
    return Config(**{**PRESETS[preset], "preset": preset, **small, **changes})


def trained(config: Config) -> tuple[turns.Go, str]:
    """Our training loop."""
    folder = tempfile.TemporaryDirectory()
    run = Run(config, kind="dqn", name="ours", resume=False, quiet=True, root=Path(folder.name))
    compute = dqn.choose_compute(config, World())
    return going(dqn.Training(config, run, compute, World()), compute, folder)


def going(training: Session, compute: Compute, folder: object = None) -> tuple[turns.Go, str]:
    """Turns of the loop; the folder lives as long as what writes there."""
    training.obs = training.env.reset(1)

    def go(steps: int, folder: object = folder) -> None:
        end = training.step + steps
        while training.step < end:
            training.iterate()

    return go, compute.reason


def of_preset(preset: str, arguments: argparse.Namespace) -> tuple[turns.Go, str]:
    """Any preset of ours."""
    return trained(settings(preset, arguments))


def eager(arguments: argparse.Namespace) -> tuple[turns.Go, str]:
    """The same as the peers write it."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    random.seed(1)
    return Peer(settings(arguments.what, arguments)).go, f"float32, eager, {torch.get_num_threads()} threads"


def uniform(arguments: argparse.Namespace) -> tuple[turns.Go, str]:
    """Prioritised DQN with a replay that draws all alike."""
    return trained(settings("prioritized", arguments, per_alpha=0.0))


def pqn_settings(arguments: argparse.Namespace) -> pqn_config.Config:
    """PQN as published."""
    paper = {**pqn_config.PRESETS["paper"], "preset": "paper", "env": arguments.env, "threads": arguments.threads}
    return pqn_config.Config(**paper)


def parallel(arguments: argparse.Namespace) -> tuple[turns.Go, str]:
    """Our PQN."""
    config = pqn_settings(arguments)
    compute = pqn.choose_compute(config, World())
    return going(pqn.Training(config, compute, World()), compute)


def emulators(arguments: argparse.Namespace) -> tuple[turns.Go, str]:
    """ale-py's vector environment as PQN has it, under random actions."""
    config = pqn_settings(arguments)
    ours = envs.make(config.env, 1, **config.env_settings())
    env = ale.alone(config.env, config.num_envs, ours.settings)
    actions = ours.num_actions
    ours.close()
    env.reset(seed=0)
    rng = np.random.default_rng(0)

    def go(steps: int) -> None:
        ale.play(env, rng.integers(actions, size=(steps // config.num_envs, config.num_envs)))

    return go, f"{config.num_envs} environments"


class Comparison(NamedTuple):
    """Sides, and for how many steps they are looked at."""

    what: str
    sides: Mapping[str, turns.Side]
    learn_first: int
    steps: int


COMPARISONS = {
    "rainbow": Comparison("training steps/s", {"ours": partial(of_preset, "rainbow"), "eager": eager}, 1_400, 200),
    "btr": Comparison("training steps/s", {"ours": partial(of_preset, "btr"), "eager": eager}, 1_280, 192),
    "prioritised": Comparison(
        "training steps/s", {"prioritised": partial(of_preset, "prioritized"), "uniform": uniform}, 3_000, 800
    ),
    "pqn": Comparison("steps/s", {"pqn": parallel, "ale_py": emulators}, 4_096, 8_192),
    "presets": Comparison(
        "training steps/s", {name: partial(of_preset, name) for name in PRESETS if name != "btr"}, 1_280, 192
    ),
}


def main() -> None:
    """Time both sides of one comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, comparison in COMPARISONS.items():
        command = commands.add_parser(name)
        command.add_argument("--env", default="ALE/Pong-v5", help="an Atari game")
        turns.add_arguments(command, learn_first=comparison.learn_first, steps=comparison.steps)
    arguments = parser.parse_args()
    comparison = COMPARISONS[arguments.what]
    if arguments.what == "pqn":
        os.environ.setdefault(*pqn.SPIN)  # as the program has it; its emulators alone have no such threads
    figures = turns.take_turns(comparison.sides, arguments)
    print(json.dumps({"what": comparison.what, "machine": describe_machine(), **figures}, indent=2))


if __name__ == "__main__":
    run_main(main)
