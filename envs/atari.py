"""Atari on ale-py's own C++ vector environment, which emulates on its own threads while the learner works.

What is done here beside passing on: explicit endings with the true last observation, lives compared, and exact resume.

The C++ environments reset themselves in the very step that ends a game ("SameStep"), on their threads, so a reset costs
the caller nothing and is no step of its own. They cannot save their state, and what they do after a reset depends
on their generators and, in some games, on the console's memory before it; so a log of actions leads back to where a
checkpoint was taken (envs/action_log.py). A fresh seed costs about 0.1 s, because ALE then loads the game again and
computes a table of 65,536 colours that nobody uses. That is as much as 400 steps: environments are therefore not
seeded at every episode but every few thousand steps, when an episode ends.

Shapes: N environments, K stacked frames, F channels of one frame (1 grey, 3 RGB), C = K * F, H, W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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
from zerokara.envs.action_log import ActionLog
from zerokara.envs.base import Step, VectorEnv
from zerokara.envs.gymnasium import GymnasiumVectorEnv, opened

# Seeding stops all threads for 0.1 s, and replaying the log takes all of them: with T threads, this many steps per
# thread cost some 8% of the emulators' time, and a resumed run of 32 environments waits for up to a minute or so.
RESEED_STEPS_PER_THREAD = 4_000

# ALE's own time limit leaves the last frame out of the observation that a truncated episode bootstraps from, so steps
# are counted here.
NO_LIMIT_FRAMES = 2**30


def is_atari(spec: EnvSpec) -> bool:
    """Whether this id of Gymnasium's stands for a game on ale-py's vector environment."""
    return spec.vector_entry_point == "ale_py.vector_env:AtariVectorEnv"


def _cores() -> int:
    """Cores that this process may use, which is how many threads ale-py starts by itself."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rom_path(spec: EnvSpec) -> Path:
    """Where the game's ROM lies.

    Raises:
        UserError: it is not there, or damaged.
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
    """N copies of one Atari game.

    Args:
        spec: the game's entry in Gymnasium's registry.
        num_envs: N.
        settings: repeat_action_probability, noop_max, fire_reset, frame_skip, full_action_space, max_episode_frames (a
            multiple of frame_skip), frame_stack, size, grayscale, reseed_every_steps (0: `RESEED_STEPS_PER_THREAD` for
            each thread).
        num_threads: threads that emulate; 0: one for each core.

    Raises:
        UserError: the game's ROM is not there.
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
        # noop_max draws from 0 to one less there. Its FIRE counts as one of the frames of doing nothing.
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
            # Both would end or restart the game where only a life was lost; lives are compared here instead.
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
        )
        self.action_names = tuple(action.name for action in self._env.ale.get_action_set())
        self.num_actions = len(self.action_names)
        self.frame_channels = 1 if settings["grayscale"] else 3
        self.obs_shape = (settings["frame_stack"] * self.frame_channels, settings["size"], settings["size"])
        protocol = {key: value for key, value in settings.items() if key != "reseed_every_steps"}
        threads = min(num_threads or _cores(), num_envs)
        reseed_every_steps = settings["reseed_every_steps"] or RESEED_STEPS_PER_THREAD * threads
        self.settings = {**protocol, "reseed_every_steps": reseed_every_steps}
        self._log = ActionLog(spec.id, num_envs, protocol, reseed_every_steps)
        self._max_steps = settings["max_episode_frames"] // settings["frame_skip"]
        self._lives_N = np.zeros(num_envs, np.int32)
        self._age_N = np.zeros(num_envs, np.int64)  # steps since the episode's start
        self._started = self._under_way = False

    def reset(self, seed: int) -> np.ndarray:
        """See `VectorEnv.reset`. `seed` is any integer from 0 up."""
        if self._under_way:
            self.recv()
        obs, info = self._env.reset(seed=self._log.start(seed))
        self._lives_N = info["lives"]
        self._age_N[:] = 0
        self._started = True
        return self._channels(obs)

    def _send(self, action_N: np.ndarray) -> None:
        if not self._started or self._under_way:
            raise RuntimeError("send() follows reset() or recv(): " + ("recv() first" if self._started else "reset()"))
        self._log.append(action_N)
        self._env.send(action_N)
        self._under_way = True

    def recv(self) -> Step:
        """See `VectorEnv.recv`."""
        if not self._under_way:
            raise RuntimeError("recv() follows send(), and waits for ever without one")
        self._under_way = False
        return self._receive(self._log)

    def _receive(self, log: ActionLog | None) -> Step:
        """The step under way. Without a log, which is when it is replayed, no environment is seeded anew."""
        obs, reward_N, terminal_N, _, info = self._env.recv()
        self._age_N += 1
        truncated_N = (self._age_N >= self._max_steps) & ~terminal_N
        ended_N = terminal_N | truncated_N
        life_lost_N = (info["lives"] < self._lives_N) & ~ended_N
        last_obs = obs
        if ended_N.any():
            self._age_N[ended_N] = 0
            if terminal_N.any():  # these have been reset already, and the other rows of final_obs hold nothing
                last_obs = info["final_obs"]
                last_obs[~terminal_N] = obs[~terminal_N]
            due_N = log.due(ended_N) if log else np.zeros_like(ended_N)
            restart_N = truncated_N | due_N
            if restart_N.any():
                seed_N = np.full(self.num_envs, -1)  # -1: the console stays on and its generators go on
                if log:
                    seed_N[due_N] = log.reseed(due_N)
                obs, info = self._env.reset(seed=seed_N[restart_N], options={"reset_mask": restart_N})
        self._lives_N = info["lives"]
        last_CHW = self._channels(last_obs)
        obs_CHW = last_CHW if obs is last_obs else self._channels(obs)
        return Step(obs_CHW, reward_N.astype(np.float32), terminal_N, truncated_N, life_lost_N, last_CHW)

    def state_dict(self) -> dict[str, Any]:
        """See `VectorEnv.state_dict`."""
        if not self._started or self._under_way:
            raise RuntimeError("state_dict() follows reset() or recv()")
        return self._log.state_dict(self._look()[0])

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """See `VectorEnv.load_state_dict`. Takes as long as playing the logs again, which holds up to
        `reseed_every_steps` and one episode.
        """
        if self._under_way:
            self.recv()
        self._log.load_state_dict(state)
        self.settings = {**self.settings, "reseed_every_steps": self._log.reseed_every_steps}
        self._started = False  # until it has worked
        self._env.reset()  # those that wait for their turn must have been started, too
        for start_N, action_N in self._log.replay():
            if start_N.any():
                self._env.reset(seed=self._log.seeds(start_N), options={"reset_mask": start_N})
                self._age_N[start_N] = 0
            if action_N is not None:
                self._env.send(action_N)
                self._receive(None)
        obs, self._lives_N = self._look()
        self._log.verify(state, obs)
        self._started = True
        return self._channels(obs)

    def close(self) -> None:
        """Stop the threads."""
        if self._under_way:
            self.recv()
        self._started = False
        self._env.close()

    def _look(self) -> tuple[np.ndarray, np.ndarray]:
        """What the emulators show now, as they give it, and lives (N,): a reset of none of them."""
        obs, info = self._env.reset(options={"reset_mask": np.zeros(self.num_envs, bool)})
        return obs, info["lives"]

    def _channels(self, obs: np.ndarray) -> np.ndarray:
        """(N, C, H, W) from ALE's (N, K, H, W) or (N, K, H, W, 3). ALE hands over fresh memory every time."""
        if self.frame_channels == 3:
            obs = np.ascontiguousarray(obs.transpose(0, 1, 4, 2, 3))
        return obs.reshape(self.num_envs, *self.obs_shape)


