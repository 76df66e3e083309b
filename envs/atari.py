"""Atari games on ale-py's C++ vector environment, which runs the emulators on its own threads.

This module adds explicit endings with the true last observation, detection of lost lives, and exact resume.

The C++ environments reset themselves within the step that ends an episode (autoreset mode "SameStep"), on their own
threads, so a reset costs the caller no time and is not a separate step. They cannot save their state. What follows a
reset depends on their random generators and, in some games, on the console's memory before the reset. Therefore the
actions are logged, and loading a checkpoint replays them (envs/action_log.py). A new seed costs about 0.1 s, as much as
400 steps, because ALE then reloads the ROM and computes an unused table of 65,536 colors. Environments are therefore
not seeded at every episode, but every few thousand steps, when an episode ends.

Shapes: N environments, K stacked frames, F channels per frame (1 grayscale, 3 RGB), C = K * F, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ale_py
import gymnasium
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv as AleVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import AtariPreprocessing

from zerokara.core.config import UserError
from zerokara.core.machine import usable_cores
from zerokara.envs.action_log import ActionLog
from zerokara.envs.base import Step, VectorEnv
from zerokara.envs.gymnasium import GymnasiumVectorEnv
from zerokara.envs.observations import ImageFormat
from zerokara.envs.single import create
from zerokara.envs.vectors import VectorFormat, find_vector

# Seeding one environment stops all threads for 0.1 s, and replaying the log uses all threads. With this number of
# steps per thread, seeding takes about 8% of the emulators' time and resuming 32 environments takes up to a minute.
RESEED_STEPS_PER_THREAD = 4_000

# ALE's own time limit omits the last frame from the observation that a truncated episode bootstraps from. So ALE gets
# no limit, and the steps are counted in this module.
NO_LIMIT_FRAMES = 2**30


def is_atari(spec: EnvSpec) -> bool:
    """Return True if the registered id is a game of ale-py's vector environment."""
    return spec.vector_entry_point == "ale_py.vector_env:AtariVectorEnv"


def rom_path(spec: EnvSpec) -> Path:
    """Return the path of the game's ROM.

    Raises:
        UserError: the ROM is missing or unreadable.
    """
    game = spec.kwargs["game"]
    try:
        path = roms.get_rom_path(game)
    except OSError as error:
        raise UserError(
            f"The ROM of {spec.id} cannot be read ({error}): unset ALE_ROMS_DIR, or reinstall ale-py, which ships it."
        ) from error
    if path is None:
        raise UserError(f"ale-py has no ROM for {spec.id}, expected {game}.bin: reinstall ale-py, which ships it.")
    return path


