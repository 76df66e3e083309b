"""Any environment of Gymnasium with discrete actions that shows pixels, or can render them.

A plain loop over single environments in this process: what they cost is their own affair, what they give is the same
as everywhere in the house. Exact resume is by replaying each episode's actions from its seed (envs/action_log.py), so
it is exact for every environment that is a function of its seed.

Shapes: N environments, K stacked frames, F channels of one frame (1 grey, 3 RGB), C = K * F, H, W pixels.
"""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from zerokara.core.config import UserError
from zerokara.envs.action_log import ActionLog
from zerokara.envs.base import FrameStack, Step, VectorEnv

Env = gymnasium.Env[Any, Any]


def opened(id: str, **kwargs: Any) -> Env:
    """`gymnasium.make`, with whatever goes wrong in one sentence.

    Raises:
        UserError: a package that it needs is not installed, or it cannot be made for another reason.
    """
    try:
        # Gymnasium's checker warns about matters of style and costs time at the first step.
        return gymnasium.make(id, disable_env_checker=True, **kwargs)
    except Exception as error:
        raise _cannot(id, "be made", error) from error


def _cannot(id: str, what: str, error: Exception) -> UserError:
    """Why the environment cannot be made or drawn, and what to install if that is the reason."""
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        commands = re.findall("`(pip install [^`]*)`", str(error))
        hint = f"type: {' && '.join(commands)}" if commands else f"it says: {error}"
        return UserError(f"{id} cannot {what} because a package that it needs is not installed; {hint}")
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"{id} cannot {what} because the package {error.name} is not installed; install it with pip.")
    return UserError(f"{id} cannot {what}: {type(error).__name__}: {error}")