class _FireReset(gymnasium.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Press FIRE once at the start, as the C++ environment does before its no-ops."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        names = cast(ale_py.AtariEnv, self.unwrapped).get_action_meanings()
        if "FIRE" in names:
            obs, _, _, _, info = self.env.step(names.index("FIRE"))
        return obs, info


def rendered_atari(spec: EnvSpec, num_envs: int, settings: Mapping[str, Any]) -> GymnasiumVectorEnv:
    """The same game with the same observations, and a picture for people: slower, on Gymnasium's single environments.

    The C++ environment keeps no picture of 160x210 colour pixels. Beside speed, two things differ: no-ops are drawn
    from other random numbers (1 to noop_max instead of 0 to noop_max), and every episode has a seed of its own.

    Raises:
        UserError: the game's ROM is not there.
    """
    rom_path(spec)

    def make_env() -> gymnasium.Env[Any, Any]:
        env = opened(
            spec.id,
            render_mode="rgb_array",
            frameskip=1,
            repeat_action_probability=settings["repeat_action_probability"],
            full_action_space=settings["full_action_space"],
            max_num_frames_per_episode=None,  # counted by GymnasiumVectorEnv, without the no-ops, as in C++
        )
        return AtariPreprocessing(
            _FireReset(env) if settings["fire_reset"] else env,
            noop_max=settings["noop_max"],
            frame_skip=settings["frame_skip"],
            screen_size=settings["size"],
            grayscale_obs=settings["grayscale"],
        )

    shown = {key: value for key, value in settings.items() if key != "reseed_every_steps"}
    return GymnasiumVectorEnv(
        spec.id,
        [make_env() for _ in range(num_envs)],
        shown,
        hold_steps=1,
        max_steps=settings["max_episode_frames"] // settings["frame_skip"],
        render=True,
    )
