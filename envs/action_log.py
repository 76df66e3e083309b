"""Exact resume for emulators that cannot save their state: a seed, and the actions since.

An environment is a function of the seed that it was last started with and the actions it was given after that. So both
are written down, and a checkpoint holds them in place of the emulator's memory; loading starts the environment with the
same seed and gives it the same actions again. Where the log has grown long enough, the environment is given a fresh
seed at the end of an episode, and its log starts anew.

Every seed is a function of (the run's seed, the environment's number, how often that environment was seeded before),
so an uninterrupted run seeds exactly as one that was resumed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from zerokara.core.config import UserError

FIRST_ACTIONS = 256  # room of an environment's log at first; it doubles


class ActionLog:
    """Seeds and actions of N environments.

    Args:
        id: of the environment, for messages and to know a foreign state.
        num_envs: N.
        settings: what else makes the environment what it is; a state of other settings is refused.
        reseed_every_steps: an environment whose log is at least that long gets a fresh seed when its episode ends;
            0: at every ending.
    """

    def __init__(self, id: str, num_envs: int, settings: Mapping[str, Any], reseed_every_steps: int) -> None:
        self.id, self.num_envs, self.settings = id, num_envs, dict(settings)
        self.reseed_every_steps = reseed_every_steps
        self.seed = 0
        self.seeding_N = np.zeros(num_envs, np.int64)  # how often each environment was seeded after the start
        self.length_N = np.zeros(num_envs, np.int64)  # actions since
        self._action_NT = np.zeros((num_envs, FIRST_ACTIONS), np.int64)

    def start(self, seed: int) -> np.ndarray:
        """Forget everything; returns the seeds (N,) int64 that all environments are to be started with.

        Raises:
            UserError: a negative seed.
        """
        if seed < 0:
            raise UserError(f"a seed must be 0 or more, got {seed}.")
        self.seed = seed
        self.seeding_N[:] = 0
        self.length_N[:] = 0
        return self.seeds(np.ones(self.num_envs, bool))

    def seeds(self, which_N: np.ndarray) -> np.ndarray:
        """The seeds (n,) int64 that the logs of the n environments which_N (N,) bool begin with, below 2**31."""
        words = [
            np.random.SeedSequence([self.seed, int(i), int(self.seeding_N[i])]).generate_state(1)[0]
            for i in np.flatnonzero(which_N)
        ]
        return np.array(words, np.int64) >> 1

    def append(self, action_N: np.ndarray) -> None:
        """Write down one action (N,) for each environment."""
        longest = int(self.length_N.max())
        if longest == self._action_NT.shape[1]:
            self._action_NT = np.concatenate([self._action_NT, np.zeros_like(self._action_NT)], axis=1)
        self._action_NT[np.arange(self.num_envs), self.length_N] = action_N
        self.length_N += 1

    def due(self, ended_N: np.ndarray) -> np.ndarray:
        """Which of the environments whose episode has just ended (N,) bool are to be seeded anew, (N,) bool."""
        due_N: np.ndarray = ended_N & (self.length_N >= self.reseed_every_steps)
        return due_N

    def reseed(self, due_N: np.ndarray) -> np.ndarray:
        """Start the logs of the n environments due_N (N,) bool anew; returns their new seeds (n,) int64."""
        self.seeding_N += due_N
        self.length_N[due_N] = 0
        return self.seeds(due_N)

    def actions(self, i: int) -> np.ndarray:
        """What environment i was given since it was seeded, (T,) int64, oldest first."""
        return self._action_NT[i, : self.length_N[i]]

    def replay(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The way back for environments that can only be stepped together, so that all arrive at the same moment.

        Yields (start_N, action_N), start_N (N,) bool: those to be started with their seeds now, action_N (N,) int64:
        the step that follows for all. Those whose turn has not come are given action 0: what they play does not matter.
        The last action is None.
        """
        turns = int(self.length_N.max())
        wait_N = turns - self.length_N
        for turn in range(turns):
            column_N = np.maximum(turn - wait_N, 0)
            action_N = np.where(turn >= wait_N, self._action_NT[np.arange(self.num_envs), column_N], 0)
            yield wait_N == turn, action_N
        yield wait_N == turns, None

    def state_dict(self, obs: np.ndarray) -> dict[str, Any]:
        """Tensors and plain values; `obs` is what the environments show now, to know on loading that they do again."""
        import torch  # only here: whoever wants nothing but an environment should not wait for it

        longest = int(self.length_N.max())
        dtype = np.uint8 if self._action_NT.max() < 256 else np.int64
        return {
            "id": self.id,
            "num_envs": self.num_envs,
            "settings": self.settings,
            "reseed_every_steps": self.reseed_every_steps,
            "seed": self.seed,
            "seeding": torch.from_numpy(self.seeding_N.copy()),
            "length": torch.from_numpy(self.length_N.copy()),
            "actions": torch.from_numpy(self._action_NT[:, :longest].astype(dtype)),
            "crc": zlib.crc32(obs.tobytes()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over seeds and actions; the environments have yet to be led back along them.

        Raises:
            UserError: the state of another environment, or of other settings.
        """
        for what, here in (("id", self.id), ("num_envs", self.num_envs), ("settings", self.settings)):
            if state[what] != here:
                raise UserError(
                    f"the saved environment has {what} {state[what]!r}, this one {here!r}: resume with the settings "
                    f"that the run began with."
                )
        self.reseed_every_steps = state["reseed_every_steps"]
        self.seed = state["seed"]
        self.seeding_N = state["seeding"].numpy().astype(np.int64)
        self.length_N = state["length"].numpy().astype(np.int64)
        action_NT = state["actions"].numpy().astype(np.int64)
        room = max(FIRST_ACTIONS, action_NT.shape[1])
        self._action_NT = np.zeros((self.num_envs, room), np.int64)
        self._action_NT[:, : action_NT.shape[1]] = action_NT

    def verify(self, state: Mapping[str, Any], obs: np.ndarray) -> None:
        """Make sure that the way back led to the observation that was saved.

        Raises:
            UserError: it did not.
        """
        if zlib.crc32(obs.tobytes()) != state["crc"]:
            raise UserError(
                f"{self.id} does not show again what it showed when its state was saved, so the run cannot go on "
                f"exactly: install the versions named in its config.json, or start a run under another --name."
            )