def has_images(space: spaces.Space[Any]) -> bool:
    """Whether observations are images: (H, W), (H, W, 1) or (H, W, 3) of uint8, or of floats from 0 to 1."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        return False
    if len(space.shape) == 3 and space.shape[2] not in (1, 3):
        return False
    unit = np.issubdtype(space.dtype, np.floating) and bool((space.low == 0).all() and (space.high == 1).all())
    return space.dtype == np.uint8 or unit


def gymnasium_env(id: str, num_envs: int, settings: Mapping[str, Any], *, render: bool) -> GymnasiumVectorEnv:
    """N copies of the registered environment `id`; see `GymnasiumVectorEnv`.

    Where its actions are continuous, but its class takes `continuous=False` (CarRacing, LunarLander), that is asked for
    and stands in the settings.

    Raises:
        UserError: it cannot be made, has no images and cannot render, or has no discrete actions.
    """
    kwargs: dict[str, Any] = {}
    first = opened(id)
    if not isinstance(first.action_space, spaces.Discrete):
        if "continuous" in inspect.signature(type(first.unwrapped).__init__).parameters:
            kwargs["continuous"] = False
            first = opened(id, **kwargs)
        if not isinstance(first.action_space, spaces.Discrete):
            raise UserError(
                f"{id} has actions {first.action_space}, but an agent here chooses one of a list: "
                f"take an environment with discrete actions."
            )
    images = has_images(first.observation_space)
    modes = first.metadata.get("render_modes") or []
    if not images and "rgb_array" not in modes:
        raise UserError(
            f"{id} has observations {first.observation_space}, which are no images of uint8 (H, W), (H, W, 1) or "
            f"(H, W, 3), and cannot render them (no render mode rgb_array): take an environment that shows pixels."
        )
    if "rgb_array" in modes and (render or not images):
        kwargs["render_mode"] = "rgb_array"
    first.close()
    shown = {**settings, "pixels": "observation" if images else "render()"}
    if "continuous" in kwargs:
        shown["continuous"] = False
    return GymnasiumVectorEnv(
        id,
        [opened(id, **kwargs) for _ in range(num_envs)],
        shown,
        hold_steps=settings["frame_skip"],
        max_steps=settings["max_episode_frames"] // settings["frame_skip"],
        render=render,
    )


class GymnasiumVectorEnv(VectorEnv):
    """N single environments, one after another.

    Images are turned grey (or grey ones into RGB) first, then resized with OpenCV's INTER_AREA, as Atari's are.

    Args:
        id: the name in messages.
        envs: N of the same kind, with discrete actions.
        settings: what `settings` shall say; stack, size and grey are obeyed here.
        hold_steps: every action is given so many times and rewards are summed, until the episode ends.
        max_steps: steps after which an episode is truncated here; 0: only where the environment says so.
        render: whether `render()` is wanted.

    Raises:
        UserError: an environment cannot be reset or drawn, or draws something else than RGB.
    """

    def __init__(
        self,
        id: str,
        envs: Sequence[Env],
        settings: Mapping[str, Any],
        *,
        hold_steps: int,
        max_steps: int,
        render: bool,
    ) -> None:
        self.id, self.num_envs, self.settings = id, len(envs), dict(settings)
        self._envs = envs
        self._hold_steps, self._max_steps, self._render = hold_steps, max_steps, render
        self._drawn = not has_images(envs[0].observation_space)
        space = envs[0].action_space
        assert isinstance(space, spaces.Discrete)
        self.num_actions, self._first_action = int(space.n), int(space.start)
        meanings = getattr(envs[0].unwrapped, "get_action_meanings", None)
        names = meanings() if meanings else range(self._first_action, self._first_action + self.num_actions)
        self.action_names = tuple(str(name) for name in names)
        self._size, self._grey = settings["size"], settings["grayscale"]
        self.frame_channels = 1 if self._grey else 3
        frame_shape = (self.frame_channels, self._size, self._size)
        self._stack = FrameStack(self.num_envs, settings["frame_stack"], frame_shape)
        self.obs_shape = (settings["frame_stack"] * self.frame_channels, self._size, self._size)
        self._log = ActionLog(id, self.num_envs, self.settings, reseed_every_steps=0)
        self._lives_N = np.zeros(self.num_envs, np.int64)
        self._age_N = np.zeros(self.num_envs, np.int64)  # steps since the episode's start
        self._picture = np.zeros((1, 1), np.uint8)  # of the first environment, as it came
        self._action_N: np.ndarray | None = None
        self._started = False
        if self._drawn:
            # A missing renderer or an odd picture shows only now; better here than in the middle of a run.
            self._begin(0, seed=0)

    def reset(self, seed: int) -> np.ndarray:
        """See `VectorEnv.reset`. `seed` is any integer from 0 up."""
        seed_N = self._log.start(seed)
        frame_N = np.stack([self._frame(self._begin(i, int(seed_N[i]))) for i in range(self.num_envs)])
        self._action_N = None
        self._started = True
        return self._stack.push(frame_N, np.ones(self.num_envs, bool))

    def _send(self, action_N: np.ndarray) -> None:
        if not self._started or self._action_N is not None:
            raise RuntimeError("send() follows reset() or recv(): " + ("recv() first" if self._started else "reset()"))
        self._action_N = action_N.copy()

    def recv(self) -> Step:
        """See `VectorEnv.recv`.

        Raises:
            UserError: an environment raised, with its exception as the cause.
        """
        if self._action_N is None:
            raise RuntimeError("recv() follows send()")
        action_N, self._action_N = self._action_N, None
        self._log.append(action_N)
        frame_N = np.empty((self.num_envs, self.frame_channels, self._size, self._size), np.uint8)
        reward_N = np.zeros(self.num_envs, np.float32)
        terminal_N, truncated_N, life_lost_N = (np.zeros(self.num_envs, bool) for _ in range(3))
        for i in range(self.num_envs):
            image, *outcome = self._advance(i, int(action_N[i]))
            reward_N[i], terminal_N[i], truncated_N[i], life_lost_N[i] = outcome
            frame_N[i] = self._frame(image)
        last_obs = obs = self._stack.push(frame_N, np.zeros(self.num_envs, bool))
        ended_N = terminal_N | truncated_N
        if ended_N.any():
            seeds = self._log.reseed(ended_N)
            obs = last_obs.copy()
            obs[ended_N] = 0
            for i, seed in zip(np.flatnonzero(ended_N).tolist(), seeds.tolist(), strict=True):
                obs[i, -self.frame_channels :] = self._frame(self._begin(i, seed))
            self._stack.obs = obs
        return Step(obs, reward_N, terminal_N, truncated_N, life_lost_N, last_obs)

    def state_dict(self) -> dict[str, Any]:
        """See `VectorEnv.state_dict`."""
        if not self._started or self._action_N is not None:
            raise RuntimeError("state_dict() follows reset() or recv()")
        return self._log.state_dict(self._stack.obs)

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """See `VectorEnv.load_state_dict`. Plays the current episodes again."""
        self._log.load_state_dict(state)
        obs = np.zeros_like(self._stack.obs)
        self._started = False  # until it has worked
        for i, seed in enumerate(self._log.seeds(np.ones(self.num_envs, bool))):
            images = deque([self._begin(i, int(seed))], maxlen=self.settings["frame_stack"])
            images.extend(self._advance(i, int(action))[0] for action in self._log.actions(i))
            newest = np.concatenate([self._frame(image) for image in images])
            obs[i, -len(newest) :] = newest
        self._log.verify(state, obs)
        self._stack.obs = obs
        self._action_N = None
        self._started = True
        return obs

    def render(self) -> np.ndarray:
        """See `VectorEnv.render`. Of an environment that cannot render, the observation in its own size."""
        if not self._render:
            return super().render()
        if not self._drawn and self._envs[0].render_mode == "rgb_array":
            return self._drawing(0)
        picture = self._picture
        if picture.ndim == 2 or picture.shape[-1] == 1:
            return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB), np.uint8)
        return picture

    def close(self) -> None:
        """Close the environments."""
        self._started = False
        for env in self._envs:
            env.close()

    def _begin(self, i: int, seed: int) -> np.ndarray:
        """Start an episode of environment i; returns its first image."""
        try:
            obs, info = self._envs[i].reset(seed=seed)
        except Exception as error:
            raise _cannot(self.id, f"be reset with seed {seed}", error) from error
        self._age_N[i] = 0
        self._lives_N[i] = info.get("lives", 0)
        return self._image(i, obs)

    def _advance(self, i: int, action: int) -> tuple[np.ndarray, float, bool, bool, bool]:
        """One step of environment i: image, reward, terminal, truncated, life_lost."""
        env, total, obs = self._envs[i], 0.0, None
        terminated = truncated = False
        info: dict[str, Any] = {}
        try:
            for _ in range(self._hold_steps):
                obs, reward, terminated, truncated, info = env.step(action + self._first_action)
                total += float(reward)
                if terminated or truncated:
                    break
        except Exception as error:
            raise UserError(
                f"{self.id} raised {type(error).__name__}: {error}; that was at step {int(self._age_N[i]) + 1} of an "
                f"episode of environment {i} with action {action}, and the fault lies in that environment."
            ) from error
        self._age_N[i] += 1
        terminal = bool(terminated)
        truncated = not terminal and (bool(truncated) or 0 < self._max_steps <= self._age_N[i])
        lives = info.get("lives", self._lives_N[i])
        life_lost = bool(lives < self._lives_N[i]) and not (terminal or truncated)
        self._lives_N[i] = lives
        return self._image(i, obs), total, terminal, truncated, life_lost

    def _image(self, i: int, obs: Any) -> np.ndarray:
        """The pixels that belong to an observation of environment i, uint8 in any of the accepted shapes."""
        if self._drawn:
            image = self._drawing(i)
        elif obs.dtype == np.uint8:
            image = obs
        else:
            image = np.rint(np.asarray(obs) * 255).astype(np.uint8)
        if i == 0 and self._render:
            self._picture = image.copy()
        return image

    def _drawing(self, i: int) -> np.ndarray:
        """What environment i renders."""
        try:
            picture = self._envs[i].render()
        except Exception as error:
            raise _cannot(self.id, "render", error) from error
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise UserError(f"{self.id} renders {_in_words(picture)} where (H, W, 3) of uint8 was expected.")
        return picture

    def _frame(self, image: np.ndarray) -> np.ndarray:
        """One frame (F, H, W) uint8 from an image."""
        image = np.ascontiguousarray(image)
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if self._grey and image.ndim == 3:
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        elif not self._grey and image.ndim == 2:
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))
        if image.shape[:2] != (self._size, self._size):
            image = np.asarray(cv2.resize(image, (self._size, self._size), interpolation=cv2.INTER_AREA))
        return image[None] if self._grey else image.transpose(2, 0, 1)


def _in_words(picture: object) -> str:
    if isinstance(picture, np.ndarray):
        return f"{picture.shape} of {picture.dtype}"
    return f"a {type(picture).__name__}"
