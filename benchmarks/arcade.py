"""Measure steps per second of the arcade games on one core with random actions. Prints JSON.

    python benchmarks/arcade.py

One step is one step of one environment, including resets and drawing. The settings are measured alternately and
repeatedly, so that other load on the machine affects all of them; the medians are printed. `--process-time` measures
CPU time instead of wall-clock time, which excludes the time taken by other programs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported

import numpy as np
import torch

from zerokara.envs.arcade import GAMES, make
from zerokara.envs.arcade.base import ArcadeEnv

SETTINGS: dict[str, dict[str, Any]] = {
    "stack1": {"frame_stack": 1},
    "stack4": {"frame_stack": 4},
    "stack1_rgb": {"frame_stack": 1, "grayscale": False},
}


def steps_per_second(env: ArcadeEnv, actions: np.ndarray, clock: Callable[[], float]) -> float:
    """Execute actions (T, N) and return steps per second, counting each environment."""
    begin = clock()
    for action_N in actions:
        env.step(action_N)
    return actions.size / (clock() - begin)


def main() -> None:
    """Parse the arguments, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--vector-steps", type=int, default=200, help="vector steps per measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--process-time", action="store_true", help="measure CPU time instead of wall-clock time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if options.process_time else time.perf_counter
    rng = np.random.default_rng(0)
    speeds: dict[str, dict[str, list[float]]] = {game: {name: [] for name in SETTINGS} for game in GAMES}
    for repetition in range(options.repetitions):
        for game in GAMES:
            for name, settings in SETTINGS.items():
                env = make(game, options.num_envs, **settings)
                env.reset(seed=repetition)
                actions = rng.integers(env.num_actions, size=(options.vector_steps + 50, options.num_envs))
                steps_per_second(env, actions[:50], clock)  # desynchronizes the episodes
                speeds[game][name].append(steps_per_second(env, actions[50:], clock))
    medians = {
        game: {name: round(statistics.median(values)) for name, values in by_setting.items()}
        for game, by_setting in speeds.items()
    }
    print(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
