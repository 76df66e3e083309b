"""Training steps/s of our DQN and of Stable-Baselines3's on the same work, alternately, in one process.

    python benchmarks/dqn_against_sb3.py --batch-size 32 --train-every 4
    python benchmarks/dqn_against_sb3.py --batch-size 256 --train-every 32

The same game, 8 environments, the paper's network without dueling or double, 1-step returns, Adam, replay of 50,000.
Both learn from the start of what is timed; a stretch of ours and one of theirs take turns, and medians are compared.
Needs the extra `bench`. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch

from agents.config import Config
from agents.dqn import Training, choose_compute
from core.config import entry
from core.distributed import World
from core.run import Run


def ours(arguments: argparse.Namespace, folder: Path) -> Training:
    """Our training loop, warmed up until it learns."""
    config = Config(
        env=arguments.env,
        num_envs=8,
        backbone="nature",
        hidden_units=512,
        dueling=False,
        double=False,
        n_step=1,
        batch_size=arguments.batch_size,
        train_every_steps=arguments.train_every,
        warmup_steps=1_000,
        replay_capacity=50_000,
        learning_rate=1e-4,
        epsilon_steps=1,  # both act with their network at every step
        threads=arguments.threads,
    )
    run = Run(config, kind="dqn", name="ours", resume=False, quiet=True, root=folder)
    compute = choose_compute(config, World())
    training = Training(config, run, compute, World())
    training.obs = training.env.reset(1)
    while training.step < 1_500:
        training.turn()
    return training


def theirs(arguments: argparse.Namespace) -> object:
    """Stable-Baselines3's DQN with the same settings, warmed up likewise."""
    import ale_py  # noqa: F401  (registers its games)
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    wrappers = {"terminal_on_life_loss": False, "clip_reward": True}
    env = VecFrameStack(
        make_atari_env(
            arguments.env.replace("ALE/", "").replace("-v5", "NoFrameskip-v4"), 8, 1, wrapper_kwargs=wrappers
        ),
        4,
    )
    model = DQN(
        "CnnPolicy",
        env,
        batch_size=arguments.batch_size,
        train_freq=max(1, arguments.train_every // 8),
        gradient_steps=max(1, 8 // arguments.train_every),
        learning_starts=1_000,
        buffer_size=50_000,
        learning_rate=1e-4,
        exploration_fraction=1e-6,
        exploration_final_eps=0.01,
        target_update_interval=4_000,
        seed=1,
    )
    model.learn(1_500)
    return model


def main() -> None:
    """Time both, alternately."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="ALE/Pong-v5", help="an Atari game")
    parser.add_argument("--batch-size", type=int, default=32, help="transitions in an update")
    parser.add_argument(
        "--train-every", type=int, default=4, help="agent steps for each update, 8 divided by it or a multiple"
    )
    parser.add_argument("--steps", type=int, default=1_024, help="agent steps of one stretch")
    parser.add_argument("--repeats", type=int, default=5, help="stretches of each side")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both, 0 for all cores")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    with tempfile.TemporaryDirectory() as folder:
        training = ours(arguments, Path(folder))
        model = theirs(arguments)
        rates: dict[str, list[float]] = {"ours": [], "stable_baselines3": []}
        for _ in range(arguments.repeats):
            began, first = time.perf_counter(), training.step
            while training.step - first < arguments.steps:
                training.turn()
            rates["ours"].append((training.step - first) / (time.perf_counter() - began))
            began = time.perf_counter()
            model.learn(arguments.steps, reset_num_timesteps=False)  # type: ignore[attr-defined]
            rates["stable_baselines3"].append(arguments.steps / (time.perf_counter() - began))
        medians = {side: statistics.median(values) for side, values in rates.items()}
        print(
            json.dumps(
                {
                    "what": "training steps/s",
                    "arguments": vars(arguments),
                    "threads": torch.get_num_threads(),
                    "compute": training.compute.reason,
                    "steps_per_s": {side: [round(v, 1) for v in values] for side, values in rates.items()},
                    "median": {side: round(value, 1) for side, value in medians.items()},
                    "ratio": round(medians["ours"] / medians["stable_baselines3"], 2),
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    entry(main)
