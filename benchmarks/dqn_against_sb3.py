"""Compare training steps/s of zerokara's DQN and Stable-Baselines3's DQN with the same settings. Prints JSON.

    python -m benchmarks.dqn_against_sb3 --batch-size 32 --train-every 4
    python -m benchmarks.dqn_against_sb3 --batch-size 256 --train-every 32

Both use the same game, 8 environments, the Nature network without dueling and double Q-learning, 1-step returns, Adam,
and a replay buffer of 50,000 transitions. Each side runs in its own process (benchmarks/alternating.py) and trains for
a while before the timing. Then the two sides are timed alternately, and the medians are compared. Requires the extra
`bench`.
"""

from __future__ import annotations

import argparse

from benchmarks import alternating, family
from benchmarks.result import print_result
from zerokara.agents.configs.dqn import Config
from zerokara.core.config import run_main


def ours(arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    """Create zerokara's training loop."""
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
        epsilon_decay_steps=1,  # no exploration phase: both sides run their network at every step
        threads=arguments.threads,
    )
    return family.trained(config)


def theirs(arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    """Create Stable-Baselines3's DQN with the same settings."""
    import ale_py  # noqa: F401  (registers the Atari games)
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

    def run_steps(steps: int) -> None:
        nonlocal started
        model.learn(steps, reset_num_timesteps=not started)
        started = True

    return run_steps, f"{model.device}, {torch.get_num_threads()} threads"


def main() -> None:
    """Parse the arguments, time both sides alternately, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="ALE/Pong-v5", help="an Atari game")
    parser.add_argument("--batch-size", type=int, default=32, help="transitions per update")
    parser.add_argument(
        "--train-every", type=int, default=4, help="agent steps per update; a divisor or a multiple of 8"
    )
    alternating.add_arguments(parser, learn_first=8_000, steps=1_024)
    figures = alternating.alternate({"ours": ours, "stable_baselines3": theirs}, parser.parse_args())
    print_result({"what": "training steps/s", **figures})


if __name__ == "__main__":
    run_main(main)
