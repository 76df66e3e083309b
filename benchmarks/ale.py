"""ale-py's vector environment alone, with the settings of ours; no program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv


def alone(game: str, num_envs: int, settings: Mapping[str, Any]) -> AtariVectorEnv:
    """The emulators, with ale-py's default way of resetting.

    Args:
        game: its id in Gymnasium.
        settings: repeat_action_probability, noop_max, fire_reset, frame_skip, as they stand in an environment of ours.
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
    """Take the actions (T, N)."""
    for action_N in action_TN:
        env.send(action_N)
        env.recv()