class AtariVectorEnv(VectorEnv):
    """Vector environment of N copies of one Atari game.

    Args:
        spec: entry of the game in Gymnasium's registry.
        num_envs: N.
        settings: repeat_action_probability, noop_max, fire_reset, fire_after_life_loss, frame_skip, full_action_space,
            max_episode_frames (a multiple of frame_skip), frame_stack, size, grayscale, reseed_every_steps (0:
            `RESEED_STEPS_PER_THREAD` times the number of threads).
        num_threads: emulator threads; 0: one per core.

    Raises:
        UserError: the game's ROM is missing.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        settings: Mapping[str, Any],
        *,
        num_threads: int = 0,
    ) -> None:
        rom_path(spec)
        self.id, self.num_envs = spec.id, num_envs
        # ALE draws the number of no-ops from [0, noop_max), hence + 1. The FIRE of fire_reset counts as one of them.
        noop_bound = settings["noop_max"] + 1 if settings["noop_max"] else 0
        self._env = AleVectorEnv(
            spec.kwargs["game"],
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=NO_LIMIT_FRAMES,
            repeat_action_probability=settings["repeat_action_probability"],
            full_action_space=settings["full_action_space"],
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
            img_height=settings["size"],
            img_width=settings["size"],
            grayscale=settings["grayscale"],
            stack_num=settings["frame_stack"],
            frameskip=settings["frame_skip"],
            noop_max=noop_bound,
            use_fire_reset=settings["fire_reset"],
            # Both would end or restart the game at the loss of a life. _receive detects lost lives instead.
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
        )
        self.action_names = tuple(action.name for action in self._env.ale.get_action_set())
        self.num_actions = len(self.action_names)
        self.fire_action = find_fire(self.action_names, settings)
        self.frame_channels = 1 if settings["grayscale"] else 3
        self.obs_shape = (settings["frame_stack"] * self.frame_channels, settings["size"], settings["size"])
        protocol = {key: value for key, value in settings.items() if key != "reseed_every_steps"}
        threads = min(num_threads or usable_cores(), num_envs)
        reseed_every_steps = settings["reseed_every_steps"] or RESEED_STEPS_PER_THREAD * threads
        self.settings = {**protocol, "reseed_every_steps": reseed_every_steps}
        self._log = ActionLog(spec.id, num_envs, protocol, reseed_every_steps)
        self._max_steps = settings["max_episode_frames"] // settings["frame_skip"]
        self._lives_N = np.zeros(num_envs, np.int32)
        self._age_N = np.zeros(num_envs, np.int64)  # steps since the episode's start
        self._started = self._step_pending = False

    def reset(self, seed: int) -> np.ndarray:
        """See `VectorEnv.reset`. `seed` is any integer >= 0."""
        if self._step_pending:
            self.recv()
        obs, info = self._env.reset(seed=self._log.start(seed))
        self._lives_N = info["lives"]
        self._life_lost_N = np.zeros(self.num_envs, bool)
        self._age_N[:] = 0
        self._started = True
        return self._channels(obs)

    def _send(self, action_N: np.ndarray) -> None:
        if not self._started or self._step_pending:
            missing = "recv()" if self._started else "reset()"
            raise RuntimeError(f"send() must follow reset() or recv(): call {missing} first")
        self._log.append(action_N)
        self._env.send(action_N)
        self._step_pending = True

    def recv(self) -> Step:
        """See `VectorEnv.recv`."""
        if not self._step_pending:
            raise RuntimeError("recv() must follow send(): call send(actions) first")
        self._step_pending = False
        return self._receive(self._log)

    def _receive(self, log: ActionLog | None) -> Step:
        """Return the result of the pending step. `log` is None during a replay; then no environment is reseeded."""
        obs, reward_N, terminal_N, _, info = self._env.recv()
        self._age_N += 1
        truncated_N = (self._age_N >= self._max_steps) & ~terminal_N
        ended_N = terminal_N | truncated_N
        life_lost_N = self._life_lost_N = (info["lives"] < self._lives_N) & ~ended_N
        last_obs = obs
        if ended_N.any():
            self._age_N[ended_N] = 0
            if terminal_N.any():  # ALE has already reset these; the other rows of final_obs are undefined
                last_obs = info["final_obs"]
                last_obs[~terminal_N] = obs[~terminal_N]
            reseed_N = log.needs_reseed(ended_N) if log else np.zeros_like(ended_N)
            restart_N = truncated_N | reseed_N
            if restart_N.any():
                seed_N = np.full(self.num_envs, -1)  # -1: reset without a new seed, keeping memory and generators
                if log:
                    seed_N[reseed_N] = log.reseed(reseed_N)
                obs, info = self._env.reset(seed=seed_N[restart_N], options={"reset_mask": restart_N})
        self._lives_N = info["lives"]
        last_CHW = self._channels(last_obs)
        obs_CHW = last_CHW if obs is last_obs else self._channels(obs)
        frame_N = obs_CHW[:, -self.frame_channels :]
        frame_N.flags.writeable = False
        return Step(obs_CHW, reward_N.astype(np.float32), terminal_N, truncated_N, life_lost_N, last_CHW, frame_N)

    def state_dict(self) -> dict[str, Any]:
        """See `VectorEnv.state_dict`."""
        if not self._started or self._step_pending:
            raise RuntimeError("state_dict() must follow reset() or recv()")
        return {**self._log.state_dict(self._current_obs()[0]), **self._fire_state()}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """See `VectorEnv.load_state_dict`. Replays the log: up to `reseed_every_steps` steps plus one episode."""
        if self._step_pending:
            self.recv()
        self._log.load_state_dict(state)
        self.settings = {**self.settings, "reseed_every_steps": self._log.reseed_every_steps}
        self._started = False  # set again after the replay has succeeded
        self._env.reset()  # environments whose replay starts later must be resettable and steppable before that
        for start_N, action_N in self._log.replay():
            if start_N.any():
                self._env.reset(seed=self._log.seeds(start_N), options={"reset_mask": start_N})
                self._age_N[start_N] = 0
            if action_N is not None:
                self._env.send(action_N)
                self._receive(None)
        obs, self._lives_N = self._current_obs()
        self._load_fire_state(state)
        self._log.verify(state, obs)
        self._started = True
        return self._channels(obs)

    def close(self) -> None:
        """Stop the emulator threads."""
        if self._step_pending:
            self.recv()
        self._started = False
        self._env.close()

    def _current_obs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the current observations in ALE's layout and lives (N,), by resetting none of the environments."""
        obs, info = self._env.reset(options={"reset_mask": np.zeros(self.num_envs, bool)})
        return obs, info["lives"]

    def _channels(self, obs: np.ndarray) -> np.ndarray:
        """Convert ALE's (N, K, H, W) or (N, K, H, W, 3) to (N, C, H, W). ALE returns newly allocated arrays."""
        if self.frame_channels == 3:
            obs = np.ascontiguousarray(obs.transpose(0, 1, 4, 2, 3))
        return obs.reshape(self.num_envs, *self.obs_shape)


