"""Helpers to run ale-py's vector environment without zerokara, with the same settings. Not a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv


def make_ale_env(game: str, num_envs: int, settings: Mapping[str, Any]) -> AtariVectorEnv:
    """Create the emulators, with ale-py's default autoreset mode.

    Args:
        game: Gymnasium id of the game.
        num_envs: number of emulators.
        settings: repeat_action_probability, noop_max, fire_reset, frame_skip, as in `VectorEnv.settings`.
    """
    return AtariVectorEnv(
        gymnasium.registry[game].kwargs["game"],
        num_envs,
        noop_max=settings["noop_max"],
        repeat_action_probability=settings["repeat_action_probability"],
        use_fire_reset=settings["fire_reset"],
        reward_clipping=False,
        frameskip=settings["frame_skip"],
    )


def play(env: AtariVectorEnv, action_TN: np.ndarray) -> None:
    """Execute actions (T, N)."""
    for action_N in action_TN:
        env.send(action_N)
        env.recv()
