"""Vector environment of Gymnasium environments with discrete actions and image observations or rendered images.

The single environments are stepped in a Python loop in this process. Resuming replays the actions of each episode from
its seed (envs/action_log.py), so it is exact for every environment that is a function of its seed.

Shapes: N environments, K stacked frames, F channels per frame (1 grayscale, 3 RGB), C = K * F, H, W pixels.
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


def make_single_env(id: str, **kwargs: Any) -> Env:
    """Call `gymnasium.make` and convert every exception to a UserError of one sentence.

    Raises:
        UserError: a required package is not installed, or the environment cannot be created for another reason.
    """
    try:
        # Gymnasium's checker warns about style and slows down the first step.
        return gymnasium.make(id, disable_env_checker=True, **kwargs)
    except Exception as error:
        raise _user_error(id, "be created", error) from error


def _user_error(id: str, what: str, error: Exception) -> UserError:
    """Describe why the environment cannot `what`, and name the package to install if that is the reason."""
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        commands = re.findall("`(pip install [^`]*)`", str(error))
        hint = f"type: {' && '.join(commands)}" if commands else f"the error is: {error}"
        return UserError(f"{id} cannot {what} because a required package is not installed; {hint}")
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"{id} cannot {what} because the package {error.name} is not installed; install it with pip.")
    return UserError(f"{id} cannot {what}: {type(error).__name__}: {error}")


def has_images(space: spaces.Space[Any]) -> bool:
    """Return True for images: (H, W), (H, W, 1) or (H, W, 3), of uint8 or of floats from 0 to 1."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        return False
    if len(space.shape) == 3 and space.shape[2] not in (1, 3):
        return False
    unit = np.issubdtype(space.dtype, np.floating) and bool((space.low == 0).all() and (space.high == 1).all())
    return space.dtype == np.uint8 or unit


def make_gymnasium_env(id: str, num_envs: int, settings: Mapping[str, Any], *, render: bool) -> GymnasiumVectorEnv:
    """Create N copies of the registered environment `id`; see `GymnasiumVectorEnv`.

    An environment with continuous actions whose class accepts `continuous=False` (CarRacing, LunarLander) is created
    with it, and the settings contain `continuous: False`.

    Raises:
        UserError: the environment cannot be created, has neither image observations nor rgb_array rendering, or has no
            discrete actions.
    """
    kwargs: dict[str, Any] = {}
    first = make_single_env(id)
    if not isinstance(first.action_space, spaces.Discrete):
        if "continuous" in inspect.signature(type(first.unwrapped).__init__).parameters:
            kwargs["continuous"] = False
            first = make_single_env(id, **kwargs)
        if not isinstance(first.action_space, spaces.Discrete):
            raise UserError(
                f"{id} has the action space {first.action_space}, which is not supported: "
                f"choose an environment with discrete actions."
            )
    images = has_images(first.observation_space)
    modes = first.metadata.get("render_modes") or []
    if not images and "rgb_array" not in modes:
        raise UserError(
            f"{id} has observations {first.observation_space}, which are not images of uint8 (H, W), (H, W, 1) or "
            f"(H, W, 3), and it cannot render images (no render mode rgb_array): choose an environment with pixels."
        )
    if "rgb_array" in modes and (render or not images):
        kwargs["render_mode"] = "rgb_array"
    first.close()
    env_settings = {**settings, "pixels": "observation" if images else "render()"}
    if "continuous" in kwargs:
        env_settings["continuous"] = False
    return GymnasiumVectorEnv(
        id,
        [make_single_env(id, **kwargs) for _ in range(num_envs)],
        env_settings,
        action_repeat=settings["frame_skip"],
        max_steps=settings["max_episode_frames"] // settings["frame_skip"],
        render=render,
    )


