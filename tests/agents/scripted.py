"""Scripted environments for tests of the wiring of agents: the pixels of an observation encode where it comes from.

Every observation is a stack of frames, and each frame encodes environment, episode and step. So a test can tell from a
stored, sampled or acted-on observation which one it is. Rewards encode the same.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from zerokara import envs

SIZE = 36  # small image size that the DER and the Nature backbone accept
LENGTHS = ((5, 3, 7), (4, 6, 2))  # steps of the episodes of even and odd environments, repeated
ENDINGS = ("terminal", "truncated")  # of even and odd episodes


class Origin(NamedTuple):
    """Origin of an observation: environment, episode and step in the episode."""

    env: int
    episode: int
    step: int


@functools.cache
def frame(origin: Origin) -> np.ndarray:
    """Frame (1, SIZE, SIZE): three bars with the digits of the origin, on a pattern that depends on it.

    The pattern makes the Q-values of two frames differ, also with LayerNorm.
    """
    number = origin.env * 10_000 + origin.episode * 100 + origin.step
    picture = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE), np.uint8)
    picture[:4, :4], picture[:4, 4:8], picture[:4, 8:12] = origin.env, origin.episode, origin.step
    return picture[None]


def origin_of(obs: np.ndarray | torch.Tensor) -> Origin:
    """Origin of the newest frame of an observation (C, SIZE, SIZE)."""
    newest = obs[-1]
    return Origin(int(newest[0, 0]), int(newest[0, 4]), int(newest[0, 8]))


def reward_of(origin: Origin) -> float:
    """Reward of the step that starts at an observation: different for all of them, every third one is negative."""
    size = origin.env + origin.episode / 16 + origin.step / 256
    return -size if origin.step % 3 == 2 else size


class ScriptedEnv(envs.VectorEnv):
    """Environments with episodes of scripted lengths, which are independent of the actions.

    A lost life is reported at step 1 of every episode. The last step of even episodes is a terminal, that of odd
    episodes a truncation.
    """

    id, num_actions, action_names, frame_channels = "Scripted", 4, ("NOOP", "FIRE", "LEFT", "RIGHT"), 1

    def __init__(self, num_envs: int, frame_stack: int = 2) -> None:
        self.num_envs, self.frame_stack = num_envs, frame_stack
        self.obs_shape = (frame_stack, SIZE, SIZE)
        self.settings: dict[str, Any] = {"frame_skip": 4}
        self.actions: list[np.ndarray] = []  # of all steps
        self.at = [Origin(i, 0, 0) for i in range(num_envs)]

    def observe(self, origin: Origin) -> np.ndarray:
        """Stack of the last frames of the episode; zeros before its start."""
        frames = [frame(origin._replace(step=step)) for step in range(origin.step + 1)][-self.frame_stack :]
        blank = [np.zeros((1, SIZE, SIZE), np.uint8)] * (self.frame_stack - len(frames))
        return np.concatenate(blank + frames)

    def reset(self, seed: int) -> np.ndarray:
        self.at = [Origin(i, 0, 0) for i in range(self.num_envs)]
        return np.stack([self.observe(origin) for origin in self.at])

    def _send(self, action_N: np.ndarray) -> None:
        self.actions.append(np.array(action_N))

    def recv(self) -> envs.Step:
        before = self.at
        last = [origin._replace(step=origin.step + 1) for origin in before]
        ended = [origin.step + 1 == length_of(origin) for origin in before]
        ending = [ENDINGS[origin.episode % 2] if end else "" for origin, end in zip(before, ended, strict=True)]
        self.at = [
            Origin(origin.env, origin.episode + 1, 0) if end else origin
            for origin, end in zip(last, ended, strict=True)
        ]
        return envs.Step(
            np.stack([self.observe(origin) for origin in self.at]),
            np.array([reward_of(origin) for origin in before], np.float32),
            np.array([kind == "terminal" for kind in ending]),
            np.array([kind == "truncated" for kind in ending]),
            np.array([origin.step == 1 for origin in before]),
            np.stack([self.observe(origin) for origin in last]),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"at": [tuple(origin) for origin in self.at]}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        self.at = [Origin(*origin) for origin in state["at"]]
        return np.stack([self.observe(origin) for origin in self.at])


def length_of(origin: Origin) -> int:
    """Number of steps of the episode."""
    lengths = LENGTHS[origin.env % 2]
    return lengths[origin.episode % len(lengths)]


def ends_with(origin: Origin) -> str:
    """Return "terminal" or "truncated" if the step that starts at the observation ends the episode, otherwise ""."""
    return ENDINGS[origin.episode % 2] if origin.step + 1 == length_of(origin) else ""