def find_fire(action_names: Sequence[str], settings: Mapping[str, Any]) -> int | None:
    """Return the number of the action FIRE if it is to be executed after lost lives and the game has it."""
    if settings.get("fire_after_life_loss") and "FIRE" in action_names:
        return action_names.index("FIRE")
    return None


class _Ram(gymnasium.ObservationWrapper[np.ndarray, int, np.ndarray]):
    """Replace the image by the 128 bytes of the console's memory."""

    def __init__(self, env: gymnasium.Env[np.ndarray, int]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (128,), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Return the memory, (128,) uint8."""
        return np.array(cast(ale_py.AtariEnv, self.unwrapped).ale.getRAM())


class _FireReset(gymnasium.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Take action FIRE once after a reset, as the C++ environment does before its no-ops."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        names = cast(ale_py.AtariEnv, self.unwrapped).get_action_meanings()
        if "FIRE" in names:
            obs, _, _, _, info = self.env.step(names.index("FIRE"))
        return obs, info


def make_single_atari(
    spec: EnvSpec,
    num_envs: int,
    settings: Mapping[str, Any],
    *,
    render: bool,
    restart_on_error: bool = False,
    workers: int = 0,
    resumable: bool = True,
) -> GymnasiumVectorEnv:
    """Create the same game with `render()`, or with the RAM as observation, from Gymnasium's single environments.

    The C++ environment provides neither the 160x210 RGB image nor the RAM. Besides being slower, this environment
    differs in two points: the number of no-ops is drawn from 1 to noop_max instead of 0 to noop_max, and each episode
    has a new seed.

    Args:
        spec: entry of the game in Gymnasium's registry.
        num_envs: N.
        settings: as for `AtariVectorEnv`; with obs_type "vector", without size and grayscale.
        render: enable `render()`.
        restart_on_error: see `GymnasiumVectorEnv`.
        workers: see `GymnasiumVectorEnv`.
        resumable: see `GymnasiumVectorEnv`.

    Raises:
        UserError: the game's ROM is missing.
    """
    rom_path(spec)
    is_vector = settings.get("obs_type") == "vector"

    def make_env() -> gymnasium.Env[Any, Any]:
        env = create(
            spec.id,
            render_mode="rgb_array" if render else None,
            frameskip=1,
            repeat_action_probability=settings["repeat_action_probability"],
            full_action_space=settings["full_action_space"],
            max_num_frames_per_episode=None,  # GymnasiumVectorEnv counts the steps, without no-ops, as in C++
        )
        preprocessed = AtariPreprocessing(
            _FireReset(env) if settings["fire_reset"] else env,
            noop_max=settings["noop_max"],
            frame_skip=settings["frame_skip"],
            screen_size=settings.get("size", 84),
            grayscale_obs=settings.get("grayscale", True),
        )
        return _Ram(preprocessed) if is_vector else preprocessed

    env_settings = {key: value for key, value in settings.items() if key != "reseed_every_steps"}
    observation: ImageFormat | VectorFormat
    if is_vector:
        observation = find_vector(gymnasium.spaces.Box(0, 255, (128,), np.uint8), "", None)
        env_settings["observation"] = f"RAM, {observation}"
    else:
        shape = (settings["size"], settings["size"], *(() if settings["grayscale"] else (3,)))
        observation = ImageFormat(None, shape, channels_first=False, low=0.0, high=255.0)
    made = GymnasiumVectorEnv(
        spec.id,
        make_env,
        num_envs,
        env_settings,
        observation,
        action_repeat=1,
        max_steps=settings["max_episode_frames"] // settings["frame_skip"],
        render=render,
        restart_on_error=restart_on_error,
        workers=workers,
        resumable=resumable,
    )
    made.fire_action = find_fire(made.action_names, settings)
    return made
