"""Interface of all vector environments: batches of uint8 pixels, explicit endings, asynchronous steps (send, recv).

Observations that are vectors (obs_type "vector") are float32 and have the shape of images of one pixel: F numbers.

Shapes: N environments, K stacked frames, F channels per frame (1 grayscale, 3 RGB), C = K * F, H, W pixels.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from zerokara.core.config import UserError


class Step:
    """Result of one vector step. A reset is not a separate step: after an ending, `obs` belongs to the next episode.

    It can be unpacked into its six arrays, in the order of the arguments.

    Args:
        obs: (N, C, H, W) uint8, or float32 of vectors, after any reset; or a function that makes it when it is used.
        reward: (N,) float32, not clipped: the learner clips.
        terminal: (N,) bool, the episode ended: no bootstrapping.
        truncated: (N,) bool, the time limit was reached: bootstrap from last_obs; excludes terminal.
        life_lost: (N,) bool, without a reset; the learner may treat it as terminal.
        last_obs: (N, C, H, W), before any reset, or a function; may be the array obs if no episode ended; None: obs.
        frame: (N, F, H, W), newest frames of obs, read-only: they may be part of later observations. None: `frame` is a
            read-only view of obs, (N, C, H, W).
    """

    __slots__ = ("_frame", "_last_obs", "_obs", "life_lost", "reward", "terminal", "truncated")

    def __init__(
        self,
        obs: np.ndarray | Callable[[], np.ndarray],
        reward: np.ndarray,
        terminal: np.ndarray,
        truncated: np.ndarray,
        life_lost: np.ndarray,
        last_obs: np.ndarray | Callable[[], np.ndarray] | None,
        frame: np.ndarray | None = None,
    ) -> None:
        self._obs, self._last_obs, self._frame = obs, last_obs, frame
        self.reward, self.terminal, self.truncated, self.life_lost = reward, terminal, truncated, life_lost

    @classmethod
    def first(cls, obs: np.ndarray, frame_channels: int) -> Step:
        """Return the observations of a reset as a step, without a reward and an ending."""
        nothing_N = np.zeros(len(obs), bool)
        return cls(obs, nothing_N.astype(np.float32), *(nothing_N,) * 3, obs, _read_only(obs[:, -frame_channels:]))

    @property
    def obs(self) -> np.ndarray:
        """Observations (N, C, H, W) after any reset."""
        if not isinstance(self._obs, np.ndarray):
            self._obs = self._obs()
        return self._obs

    @property
    def last_obs(self) -> np.ndarray:
        """Observations (N, C, H, W) before any reset."""
        if not isinstance(self._last_obs, np.ndarray):
            self._last_obs = self.obs if self._last_obs is None else self._last_obs()
        return self._last_obs

    @property
    def frame(self) -> np.ndarray:
        """Newest frames (N, F, H, W) of `obs`, read-only; they are not copied, and no stack is made for them.

        All frames of `obs` (N, C, H, W) if the environment hands out no frames; the last F channels are the newest.
        """
        return _read_only(self.obs) if self._frame is None else self._frame

    def __reduce__(self) -> tuple[type[Step], tuple[np.ndarray | None, ...]]:
        """Return what `pickle` and `copy` save: all arrays, without the functions that make them."""
        return Step, (*self, self._frame)

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from (self.obs, self.reward, self.terminal, self.truncated, self.life_lost, self.last_obs)


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only view; the array stays as it is."""
    view = array.view()
    view.flags.writeable = False
    return view


