"""What every environment of the house gives: explicit endings, batches of uint8 pixels, send / learn / receive.

Shapes: N environments, K stacked frames, F channels of one frame (1 grey, 3 RGB), C = K * F, H, W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from zerokara.core.config import UserError


class Step(NamedTuple):
    """What one vector step gave. A reset is never a step of its own: `obs` already belongs to the next episode."""

    obs: np.ndarray  # (N, C, H, W) uint8, after any reset
    reward: np.ndarray  # (N,) float32, raw: clipping is the learner's business
    terminal: np.ndarray  # (N,) bool, no bootstrap
    truncated: np.ndarray  # (N,) bool, bootstrap from last_obs; never together with terminal
    life_lost: np.ndarray  # (N,) bool, no reset: the learner may treat it as an ending
    last_obs: np.ndarray  # (N, C, H, W) uint8, before the reset; may be obs itself where nothing ended


class VectorEnv(ABC):
    """N copies of one game, stepped together.

    Channels of an observation run from the oldest frame to the newest; the newest frame is `obs[:, -frame_channels:]`.
    Frames from before an episode's start are zeros.
    """

    id: str
    num_envs: int
    num_actions: int
    action_names: tuple[str, ...]
    frame_channels: int  # F
    obs_shape: tuple[int, int, int]  # (C, H, W)
    settings: Mapping[str, Any]  # the protocol in force, printed and saved with the run

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """Start every episode anew. The same seed and actions give the same pixels. Returns obs (N, C, H, W)."""

    def send(self, action_N: np.ndarray) -> None:
        """Start one step with these actions (N,) int64 and return at once where the environment can work alone.

        Raises:
            ValueError: an action out of range, a wrong shape or dtype.
        """
        if action_N.shape != (self.num_envs,) or action_N.dtype != np.int64:
            raise ValueError(
                f"actions must be int64 of shape ({self.num_envs},), got {action_N.dtype} of shape {action_N.shape}"
            )
        if action_N.min() < 0 or action_N.max() >= self.num_actions:
            raise ValueError(f"actions of {self.id} go from 0 to {self.num_actions - 1}, got {action_N.tolist()}")
        self._send(action_N)

    @abstractmethod
    def _send(self, action_N: np.ndarray) -> None:
        """`send` with actions that are known to be valid."""

    @abstractmethod
    def recv(self) -> Step:
        """Wait for the step that `send` started. The arrays are the caller's to keep."""

    def step(self, action_N: np.ndarray) -> Step:
        """`send` and `recv` in one."""
        self.send(action_N)
        return self.recv()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit: tensors and plain values only.

        Called between `recv` and `send`, never while a step is under way.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Go on from `state`. Returns the observation (N, C, H, W) that was current when it was taken."""

    def render(self) -> np.ndarray:
        """The first environment's picture for people, (height, width, 3) uint8 RGB."""
        raise UserError(f"{self.id} was made without render=True, so it has no picture to give.")

    def close(self) -> None:  # noqa: B027  (most environments hold nothing)
        """Give back processes, windows and memory."""


class FrameStack:
    """The last K frames of N environments, (N, K * F, H, W), zeros before an episode's start."""

    def __init__(self, num_envs: int, frame_stack: int, frame_shape: tuple[int, int, int]) -> None:
        self.frame_channels, height, width = frame_shape
        self.obs = np.zeros((num_envs, frame_stack * self.frame_channels, height, width), np.uint8)

    def push(self, frame_N: np.ndarray, first_N: np.ndarray) -> np.ndarray:
        """Append the newest frames (N, F, H, W); where first_N (N,) an episode starts. Returns a fresh array."""
        obs = np.empty_like(self.obs)
        obs[:, : -self.frame_channels] = self.obs[:, self.frame_channels :]
        obs[:, -self.frame_channels :] = frame_N
        if first_N.any():
            obs[first_N, : -self.frame_channels] = 0
        self.obs = obs
        return obs
