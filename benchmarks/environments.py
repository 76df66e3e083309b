"""Compare steps per second of zerokara's Atari environments and ale-py's vector environment. Prints JSON.

    python -m benchmarks.environments --replay

Both run the same game with the same settings (84x84x4 grayscale, no sticky actions, up to 30 no-ops, frame skip 4,
unclipped rewards) and random actions. They are measured alternately and repeatedly, so that other load on the machine
affects both. The medians and their ratio are printed. With `--replay`, zerokara also writes every step to the replay
buffer of `agents/` while the emulators compute the next step.

zerokara reseeds each environment every few thousand steps, which does not happen within a measurement of a minute. The
time of a reseed is measured separately, and `ratio_settled` is the ratio with this time distributed over the steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are imported

import ale_py
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv

from benchmarks import ale
from benchmarks.result import print_result
from zerokara import envs
from zerokara.agents.qlearning.replay import Replay
from zerokara.core.machine import usable_cores

SETTINGS: dict[str, Any] = {
    "protocol": "nature",
    "frame_skip": 4,
    "repeat_action_probability": 0.0,
    "noop_max": 30,
    "fire_reset": False,
}


def peer_seconds(env: AtariVectorEnv, action_TN: np.ndarray) -> float:
    """Measure the time in seconds for actions (T, N) in ale-py's environment."""
    begin = time.perf_counter()
    ale.play(env, action_TN)
    return time.perf_counter() - begin


def our_seconds(
    env: envs.VectorEnv, obs: np.ndarray, action_TN: np.ndarray, replay: Replay | None
) -> tuple[float, np.ndarray]:
    """Measure the time in seconds for actions (T, N). Each step is stored while the next one is emulated.

    Returns the time and the last observation.
    """
    begin = time.perf_counter()
    env.send(action_TN[0])
    for action_N, next_action_N in zip(action_TN, [*action_TN[1:], None], strict=True):
        step = env.recv()
        if next_action_N is not None:
            env.send(next_action_N)
        if replay is not None:
            replay.add(obs, action_N, step.reward, step.terminal, step.truncated, step.last_obs)
        obs = step.obs
    return time.perf_counter() - begin, obs


def seed_seconds(env: AtariVectorEnv, num_envs: int, repetitions: int) -> float:
    """Measure the median time in seconds to reseed one environment."""
    seconds = []
    for i in range(repetitions):
        mask_N = np.arange(num_envs) == i % num_envs
        begin = time.perf_counter()
        env.reset(seed=np.array([i + 1]), options={"reset_mask": mask_N})
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main() -> None:
    """Parse the arguments, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="ALE/Pong-v5")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--vector-steps", type=int, default=100, help="vector steps per measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--replay", action="store_true", help="also write into a replay buffer of 200,000 transitions")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    ours = envs.make(options.env, options.num_envs, **SETTINGS)
    theirs = ale.make_ale_env(options.env, options.num_envs, SETTINGS)
    obs = ours.reset(0)
    theirs.reset(seed=0)
    replay = None
    if options.replay:
        cpu = torch.device("cpu")
        replay = Replay(
            200_000, options.num_envs, ours.obs_shape, ours.frame_channels, n_step=3, gamma=0.99, seed=0, device=cpu
        )
    steps = options.num_envs * options.vector_steps
    speeds: dict[str, list[float]] = {"ale_py": [], "ours": []}
    for repetition in range(options.repetitions + 1):
        action_TN = rng.integers(0, ours.num_actions, (options.vector_steps, options.num_envs))
        times = {"ale_py": peer_seconds(theirs, action_TN)}
        times["ours"], obs = our_seconds(ours, obs, action_TN, replay)
        if repetition:  # the first repetition is a warm-up
            for name, seconds in times.items():
                speeds[name].append(steps / seconds)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    seeding = seed_seconds(theirs, options.num_envs, 15)
    reseed_every_steps = ours.settings["reseed_every_steps"]
    settled = 1 / (1 / median["ours"] + seeding / reseed_every_steps)
    print_result(
        {
            "env": options.env,
            "num_envs": options.num_envs,
            "vector_steps": options.vector_steps,
            "repetitions": options.repetitions,
            "replay_writes": options.replay,
            "settings": dict(ours.settings),
            "cores": usable_cores(),
            "ale_py": ale_py.__version__,
            "steps_per_second": {name: round(value) for name, value in median.items()},
            "each": {name: [round(value) for value in values] for name, values in speeds.items()},
            "ratio": round(median["ours"] / median["ale_py"], 3),
            "seconds_per_seeding": round(seeding, 4),
            "ratio_settled": round(settled / median["ale_py"], 3),
        }
    )


if __name__ == "__main__":
    main()
