"""Compare the training speed of DQN variants and PQN with eager implementations and with the emulators. Prints JSON.

    python -m benchmarks.family rainbow        # training steps/s at the paper's settings, against benchmarks/eager.py
    python -m benchmarks.family btr            # the same for Beyond the Rainbow
    python -m benchmarks.family prioritized    # training steps/s of prioritized against uniform replay
    python -m benchmarks.family pqn            # steps/s during training, against ale-py's vector environment
    python -m benchmarks.family presets        # training steps/s of every preset except btr

Each side runs in its own process (benchmarks/alternating.py) and trains for a while; then the sides are timed
alternately. All settings are those of the preset, except that the replay buffer holds 20,000 transitions (the eager
implementation would need 56 GB for a million) and learning starts after 1,024 steps.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from benchmarks import ale, alternating
from benchmarks.eager import Peer
from benchmarks.result import print_result
from zerokara import envs
from zerokara.agents import dqn, pqn
from zerokara.agents.configs import pqn as pqn_config
from zerokara.agents.configs.dqn import PRESETS, Config
from zerokara.agents.training.start import Resources, make_env
from zerokara.core.compute import TrainStep
from zerokara.core.config import run_main
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.training_program import choose_compute

AnyConfig = TypeVar("AnyConfig", Config, pqn_config.Config)
Training = dqn.Training | pqn.Training


def settings(preset: str, arguments: argparse.Namespace, **changes: Any) -> Config:
    """Create the config of a preset, with a small replay buffer and an early start of learning."""
    small = {"replay_capacity": 20_000, "learning_starts": 1_024, "env": arguments.env, "threads": arguments.threads}
    return Config(**{**PRESETS[preset], "preset": preset, **small, **changes})


def make_resources(
    config: AnyConfig, probe_step: Callable[[AnyConfig, Resources, int], Callable[[], object]], batch_size: int
) -> Resources:
    """Create the environments and choose the hardware settings, as at the start of a run."""
    env, world = make_env(config, World()), World()
    timed = TrainStep(lambda compute, size: probe_step(config, Resources(env, compute, world), size), batch_size)
    return Resources(env, choose_compute(config, world, timed), world)


def trained(config: Config) -> tuple[alternating.RunSteps, str]:
    """Create zerokara's DQN."""
    return make_stepper(config, make_resources(config, dqn.probe_step, config.batch_size), dqn.Training)


def make_stepper(
    config: AnyConfig, resources: Resources, make_training: Callable[[AnyConfig, Run, Resources], Training]
) -> tuple[alternating.RunSteps, str]:
    """Create a training loop. Returns the stepping function and a description of the hardware."""
    temporary = tempfile.TemporaryDirectory()
    run = Run(config, kind="benchmark", name="ours", resume=False, quiet=True, root=Path(temporary.name))
    training = make_training(config, run, resources)
    training.obs = training.env.reset(1)

    def run_steps(steps: int) -> None:
        assert Path(temporary.name).is_dir()  # it is removed when nothing refers to `temporary` any more
        end = training.step + steps
        while training.step < end:
            training.iterate()

    return run_steps, resources.compute.reason


def make_preset(preset: str, arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    """Create zerokara's training loop of a preset."""
    return trained(settings(preset, arguments))


def eager(arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    """Create the eager implementation with the same settings."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    random.seed(1)
    return Peer(settings(arguments.what, arguments)).run_steps, f"float32, eager, {torch.get_num_threads()} threads"


def uniform(arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    """Create the training loop of the preset `prioritized` with uniform sampling."""
    return trained(settings("prioritized", arguments, per_alpha=0.0))


def pqn_settings(arguments: argparse.Namespace) -> pqn_config.Config:
    """Create the config of PQN's preset `paper`."""
    paper = {**pqn_config.PRESETS["paper"], "preset": "paper", "env": arguments.env, "threads": arguments.threads}
    return pqn_config.Config(**paper)


def parallel(arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    """Create zerokara's PQN."""
    config = pqn_settings(arguments)
    batch_size = config.rollout_steps * config.num_envs // config.num_minibatches
    return make_stepper(config, make_resources(config, pqn.probe_step, batch_size), pqn.Training)


def emulators(arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    """Create ale-py's vector environment with the settings of PQN and random actions."""
    config = pqn_settings(arguments)
    ours = envs.make(config.env, 1, **config.env_settings())
    env = ale.make_ale_env(config.env, config.num_envs, ours.settings)
    actions = ours.num_actions
    ours.close()
    env.reset(seed=0)
    rng = np.random.default_rng(0)

    def run_steps(steps: int) -> None:
        ale.play(env, rng.integers(actions, size=(steps // config.num_envs, config.num_envs)))

    return run_steps, f"{config.num_envs} environments"


class Comparison(NamedTuple):
    """Sides of a comparison, with the steps before the timing and the steps of one timed interval."""

    what: str
    sides: Mapping[str, alternating.Side]
    learn_first: int
    steps: int


COMPARISONS = {
    "rainbow": Comparison("training steps/s", {"ours": partial(make_preset, "rainbow"), "eager": eager}, 1_400, 200),
    "btr": Comparison("training steps/s", {"ours": partial(make_preset, "btr"), "eager": eager}, 1_280, 192),
    "prioritized": Comparison(
        "training steps/s", {"prioritized": partial(make_preset, "prioritized"), "uniform": uniform}, 3_000, 800
    ),
    "pqn": Comparison("steps/s", {"pqn": parallel, "ale_py": emulators}, 4_096, 8_192),
    "presets": Comparison(
        "training steps/s", {name: partial(make_preset, name) for name in PRESETS if name != "btr"}, 1_280, 192
    ),
}
OLD_NAMES = {"prioritised": "prioritized"}  # accepted on the command line


def main() -> None:
    """Parse the arguments, time the sides of one comparison, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, comparison in COMPARISONS.items():
        command = commands.add_parser(name, aliases=[old for old, new in OLD_NAMES.items() if new == name])
        command.add_argument("--env", default="ALE/Pong-v5", help="an Atari game")
        alternating.add_arguments(command, learn_first=comparison.learn_first, steps=comparison.steps)
    arguments = parser.parse_args()
    arguments.what = OLD_NAMES.get(arguments.what, arguments.what)
    comparison = COMPARISONS[arguments.what]
    if arguments.what == "pqn":
        os.environ.setdefault(*pqn.SPIN)  # as agents.pqn does; the emulators alone do not use OpenMP threads
    figures = alternating.alternate(comparison.sides, arguments)
    print_result({"what": comparison.what, **figures})


if __name__ == "__main__":
    run_main(main)