class GymnasiumVectorEnv(VectorEnv):
    """Vector environment of N single Gymnasium environments, stepped one after another.

    Images are converted to grayscale (or from grayscale to RGB) first and then resized with OpenCV's INTER_AREA, as in
    Gymnasium's AtariPreprocessing.

    Args:
        id: name of the environment in messages.
        envs: N environments of the same type, with discrete actions.
        settings: value of the attribute `settings`; frame_stack, size and grayscale are applied by this class.
        action_repeat: number of times each action is repeated; rewards are summed; stops at the end of the episode.
        max_steps: time limit of an episode in steps; 0: only the environment's own limit.
        render: enable `render()`.

    Raises:
        UserError: an environment cannot be reset or rendered, or renders an image that is not RGB.
    """

    def __init__(
        self,
        id: str,
        envs: Sequence[Env],
        settings: Mapping[str, Any],
        *,
        action_repeat: int,
        max_steps: int,
        render: bool,
    ) -> None:
        self.id, self.num_envs, self.settings = id, len(envs), dict(settings)
        self._envs = envs
        self._action_repeat, self._max_steps, self._render = action_repeat, max_steps, render
        self._renders_obs = not has_images(envs[0].observation_space)
        space = envs[0].action_space
        assert isinstance(space, spaces.Discrete)
        self.num_actions, self._first_action = int(space.n), int(space.start)
        meanings = getattr(envs[0].unwrapped, "get_action_meanings", None)
        names = meanings() if meanings else range(self._first_action, self._first_action + self.num_actions)
        self.action_names = tuple(str(name) for name in names)
        self._size, self._grayscale = settings["size"], settings["grayscale"]
        self.frame_channels = 1 if self._grayscale else 3
        frame_shape = (self.frame_channels, self._size, self._size)
        self._stack = FrameStack(self.num_envs, settings["frame_stack"], frame_shape)
        self.obs_shape = (settings["frame_stack"] * self.frame_channels, self._size, self._size)
        self._log = ActionLog(id, self.num_envs, self.settings, reseed_every_steps=0)
        self._lives_N = np.zeros(self.num_envs, np.int64)
        self._age_N = np.zeros(self.num_envs, np.int64)  # steps since the episode's start
        self._image_of_env_0 = np.zeros((1, 1), np.uint8)  # latest unprocessed image of the first environment
        self._action_N: np.ndarray | None = None
        self._started = False
        if self._renders_obs:
            # Render once now, so that a missing renderer or an unsupported image format fails before the run starts.
            self._begin(0, seed=0)

    def reset(self, seed: int) -> np.ndarray:
        """See `VectorEnv.reset`. `seed` is any integer >= 0."""
        seed_N = self._log.start(seed)
        frame_N = np.stack([self._frame(self._begin(i, int(seed_N[i]))) for i in range(self.num_envs)])
        self._action_N = None
        self._started = True
        return self._stack.push(frame_N, np.ones(self.num_envs, bool))

    def _send(self, action_N: np.ndarray) -> None:
        if not self._started or self._action_N is not None:
            missing = "recv()" if self._started else "reset()"
            raise RuntimeError(f"send() must follow reset() or recv(): call {missing} first")
        self._action_N = action_N.copy()

    def recv(self) -> Step:
        """See `VectorEnv.recv`.

        Raises:
            UserError: an environment raised an exception, which is chained as the cause.
        """
        if self._action_N is None:
            raise RuntimeError("recv() must follow send(): call send(actions) first")
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
            raise RuntimeError("state_dict() must follow reset() or recv()")
        return self._log.state_dict(self._stack.obs)

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """See `VectorEnv.load_state_dict`. Replays the current episode of each environment."""
        self._log.load_state_dict(state)
        obs = np.zeros_like(self._stack.obs)
        self._started = False  # set again after the replay has succeeded
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
        """See `VectorEnv.render`. Returns the unscaled observation if the environment cannot render."""
        if not self._render:
            return super().render()
        if not self._renders_obs and self._envs[0].render_mode == "rgb_array":
            return self._render_env(0)
        picture = self._image_of_env_0
        if picture.ndim == 2 or picture.shape[-1] == 1:
            return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB), np.uint8)
        return picture

    def close(self) -> None:
        """Close the environments."""
        self._started = False
        for env in self._envs:
            env.close()

    def _begin(self, i: int, seed: int) -> np.ndarray:
        """Start an episode of environment i. Returns its first image."""
        try:
            obs, info = self._envs[i].reset(seed=seed)
        except Exception as error:
            raise _user_error(self.id, f"be reset with seed {seed}", error) from error
        self._age_N[i] = 0
        self._lives_N[i] = info.get("lives", 0)
        return self._image(i, obs)

    def _advance(self, i: int, action: int) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Step environment i. Returns image, reward, terminal, truncated, life_lost."""
        env, total, obs = self._envs[i], 0.0, None
        terminated = truncated = False
        info: dict[str, Any] = {}
        try:
            for _ in range(self._action_repeat):
                obs, reward, terminated, truncated, info = env.step(action + self._first_action)
                total += float(reward)
                if terminated or truncated:
                    break
        except Exception as error:
            raise UserError(
                f"{self.id} raised {type(error).__name__}: {error}; this happened at step {int(self._age_N[i]) + 1} of "
                f"an episode of environment {i} with action {action}. The error is in the environment itself."
            ) from error
        self._age_N[i] += 1
        terminal = bool(terminated)
        truncated = not terminal and (bool(truncated) or 0 < self._max_steps <= self._age_N[i])
        lives = info.get("lives", self._lives_N[i])
        life_lost = bool(lives < self._lives_N[i]) and not (terminal or truncated)
        self._lives_N[i] = lives
        return self._image(i, obs), total, terminal, truncated, life_lost

    def _image(self, i: int, obs: Any) -> np.ndarray:
        """Return the image of environment i for this observation, uint8 in one of the accepted shapes."""
        if self._renders_obs:
            image = self._render_env(i)
        elif obs.dtype == np.uint8:
            image = obs
        else:
            image = np.rint(np.asarray(obs) * 255).astype(np.uint8)
        if i == 0 and self._render:
            self._image_of_env_0 = image.copy()
        return image

    def _render_env(self, i: int) -> np.ndarray:
        """Render environment i and check the type and shape of the image."""
        try:
            picture = self._envs[i].render()
        except Exception as error:
            raise _user_error(self.id, "render", error) from error
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise UserError(f"{self.id} renders {_format_image(picture)}, expected an array (H, W, 3) of uint8.")
        return picture

    def _frame(self, image: np.ndarray) -> np.ndarray:
        """Convert an image to one frame (F, H, W) uint8: grayscale or RGB, then resize."""
        image = np.ascontiguousarray(image)
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if self._grayscale and image.ndim == 3:
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        elif not self._grayscale and image.ndim == 2:
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))
        if image.shape[:2] != (self._size, self._size):
            image = np.asarray(cv2.resize(image, (self._size, self._size), interpolation=cv2.INTER_AREA))
        return image[None] if self._grayscale else image.transpose(2, 0, 1)


def _format_image(picture: object) -> str:
    if isinstance(picture, np.ndarray):
        return f"{picture.shape} of {picture.dtype}"
    return f"a {type(picture).__name__}"
