"""Vector environment of Gymnasium environments with discrete actions: observed images, rendered images, or vectors.

The single environments are stepped in a Python loop in this process, or in worker processes (envs/pools.py). Resuming
replays the actions of each episode from its seed (envs/action_log.py), so it is exact for every environment that is a
function of its seed. Of an environment that is not, and of one that raised an exception, the episodes are started
again.

Shapes: N environments, K stacked frames, F channels per frame (1 grayscale, 3 RGB), C = K * F, H, W pixels. A vector
has F numbers, and H = W = 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from gymnasium import spaces

from zerokara.core.config import UserError
from zerokara.envs.action_log import ActionLog
from zerokara.envs.base import Step, VectorEnv
from zerokara.envs.lookup import find
from zerokara.envs.observations import ImageFormat, ObservationError, find_image, parse_kwargs
from zerokara.envs.pools import SerialPool, make_pool
from zerokara.envs.single import Env, Outcome, SingleEnv, close, create
from zerokara.envs.stacks import Stacks
from zerokara.envs.vectors import VectorFormat, find_vector

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

MAX_WARNINGS = 3  # about exceptions of environments
REPRODUCIBILITY_STEPS = 16  # steps of the episode that is compared with its repetition


def make_gymnasium_env(
    env: str | Callable[..., Env],
    num_envs: int,
    settings: Mapping[str, Any],
    *,
    render: bool,
    restart_on_error: bool,
    workers: int,
    resumable: bool,
) -> GymnasiumVectorEnv:
    """Create N copies of an environment; see `GymnasiumVectorEnv`.

    An environment with continuous actions whose class accepts `continuous=False` (CarRacing, LunarLander) is created
    with it, and the settings contain `continuous: False`.

    Args:
        env: as in `envs.lookup.find`.
        num_envs: N.
        settings: active settings (envs/__init__.py), with size and grayscale unless obs_type is "vector".
        render: enable `render()`.
        restart_on_error: see `GymnasiumVectorEnv`.
        workers: see `GymnasiumVectorEnv`.
        resumable: see `GymnasiumVectorEnv`.

    Raises:
        UserError: the environment cannot be created, has neither image observations nor rgb_array rendering, has no
            vector if one is requested, or has no discrete actions.
    """
    name, target = find(env)
    try:
        kwargs = parse_kwargs(settings.get("env_kwargs", {}))
    except ObservationError as error:
        raise UserError(f"{name} {error}") from None
    env_settings = dict(settings)
    is_vector = settings.get("obs_type") == "vector"
    find_observation = find_vector if is_vector else find_image
    first = create(env, **kwargs)  # for its properties
    try:
        if not isinstance(first.action_space, spaces.Discrete):
            accepted = inspect.signature(type(first.unwrapped).__init__).parameters
            if "continuous" in accepted and "continuous" not in kwargs:
                kwargs["continuous"] = env_settings["continuous"] = False
                close(first)
                first = create(env, **kwargs)
            if not isinstance(first.action_space, spaces.Discrete):
                raise UserError(
                    f"{name} has the action space {first.action_space}, which is not supported: "
                    f"choose an environment with discrete actions."
                )
        try:
            image = find_observation(first.observation_space, settings.get("obs_key", ""), settings.get("obs_range"))
        except ObservationError as error:
            raise UserError(f"{name} {error}") from None
        modes = first.metadata.get("render_modes") or []
        renders = "rgb_array" in modes or first.render_mode == "rgb_array"
        if is_vector and render and not renders:
            raise UserError(
                f"{name} cannot render images (no render mode rgb_array), so that its episodes cannot be shown: train "
                f"it with --no-capture-video."
            )
        if image is None and not renders:
            raise UserError(
                f"{name} has observations {first.observation_space}, which are not images (H, W), (H, W, 1), "
                f"(H, W, 3), (1, H, W) or (3, H, W), and it cannot render images (no render mode rgb_array): choose an "
                f"environment with pixels."
            )
    finally:
        close(first)
    if "rgb_array" in modes and (render or image is None) and _accepts(target, "render_mode"):
        kwargs["render_mode"] = "rgb_array"
    made = GymnasiumVectorEnv(
        name,
        partial(create, env, **kwargs),
        num_envs,
        {**env_settings, "observation" if is_vector else "pixels": "render()" if image is None else str(image)},
        image,
        action_repeat=settings["frame_skip"],
        max_steps=settings["max_episode_frames"] // settings["frame_skip"],
        render=render,
        restart_on_error=restart_on_error,
        workers=workers,
        resumable=resumable,
    )
    made.first_action = int(first.action_space.start)
    return made


def _accepts(target: EnvSpec | Callable[..., Env], argument: str) -> bool:
    """Return True if the environment can be created with this argument; Gymnasium's `make` accepts render_mode."""
    if not callable(target):
        return True
    parameters = inspect.signature(target).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class GymnasiumVectorEnv(VectorEnv):
    """Vector environment of N single Gymnasium environments.

    Args:
        id: name of the environment in messages.
        make_env: creates one environment, with discrete actions.
        num_envs: N.
        settings: value of the attribute `settings`; frame_stack, size and grayscale are applied by this class.
        image: image or vector in the observations; None: the rendered image is used.
        action_repeat: number of times each action is repeated; rewards are summed; stops at the end of the episode.
        max_steps: time limit of an episode in steps; 0: only the environment's own limit.
        render: enable `render()`; the environments then run in this process.
        restart_on_error: an environment that raises an exception in a step is created again and starts a new episode;
            its episode is truncated and counted in `errors`. An exception at the start of an episode is still raised.
            False: every exception is raised.
        workers: worker processes among which the environments are divided; 0: they run in this process.
        resumable: check that an episode can be repeated, so that `load_state_dict` can resume it. False: the state is
            not saved, and the check is left out.

    Raises:
        UserError: an environment cannot be reset or rendered, or its observations are not those that its space
            declares.
    """

    def __init__(
        self,
        id: str,
        make_env: Callable[[], Env],
        num_envs: int,
        settings: Mapping[str, Any],
        image: ImageFormat | VectorFormat | None,
        *,
        action_repeat: int,
        max_steps: int,
        render: bool,
        restart_on_error: bool = False,
        workers: int = 0,
        resumable: bool = True,
    ) -> None:
        self.id, self.num_envs, self.settings = id, num_envs, dict(settings)
        size, grayscale = settings.get("size", 1), settings.get("grayscale", True)
        make_single = partial(
            SingleEnv,
            id,
            make_env=make_env,
            image=image,
            size=size,
            grayscale=grayscale,
            action_repeat=action_repeat,
            max_steps=max_steps,
        )
        self._pool = make_pool(make_single, num_envs, 0 if render else workers)
        self.image, self._render, self._restart_on_error = image, render, restart_on_error
        try:
            (self.action_names,) = self._pool.call([(0, "action_names", ())])
            self.num_actions = len(self.action_names)
            self._is_reproducible = not resumable or self._check_reproducible(make_single)
        except BaseException:
            self._pool.close()
            raise
        if isinstance(image, VectorFormat):
            self.obs_dtype = np.float32
            self._frame_shape = (image.size, 1, 1)
        else:
            self._frame_shape = (1 if grayscale else 3, size, size)
        self.frame_channels = self._frame_shape[0]
        self._stacks = Stacks.blank(self.num_envs, settings["frame_stack"], self._frame_shape, self.obs_dtype)
        self.obs_shape = (settings["frame_stack"] * self.frame_channels, *self._frame_shape[1:])
        self._log = ActionLog(id, self.num_envs, self.settings, reseed_every_steps=0)
        self._action_N: np.ndarray | None = None
        self._started = False
        if not self._is_reproducible:
            self.warnings.append(
                f"{id} does not repeat an episode when it is reset with the same seed: results are not reproducible, "
                f"and a resumed run starts new episodes."
            )

    def _check_reproducible(self, make_single: Callable[..., SingleEnv]) -> bool:
        """Compare the beginning of an episode with its repetition in an environment that had no episode before.

        It also finds a missing renderer and unsupported observations before the run starts.
        """
        action_T = np.random.default_rng(0).integers(self.num_actions, size=REPRODUCIBILITY_STEPS).tolist()
        (episode,) = self._pool.call([(0, "beginning", (action_T, True))])
        if self.num_envs > 1:
            (repetition,) = self._pool.call([(1, "beginning", (action_T, False))])
            return bool(episode == repetition)
        other = make_single(index=0)
        try:
            return bool(episode == other.beginning(action_T, False))
        finally:
            close(other.env)

    def reset(self, seed: int) -> np.ndarray:
        """See `VectorEnv.reset`. `seed` is any integer >= 0."""
        return self._begin_all(self._log.start(seed))

    def _begin_all(self, seed_N: np.ndarray) -> np.ndarray:
        """Start an episode in every environment. Returns the observations."""
        frames = self._pool.call([(i, "begin", (seed,)) for i, seed in enumerate(seed_N.tolist())])
        self._action_N = None
        self._life_lost_N = np.zeros(self.num_envs, bool)
        self._started = True
        self._stacks = self._stacks.push(np.stack(frames), slice(None))
        return self._stacks.make()

    def _send(self, action_N: np.ndarray) -> None:
        if not self._started or self._action_N is not None:
            missing = "recv()" if self._started else "reset()"
            raise RuntimeError(f"send() must follow reset() or recv(): call {missing} first")
        self._action_N = action_N.copy()
        self._pool.send([(i, "advance", (action,)) for i, action in enumerate(action_N.tolist())])

    def recv(self) -> Step:
        """See `VectorEnv.recv`.

        Raises:
            UserError: an environment raised an exception, which is chained as the cause, or returned a reward or an
                observation that is not valid.
        """
        if self._action_N is None:
            raise RuntimeError("recv() must follow send(): call send(actions) first")
        action_N, self._action_N = self._action_N, None
        self._log.append(action_N)
        frame_N = np.empty((self.num_envs, *self._frame_shape), self.obs_dtype)
        reward_N = np.zeros(self.num_envs, np.float32)
        terminal_N, truncated_N, life_lost_N = (np.zeros(self.num_envs, bool) for _ in range(3))
        for i, result in enumerate(self._pool.receive()):
            outcome = self._after_exception(i, result) if isinstance(result, UserError) else result
            frame_N[i], reward_N[i], terminal_N[i], truncated_N[i], life_lost_N[i] = outcome
        self._life_lost_N = life_lost_N
        before, ended, make_last = self._stacks, np.flatnonzero(terminal_N | truncated_N), None
        if len(ended):
            make_last = partial(before.make_last, frame_N, ended, frame_N[ended])
            seeds = self._log.reseed(terminal_N | truncated_N).tolist()
            calls = [(i, "begin", (seed,)) for i, seed in zip(ended.tolist(), seeds, strict=True)]
            frame_N[ended] = self._pool.call(calls)
        self._stacks = stacks = before.push(frame_N, ended)
        return Step(stacks.make, reward_N, terminal_N, truncated_N, life_lost_N, make_last, stacks.frame_N)

    def _after_exception(self, i: int, error: UserError) -> Outcome:
        """Create environment i again. Its episode is truncated at the last frame."""
        if not self._restart_on_error:
            raise error
        self.errors += 1
        if self.errors <= MAX_WARNINGS:
            more = " Further exceptions are only counted." if self.errors == MAX_WARNINGS else ""
            self.warnings.append(f"{error} The episode is truncated, and the environment is created again.{more}")
        self._pool.call([(i, "recreate", ())])
        last_frame = self._stacks.frame_N[i]
        return Outcome(last_frame, 0.0, terminal=False, truncated=True, life_lost=False)

    def state_dict(self) -> dict[str, Any]:
        """See `VectorEnv.state_dict`."""
        if not self._started or self._action_N is not None:
            raise RuntimeError("state_dict() must follow reset() or recv()")
        return {**self._log.state_dict(self._stacks.make()), **self._fire_state()}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """See `VectorEnv.load_state_dict`. Replays the current episode of each environment.

        New episodes are started instead if the environment is not reproducible from its seed, or if it raises an
        exception or shows other observations during the replay and `restart_on_error` is set.
        """
        self._log.load_state_dict(state)
        self._started = False  # set again after the replay has succeeded
        if not self._is_reproducible:
            return self._restart("it is not reproducible from its seed")
        try:
            obs = self._replay()
            self._log.verify(state, obs)
        except UserError as error:
            if not self._restart_on_error:
                raise
            return self._restart(str(error).rstrip("."))
        self._load_fire_state(state)
        self._stacks = self._stacks.filled(obs)
        self._action_N = None
        self._started = True
        return obs

    def _restart(self, reason: str) -> np.ndarray:
        """Start new episodes because the saved ones cannot be resumed. Returns the observations."""
        self.warnings.append(f"{self.id}: the episodes could not be resumed ({reason}): new episodes were started.")
        self.episodes_restarted = True
        return self._begin_all(self._log.reseed(np.ones(self.num_envs, bool)))

    def _replay(self) -> np.ndarray:
        """Repeat the current episode of each environment. Returns the observations at its end."""
        obs = np.zeros((self.num_envs, *self.obs_shape), self.obs_dtype)
        seeds = self._log.seeds(np.ones(self.num_envs, bool)).tolist()
        frame_stack = self.settings["frame_stack"]
        calls = [(i, "replay", (seed, self._log.actions(i).tolist(), frame_stack)) for i, seed in enumerate(seeds)]
        for i, frames in enumerate(self._pool.call(calls)):
            newest = np.concatenate(frames)
            obs[i, -len(newest) :] = newest
        return obs

    def render(self) -> np.ndarray:
        """See `VectorEnv.render`. Returns the unscaled observation if the environment cannot render."""
        if not self._render:
            return super().render()
        assert isinstance(self._pool, SerialPool)
        first = self._pool.envs[0]
        if isinstance(self.image, VectorFormat) or (self.image is not None and first.env.render_mode == "rgb_array"):
            return first.render()
        picture = first.picture
        if picture.ndim == 2 or picture.shape[-1] == 1:
            return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB), np.uint8)
        return picture.copy()

    def close(self) -> None:
        """Close the environments."""
        self._started = False
        self._pool.close()
