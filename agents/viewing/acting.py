"""Acting on observations that a person has: frames of a Gymnasium environment, or stacked observations.

Shapes: N observations, A actions, C, H, W the network's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zerokara import envs
from zerokara.agents.configs.common import Settings
from zerokara.agents.qlearning.policy import Policy
from zerokara.core.config import UserError, note
from zerokara.envs.observations import ImageFormat
from zerokara.envs.raw_frames import FrameReader, VectorReader
from zerokara.envs.vectors import VectorFormat


class Actor:
    """Q-values and actions of a policy, and the frames of the current episode.

    Args:
        policy: of the agent.
        config: of its training.
        obs_shape: (C, H, W).
        declared: returns the format of the observations in the environment of the training, see `FrameReader`.
        first_action: number of action 0 in the action space of the environment.
    """

    frames: FrameReader | VectorReader

    def __init__(
        self,
        policy: Policy,
        config: Settings,
        obs_shape: tuple[int, int, int],
        declared: Callable[[], ImageFormat | VectorFormat | None],
        first_action: int = 0,
    ) -> None:
        self.policy, self.config, self.first_action = policy, config, first_action
        if config.obs_type == "vector":
            self.frames = VectorReader(obs_shape, declared)
        else:
            self.frames = FrameReader(
                obs_shape,
                config.frame_channels,
                obs_key=config.obs_key,
                obs_range=config.obs_range or None,
                declared=declared,
            )
        self._random = np.random.default_rng(config.seed)
        self._last: tuple[np.ndarray, bool] | None = None  # Q-values (N, A), and True for a batch

    def values(self, obs: Any, stacked: bool | None) -> tuple[np.ndarray, bool]:
        """Return Q-values (N, A) float32, and True for a batch; without an observation those of the last one.

        Raises:
            UserError: as in `FrameReader.read`; or there was no observation yet.
        """
        if obs is not None:
            obs_NCHW, is_batch = self.frames.read(obs, stacked)
            self._check_frame_skip()
            self._last = self.policy.compute.to_host(self.policy.values(obs_NCHW)).numpy(), is_batch
        if self._last is None:
            raise UserError("There is no observation yet: give one, as in agent.q_values(obs).")
        return self._last[0].copy(), self._last[1]

    def act(self, obs: Any, epsilon: float, stacked: bool | None) -> int | np.ndarray:
        """Return an epsilon-greedy action, of a batch an array (N,) int64.

        Raises:
            UserError: see `values`.
        """
        q_NA, is_batch = self.values(obs, stacked)
        if self.first_action and not is_batch:
            note(
                f"{self.config.env}: act numbers the actions from 0, and the action space starts at "
                f"{self.first_action}: give the environment agent.act(obs) + env.action_space.start."
            )
        explore_N = self._random.random(len(q_NA)) < epsilon
        random_N = self._random.integers(q_NA.shape[1], size=len(q_NA))
        action_N = np.where(explore_N, random_N, q_NA.argmax(axis=1))
        return action_N if is_batch else int(action_N[0])

    def _check_frame_skip(self) -> None:
        """Print a note if the agent was trained on other frames than those that it gets here."""
        config = self.config
        is_atari = config.env.startswith("ALE/")
        frame_skip = config.frame_skip or (envs.PROTOCOLS[config.protocol]["frame_skip"] if is_atari else 1)
        if frame_skip == 1 or self.frames.last_frame_size in (None, config.obs_shape[1:]):
            return
        if is_atari:
            note(
                f"{config.env}: in training, the agent saw the maximum of the last two of {frame_skip} frames; for the "
                f"same input, use gymnasium.wrappers.AtariPreprocessing(gymnasium.make({config.env!r}, frameskip=1), "
                f"frame_skip={frame_skip}, screen_size={config.image_size}, grayscale_obs={config.grayscale})."
            )
        else:
            note(
                f"{config.env}: in training, each action was repeated for {frame_skip} frames; do the same, and give "
                f"the agent only the last of these frames."
            )
