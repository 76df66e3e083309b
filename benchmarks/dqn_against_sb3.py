"""Training steps/s of our DQN and of Stable-Baselines3's on the same work, alternately, in one call.

    python -m benchmarks.dqn_against_sb3 --batch-size 32 --train-every 4
    python -m benchmarks.dqn_against_sb3 --batch-size 256 --train-every 32

The same game, 8 environments, the paper's network without dueling or double, 1-step returns, Adam, replay of 50,000.
Each side has a process of its own (benchmarks/turns.py) and learns for a while before anything is timed; then a stretch
of ours and one of theirs take turns, and medians are compared. Needs the extra `bench`. Prints JSON.
"""

from __future__ import annotations

import argparse
import json

from benchmarks import family, turns
from zerokara.agents.configs.dqn import Config
from zerokara.core.config import run_main


def ours(arguments: argparse.Namespace) -> tuple[turns.Go, str]:
    """Our training loop."""
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
        learning_starts=1_000,
        replay_capacity=50_000,
        learning_rate=1e-4,
        epsilon_decay_steps=1,  # both act with their network at every step
        threads=arguments.threads,
    )
    return family.trained(config)


def theirs(arguments: argparse.Namespace) -> tuple[turns.Go, str]:
    """Stable-Baselines3's DQN with the same settings."""
    import ale_py  # noqa: F401  (registers its games)
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    wrappers = {"terminal_on_life_loss": False, "clip_reward": True}
    game = arguments.env.replace("ALE/", "").replace("-v5", "NoFrameskip-v4")
    model = DQN(
        "CnnPolicy",
        VecFrameStack(make_atari_env(game, 8, 1, wrapper_kwargs=wrappers), 4),
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
    started = False

    def go(steps: int) -> None:
        nonlocal started
        model.learn(steps, reset_num_timesteps=not started)
        started = True

    return go, f"{model.device}, {torch.get_num_threads()} threads"


def main() -> None:
    """Time both, alternately."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="ALE/Pong-v5", help="an Atari game")
    parser.add_argument("--batch-size", type=int, default=32, help="transitions in an update")
    parser.add_argument(
        "--train-every", type=int, default=4, help="agent steps for each update, 8 divided by it or a multiple"
    )
    turns.add_arguments(parser, learn_first=8_000, steps=1_024)
    figures = turns.take_turns({"ours": ours, "stable_baselines3": theirs}, parser.parse_args())
    print(json.dumps({"what": "training steps/s", **figures}, indent=2))


if __name__ == "__main__":
    run_main(main)
