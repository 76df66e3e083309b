"""Stacks of the last frames of environments, which are made when somebody asks for an observation.

Each frame is in memory once, however many stacks it is part of. Frames before the start of an episode are zeros.

Shapes: N environments, E ended episodes, K stacked frames, F channels per frame, C = K * F, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Stacks:
    """Last K frames of N environments. The object does not change: `push` returns another one.

    Args:
        frames: K arrays (N, F, H, W), oldest first. Nobody modifies them: they are part of later stacks, too.
        length_N: frames since the start of the episode; older ones are zeros in the stacks.
        new_array: returns an array (N, C, H, W) for a stack, with any contents; None: new memory.
    """

    def __init__(
        self, frames: tuple[np.ndarray, ...], length_N: np.ndarray, new_array: Callable[[], np.ndarray] | None = None
    ) -> None:
        self.frames, self.length_N, self._new_array = frames, length_N, new_array

    @classmethod
    def blank(
        cls, num_envs: int, frame_stack: int, frame_shape: tuple[int, int, int], dtype: type[np.generic] = np.uint8
    ) -> Stacks:
        """Return stacks of zeros, before the first frame."""
        return cls((np.zeros((num_envs, *frame_shape), dtype),) * frame_stack, np.zeros(num_envs, np.int64))

    def filled(self, obs: np.ndarray) -> Stacks:
        """Return the stacks of which `make` returns these observations (N, C, H, W), which are copied."""
        K = len(self.frames)
        frames = tuple(part.copy() for part in np.split(obs, K, axis=1))
        return Stacks(frames, np.full(len(obs), K), self._new_array)

    @property
    def frame_N(self) -> np.ndarray:
        """Newest frames (N, F, H, W), read-only. They stay as they are as long as somebody has the array."""
        frame_N = self.frames[-1].view()
        frame_N.flags.writeable = False
        return frame_N

    def push(self, frame_N: np.ndarray, first: np.ndarray | slice | None = None) -> Stacks:
        """Append the newest frames.

        Args:
            frame_N: (N, F, H, W); nobody modifies the array from now on.
            first: environments in which an episode starts, (N,) bool or indices; None: none.
        """
        length_N = self.length_N + 1
        if first is not None:
            length_N[first] = 1
        return Stacks((*self.frames[1:], frame_N), length_N, self._new_array)

    def make(self) -> np.ndarray:
        """Return the stacks (N, C, H, W), a new array at every call: the caller may modify it."""
        K, (N, F, *size) = len(self.frames), self.frames[0].shape
        obs = np.empty((N, K * F, *size), self.frames[0].dtype) if self._new_array is None else self._new_array()
        for k, frame_N in enumerate(self.frames):
            obs[:, k * F : (k + 1) * F] = frame_N
        for i in np.flatnonzero(self.length_N < K):
            obs[i, : (K - self.length_N[i]) * F] = 0
        return obs

    def make_last(self, frame_N: np.ndarray, env_E: np.ndarray, last_frame_E: np.ndarray) -> np.ndarray:
        """Return the stacks (N, C, H, W) after one more step, but before its resets.

        Args:
            frame_N: newest frames (N, F, H, W), after the resets.
            env_E: indices of the environments whose episodes ended.
            last_frame_E: their last frames (E, F, H, W).
        """
        before_N = frame_N.copy()
        before_N[env_E] = last_frame_E
        return self.push(before_N).make()
