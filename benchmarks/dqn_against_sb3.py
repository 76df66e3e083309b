"""Training steps/s of our DQN and of Stable-Baselines3's on the same work, alternately, in one call.

    python benchmarks/dqn_against_sb3.py --batch-size 32 --train-every 4
    python benchmarks/dqn_against_sb3.py --batch-size 256 --train-every 32

The same game, 8 environments, the paper's network without dueling or double, 1-step returns, Adam, replay of 50,000.
Each side has a process of its own, as it would for a user, so that what one sets for the whole process (threads, how
numbers too small are treated) does not change the other. Both learn for a while before anything is timed; then a
stretch of ours and one of theirs take turns, and medians are compared. Needs the extra `bench`. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from agents.config import Config
from agents.dqn import Training, choose_compute
from core.config import entry
from core.distributed import World
from core.run import Run

Go = Callable[[int], None]  # takes about so many agent steps


def ours(arguments: argparse.Namespace) -> tuple[Go, str]:
    """Our training loop, and how it computes."""
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
    folder = tempfile.TemporaryDirectory()
    run = Run(config, kind="dqn", name="ours", resume=False, quiet=True, root=Path(folder.name))
    compute = choose_compute(config, World())
    training = Training(config, run, compute, World())
    training.obs = training.env.reset(1)

    def go(steps: int, folder: object = folder) -> None:  # the folder lives as long as what writes there
        end = training.step + steps
        while training.step < end:
            training.turn()

    return go, compute.reason


def theirs(arguments: argparse.Namespace) -> tuple[Go, str]:
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


SIDES = {"ours": ours, "stable_baselines3": theirs}


def serve(side: str, arguments: argparse.Namespace, orders: Connection) -> None:
    """A side in its process: told a number of steps, it takes them and answers with the seconds."""
    warnings.simplefilter("ignore")
    go, how = SIDES[side](arguments)
    go(arguments.learn_first)
    orders.send(how)
    while (steps := orders.recv()) is not None:
        began = time.perf_counter()
        go(steps)
        orders.send(time.perf_counter() - began)


def main() -> None:
    """Time both, alternately."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="ALE/Pong-v5", help="an Atari game")
    parser.add_argument("--batch-size", type=int, default=32, help="transitions in an update")
    parser.add_argument(
        "--train-every", type=int, default=4, help="agent steps for each update, 8 divided by it or a multiple"
    )
    parser.add_argument("--learn-first", type=int, default=8_000, help="agent steps of each side that are not timed")
    parser.add_argument("--steps", type=int, default=1_024, help="agent steps of one stretch")
    parser.add_argument("--repeats", type=int, default=5, help="stretches of each side")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both, 0 for all cores")
    arguments = parser.parse_args()

    spawn = multiprocessing.get_context("spawn")
    orders, how, processes = {}, {}, []
    for side in SIDES:  # one learns first, then the other
        orders[side], theirs_end = spawn.Pipe()
        processes.append(spawn.Process(target=serve, args=(side, arguments, theirs_end), daemon=True))
        processes[-1].start()
        theirs_end.close()
        how[side] = orders[side].recv()
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side, order in orders.items():
            order.send(arguments.steps)
            rates[side].append(arguments.steps / order.recv())
    for order, process in zip(orders.values(), processes, strict=True):
        order.send(None)
        process.join()
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(
        json.dumps(
            {
                "what": "training steps/s",
                "arguments": vars(arguments),
                "compute": how,
                "steps_per_s": {side: [round(v, 1) for v in values] for side, values in rates.items()},
                "median": {side: round(value, 1) for side, value in medians.items()},
                "ratio": round(medians["ours"] / medians["stable_baselines3"], 2),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    entry(main)
