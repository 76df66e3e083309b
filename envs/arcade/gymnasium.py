"""Gymnasium environment of one arcade game, for use with other libraries."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from zerokara.core.config import UserError
from zerokara.envs import arcade


class ArcadeGymnasiumEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Single arcade game with observations (84, 84, 1) uint8, or (84, 84, 3) with `grayscale=False`.

    Frames are not stacked. To stack them, use `gymnasium.wrappers.FrameStackObservation` or Stable-Baselines3's
    `VecFrameStack`. `info["life_lost"]` is True if a life was lost and the episode did not end.

    Raises:
        UserError: an unknown render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  (Gymnasium's form)

    def __init__(self, game_id: str, *, grayscale: bool = True, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"{game_id} has no render mode {render_mode!r}: expected 'rgb_array' or None.")
        self.render_mode = render_mode
        self._game = arcade.make(game_id, 1, frame_stack=1, grayscale=grayscale)
        channels, height, width = self._game.obs_shape
        self.observation_space = spaces.Box(0, 255, (height, width, channels), np.uint8)
        self.action_space = spaces.Discrete(self._game.num_actions)
        self._frame_FHW = np.zeros(self._game.obs_shape, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; see `gymnasium.Env.reset`. `options` is ignored."""
        super().reset(seed=seed)
        self._frame_FHW = self._game.reset(int(self.np_random.integers(2**63)))[0]
        return self._observation(), {"life_lost": False}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step the game; see `gymnasium.Env.step`. Call `reset` after the end of an episode."""
        step = self._game.step(np.array([action], np.int64))
        # The vector game may have reset itself already, so the last frame is taken from before the reset.
        self._frame_FHW = step.last_obs[0]
        info = {"life_lost": bool(step.life_lost[0])}
        return self._observation(), float(step.reward[0]), bool(step.terminal[0]), bool(step.truncated[0]), info

    def render(self) -> np.ndarray | None:
        """Render the current frame as (336, 336, 3) uint8 RGB. Returns None without a render mode."""
        return self._game.render_frame(self._frame_FHW) if self.render_mode == "rgb_array" else None

    def _observation(self) -> np.ndarray:
        return self._frame_FHW.transpose(1, 2, 0).copy()  # the caller may modify it