class VectorEnv(ABC):
    """N copies of one environment, stepped together.

    The channels of an observation are ordered from the oldest frame to the newest, `obs[:, -frame_channels:]`.
    Frames before the start of an episode are zeros.
    """

    id: str
    num_envs: int
    num_actions: int
    action_names: tuple[str, ...]
    frame_channels: int  # F
    obs_shape: tuple[int, int, int]  # (C, H, W)
    obs_dtype: type[np.generic] = np.uint8  # np.float32 for vectors
    first_action: int = 0  # number of action 0 in the action space of the environment
    settings: Mapping[str, Any]  # the active settings, printed and saved with the run
    errors: int = 0  # episodes that were truncated because the environment raised an exception
    episodes_restarted: bool = False  # True if `load_state_dict` started new episodes instead of resuming
    # Action FIRE, which is executed in the first step after a lost life; None: it is not.
    fire_action: int | None = None
    _life_lost_N: np.ndarray | None = None  # (N,) bool, of the last step; None before the first one

    @functools.cached_property
    def warnings(self) -> list[str]:
        """Messages for the user. Who prints them empties the list."""
        return []

    @abstractmethod
    def reset(self, seed: int) -> np.ndarray:
        """Start a new episode in every environment. Returns obs (N, C, H, W).

        The same seed and actions give the same observations.
        """

    def saved_settings(self) -> dict[str, Any]:
        """Return what a run saves about its environments: the active settings, and `first_action` if it is not 0."""
        return {**self.settings, **({"first_action": self.first_action} if self.first_action else {})}

    def executed(self, action_N: np.ndarray) -> np.ndarray:
        """Return the actions (N,) int64 that `send` executes for these: FIRE in the first step after a lost life.

        They are the same without the setting `fire_after_life_loss`. A learner must store the executed actions.
        """
        if self.fire_action is None or self._life_lost_N is None:
            return action_N
        return np.where(self._life_lost_N, self.fire_action, action_N)

    def send(self, action_N: np.ndarray) -> None:
        """Start one step with actions (N,) int64. Returns immediately if the environment has threads of its own.

        See `executed` for the actions after a lost life.

        Raises:
            ValueError: an action out of range, or a wrong shape or dtype.
        """
        if action_N.shape != (self.num_envs,) or action_N.dtype != np.int64:
            raise ValueError(
                f"actions must be int64 of shape ({self.num_envs},), got {action_N.dtype} of shape {action_N.shape}"
            )
        if action_N.view(np.uint64).max() >= self.num_actions:  # negative ones are large without their sign
            raise ValueError(
                f"actions of {self.id} must be between 0 and {self.num_actions - 1}, got {action_N.tolist()}"
            )
        self._send(self.executed(action_N))

    @abstractmethod
    def _send(self, action_N: np.ndarray) -> None:
        """Implement `send`; the actions have been validated."""

    @abstractmethod
    def recv(self) -> Step:
        """Wait for the step started by `send`. The environment does not modify the returned arrays later."""

    def step(self, action_N: np.ndarray) -> Step:
        """Call `send`, then `recv`."""
        self.send(action_N)
        return self.recv()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state for an exact resume, as tensors and plain values only.

        Must be called after `reset` or `recv`, not while a step is pending.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Restore a saved state. Returns the observation (N, C, H, W) at the time it was saved."""

    def _fire_state(self) -> dict[str, Any]:
        """Return the part of the state from which `executed` continues; empty if there is none."""
        if self.fire_action is None or self._life_lost_N is None:
            return {}
        return {"life_lost": self._life_lost_N.tolist()}

    def _load_fire_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `_fire_state` returned."""
        self._life_lost_N = np.array(state.get("life_lost", [False] * self.num_envs))

    def render(self) -> np.ndarray:
        """Render the first environment as an image for display, (height, width, 3) uint8 RGB."""
        raise UserError(f"{self.id} cannot render: create it with render=True.")

    def close(self) -> None:  # noqa: B027  (optional: most environments have nothing to release)
        """Release processes, windows and memory. A second call has no effect."""


@contextlib.contextmanager
def closed_on_error(env: VectorEnv) -> Iterator[None]:
    """Close an environment if the block raises an exception: the caller does not get it then."""
    try:
        yield
    except BaseException:
        env.close()
        raise
