"""Measure steps per second of the arcade games in C and in NumPy on one core, with random actions. Prints JSON.

    python -m benchmarks.arcade

One step is one step of one environment, including resets, drawing, and the observations. The settings:

* `stack1`: one frame per observation.
* `stack4`: four stacked frames.
* `stack1_rgb`: one frame of three channels.
* `stack4_replay`: four stacked frames, and each step is written to a replay buffer of 100,000 transitions (0.7 GB),
  which has been filled once before: all that training does between two actions, without the network.
* `frame`: in C the newest frames, which are not copied (`Step.frame`), in NumPy observations as in `stack1`.
* `frame_replay`: in C the newest frames are written to the replay buffer, and no stack is made, as in training with
  random actions; in NumPy as in `stack4_replay`.

The two versions are measured alternately and repeatedly, so that other load on the machine affects both; the medians
and their ratios are printed. `--process-time` measures CPU time instead of wall-clock time, which excludes the time
taken by other programs. `--startup` measures in new processes how long the first environment takes, without and with
the compiled library in the cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported

import numpy as np
import torch

from benchmarks.result import print_result
from zerokara.agents.qlearning.replay import Replay
from zerokara.envs.arcade import GAMES, make
from zerokara.envs.arcade.base import ArcadeEnv

CAPACITY = 100_000  # of the replay buffer
VERSIONS = {"c": True, "numpy": False}  # name -> argument `compile`
STARTUP = """
import sys, time
from zerokara.envs import arcade
began = time.perf_counter()
env = arcade.make(sys.argv[1], 16)
env.reset(0)
assert env.is_compiled
print(time.perf_counter() - began)
"""


class Setting(NamedTuple):
    """Environment that is measured, with or without replay writes."""

    options: dict[str, Any]  # of the environment
    replay: bool = False  # each step is written to a replay buffer
    frames: bool = False  # in C, the newest frames are used instead of observations


SETTINGS = {
    "stack1": Setting({"frame_stack": 1}),
    "stack4": Setting({"frame_stack": 4}),
    "stack1_rgb": Setting({"frame_stack": 1, "grayscale": False}),
    "stack4_replay": Setting({"frame_stack": 4}, replay=True),
    "frame": Setting({"frame_stack": 1}, frames=True),
    "frame_replay": Setting({"frame_stack": 4}, replay=True, frames=True),
}


def run(env: ArcadeEnv, actions: np.ndarray, obs: np.ndarray, replay: Replay | None, frames: bool) -> np.ndarray:
    """Execute actions (T, N) after an observation or its newest frames. Returns the last ones."""
    for action_N in actions:
        step = env.step(action_N)
        if replay is not None:
            last_obs = step.last_obs if step.truncated.any() else obs  # not used then
            replay.add(obs, action_N, step.reward, step.terminal, step.truncated, last_obs)
        obs = step.frame if frames else step.obs
    return obs


def steps_per_second(
    env: ArcadeEnv, seed: int, vector_steps: int, setting: Setting, replay: Replay | None, clock: Callable[[], float]
) -> float:
    """Return steps per second, counting each environment, after 50 steps that desynchronize the episodes."""
    obs = env.reset(seed)
    actions = np.random.default_rng(seed).integers(env.num_actions, size=(vector_steps + 50, env.num_envs))
    frames = setting.frames and env.is_compiled
    obs = run(env, actions[:50], obs, replay, frames)
    begin = clock()
    run(env, actions[50:], obs, replay, frames)
    return actions[50:].size / (clock() - begin)


def make_replay(env: ArcadeEnv) -> Replay:
    """Create a replay buffer and fill it once: new memory costs more at the first write."""
    cpu = torch.device("cpu")
    replay = Replay(CAPACITY, env.num_envs, env.obs_shape, env.frame_channels, n_step=3, gamma=0.99, seed=0, device=cpu)
    actions = np.zeros((replay.slots + 1, env.num_envs), np.int64)
    run(env, actions, env.reset(0), replay, frames=True)
    return replay


def measure(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Return game -> setting -> steps per second of the versions and their ratio."""
    clock = time.process_time if options.process_time else time.perf_counter
    result: dict[str, dict[str, dict[str, float]]] = {}
    for game in options.games or GAMES:
        replay = make_replay(make(game, options.num_envs))
        speeds: dict[str, dict[str, list[float]]] = {name: {v: [] for v in VERSIONS} for name in SETTINGS}
        for repetition in range(options.repetitions):
            for name, setting in SETTINGS.items():
                for version, compile in VERSIONS.items():
                    env = make(game, options.num_envs, compile=compile, **setting.options)
                    # The fast version gets more steps, so that both take about the same time.
                    steps = options.vector_steps * (5 if env.is_compiled else 1)
                    used = replay if setting.replay else None
                    speeds[name][version].append(steps_per_second(env, repetition, steps, setting, used, clock))
        result[game] = {}
        for name, values in speeds.items():
            c, in_numpy = (statistics.median(values[version]) for version in VERSIONS)
            result[game][name] = {"c": round(c), "numpy": round(in_numpy), "ratio": round(c / in_numpy, 2)}
    return result


def startup_seconds(repetitions: int) -> dict[str, dict[str, float]]:
    """Return game -> seconds of the first environment of a process, if the library is compiled and if it is there."""
    result: dict[str, dict[str, float]] = {}
    for game in GAMES:
        seconds: dict[str, list[float]] = {"cold": [], "warm": []}
        for _ in range(repetitions):
            with tempfile.TemporaryDirectory() as folder:
                for which in ("cold", "warm"):
                    words, given = [sys.executable, "-c", STARTUP, game], {**os.environ, "XDG_CACHE_HOME": folder}
                    seconds[which].append(float(subprocess.check_output(words, env=given, text=True)))
        result[game] = {which: round(statistics.median(values), 4) for which, values in seconds.items()}
    return result


def main() -> None:
    """Parse the arguments, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--vector-steps", type=int, default=100, help="vector steps per measurement of NumPy; C: 5 x")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--games", nargs="*", choices=GAMES, help="default: all")
    parser.add_argument("--process-time", action="store_true", help="measure CPU time instead of wall-clock time")
    parser.add_argument("--startup", action="store_true", help="measure the time of the first environment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_result(startup_seconds(options.repetitions) if options.startup else measure(options))


if __name__ == "__main__":
    main()
