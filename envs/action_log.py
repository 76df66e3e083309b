"""Exact resume of environments that cannot save their state, by replaying their actions.

The state of an environment is a function of its last seed and of the actions since. A checkpoint therefore stores the
seed and the actions instead of the emulator's memory. Loading it resets the environment with the same seed and replays
the actions. When the log of an environment is long enough, the environment gets a new seed at the end of an episode and
its log is cleared.

Each seed is a function of (seed of the run, index of the environment, number of earlier seeds of that environment), so
an uninterrupted run and a resumed run use the same seeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from zerokara.core.config import UserError
from zerokara.core.foreign_names import RENAMED_ENV_SETTINGS

# Values of settings that checkpoints of older versions do not have.
SETTINGS_BEFORE = {"fire_after_life_loss": False}
INITIAL_CAPACITY = 256  # actions per environment; doubled whenever the log is full


class ActionLog:
    """Log of the seeds and actions of N environments.

    Args:
        id: id of the environment, for messages and to reject the state of another environment.
        num_envs: N.
        settings: settings of the environment; a state saved with other settings is rejected.
        reseed_every_steps: an environment whose log has at least this many actions gets a new seed when its episode
            ends; 0: at the end of every episode.
    """

    def __init__(self, id: str, num_envs: int, settings: Mapping[str, Any], reseed_every_steps: int) -> None:
        self.id, self.num_envs, self.settings = id, num_envs, dict(settings)
        self.reseed_every_steps = reseed_every_steps
        self.seed = 0
        self.num_reseeds_N = np.zeros(num_envs, np.int64)  # seeds of each environment after its first one
        self.length_N = np.zeros(num_envs, np.int64)  # actions since the last seed
        self._action_NT = np.zeros((num_envs, INITIAL_CAPACITY), np.int64)

    def start(self, seed: int) -> np.ndarray:
        """Clear the log. Returns the seeds (N,) int64 with which to reset all environments.

        Raises:
            UserError: a negative seed.
        """
        if seed < 0:
            raise UserError(f"the seed must be at least 0, got {seed}.")
        self.seed = seed
        self.num_reseeds_N[:] = 0
        self.length_N[:] = 0
        return self.seeds(np.ones(self.num_envs, bool))

    def seeds(self, which_N: np.ndarray) -> np.ndarray:
        """Return the current seeds (n,) int64, below 2**31, of the n environments selected by which_N (N,) bool."""
        words = [
            np.random.SeedSequence([self.seed, int(i), int(self.num_reseeds_N[i])]).generate_state(1)[0]
            for i in np.flatnonzero(which_N)
        ]
        return np.array(words, np.int64) >> 1

    def append(self, action_N: np.ndarray) -> None:
        """Append one action (N,) per environment."""
        max_length = int(self.length_N.max())
        if max_length == self._action_NT.shape[1]:
            self._action_NT = np.concatenate([self._action_NT, np.zeros_like(self._action_NT)], axis=1)
        self._action_NT[np.arange(self.num_envs), self.length_N] = action_N
        self.length_N += 1

    def needs_reseed(self, ended_N: np.ndarray) -> np.ndarray:
        """Select those of the environments whose episode has just ended (N,) bool that need a new seed, (N,) bool."""
        reseed_N: np.ndarray = ended_N & (self.length_N >= self.reseed_every_steps)
        return reseed_N

    def reseed(self, reseed_N: np.ndarray) -> np.ndarray:
        """Clear the logs of the n environments reseed_N (N,) bool. Returns their new seeds (n,) int64."""
        self.num_reseeds_N += reseed_N
        self.length_N[reseed_N] = 0
        return self.seeds(reseed_N)

    def actions(self, i: int) -> np.ndarray:
        """Return the actions of environment i since its last seed, (T,) int64, oldest first."""
        return self._action_NT[i, : self.length_N[i]]

    def replay(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Iterate over the resets and actions that restore environments which can only be stepped together.

        Environments with shorter logs start later, so that all logs end at the same step.

        Yields (start_N, action_N). start_N (N,) bool: environments to reset with their seeds now. action_N (N,) int64:
        actions of the step that follows; environments that have not started yet get action 0, which has no effect on
        the result. The last action is None.
        """
        num_steps = int(self.length_N.max())
        delay_N = num_steps - self.length_N
        for step in range(num_steps):
            column_N = np.maximum(step - delay_N, 0)
            action_N = np.where(step >= delay_N, self._action_NT[np.arange(self.num_envs), column_N], 0)
            yield delay_N == step, action_N
        yield delay_N == num_steps, None

    def state_dict(self, obs: np.ndarray) -> dict[str, Any]:
        """Return the log as tensors and plain values, with a checksum of the current observations `obs`.

        `verify` compares the checksum after loading.
        """
        import torch  # imported here, because it is slow to import and environments alone do not need it

        max_length = int(self.length_N.max())
        dtype = np.uint8 if self._action_NT.max() < 256 else np.int64
        return {
            "id": self.id,
            "num_envs": self.num_envs,
            "settings": self.settings,
            "reseed_every_steps": self.reseed_every_steps,
            "seed": self.seed,
            "seeding": torch.from_numpy(self.num_reseeds_N.copy()),
            "length": torch.from_numpy(self.length_N.copy()),
            "actions": torch.from_numpy(self._action_NT[:, :max_length].astype(dtype)),
            "crc": zlib.crc32(obs.tobytes()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load seeds and actions. The caller then resets the environments and replays the actions.

        Raises:
            UserError: the state was saved by another environment, or with other settings.
        """
        settings = {name: value for name, value in SETTINGS_BEFORE.items() if name in self.settings}
        settings |= {RENAMED_ENV_SETTINGS.get(name, name): value for name, value in state["settings"].items()}
        saved = {"id": state["id"], "num_envs": state["num_envs"], "settings": settings}
        for what, here in (("id", self.id), ("num_envs", self.num_envs), ("settings", self.settings)):
            if saved[what] != here:
                raise UserError(
                    f"the saved environment has {what} {saved[what]!r}, this one has {here!r}: resume with the "
                    f"settings with which the run was started."
                )
        self.reseed_every_steps = state["reseed_every_steps"]
        self.seed = state["seed"]
        self.num_reseeds_N = state["seeding"].numpy().astype(np.int64)
        self.length_N = state["length"].numpy().astype(np.int64)
        action_NT = state["actions"].numpy().astype(np.int64)
        capacity = max(INITIAL_CAPACITY, action_NT.shape[1])
        self._action_NT = np.zeros((self.num_envs, capacity), np.int64)
        self._action_NT[:, : action_NT.shape[1]] = action_NT

    def verify(self, state: Mapping[str, Any], obs: np.ndarray) -> None:
        """Check that the observations after the replay equal those of the saved state.

        Raises:
            UserError: they differ.
        """
        if zlib.crc32(obs.tobytes()) != state["crc"]:
            raise UserError(
                f"{self.id} does not reproduce the observation of the saved state, so the run cannot resume exactly: "
                f"install the package versions listed in its config.json, or start a new run with another --name."
            )
