"""One Gymnasium environment as a source of frames: image of an observation, action repeat, endings, errors.

Shapes: F channels of one frame (1 grayscale, 3 RGB), H, W pixels; F numbers of a vector, H = W = 1.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from zerokara.core.config import UserError
from zerokara.envs.lookup import describe, find
from zerokara.envs.observations import ImageFormat, ObservationError, make_frame, read_rendered
from zerokara.envs.vectors import VectorFormat

Env = gymnasium.Env[Any, Any]
STEP = "observation, reward, terminated, truncated, info"  # values that `gymnasium.Env.step` returns


def create(env: str | Callable[..., Env], **kwargs: Any) -> Env:
    """Create an environment from its id or class, and convert every exception to a UserError of one sentence.

    Args:
        env: as in `envs.lookup.find`.
        kwargs: arguments of the environment.

    Raises:
        UserError: there is no such environment, a required package is not installed, or it cannot be created for
            another reason.
    """
    name, target = find(env)
    try:
        if callable(target):
            return _checked(name, target(**kwargs))
        # Gymnasium's checker warns about style and slows down the first step.
        return gymnasium.make(target.id, disable_env_checker=True, **kwargs)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _user_error(name, "be created", error) from error


def _checked(name: str, env: object) -> Env:
    """Return what a class or function has created, if it is an environment.

    Raises:
        UserError: it is something else, or has the interface of gym, the predecessor of Gymnasium.
    """
    if isinstance(env, gymnasium.Env):
        return env
    raise UserError(
        f"{name} created {'None' if env is None else f'an object of {type(env).__name__}'}, expected a gymnasium.Env: "
        f"derive the class from gymnasium.Env, or return the environment from the function."
    )


def _user_error(name: str, what: str, error: BaseException) -> UserError:
    """Describe why the environment cannot `what`, and name the package to install if that is the reason."""
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        commands = re.findall("`(pip install [^`]*)`", str(error))
        hint = f"type: {' && '.join(commands)}" if commands else f"the error is: {error}"
        return UserError(f"{name} cannot {what} because a required package is not installed; {hint}")
    if isinstance(error, ModuleNotFoundError):
        return UserError(
            f"{name} cannot {what} because the package {error.name} is not installed; install it with pip."
        )
    return UserError(f"{name} cannot {what}: {describe(error)}")


def close(env: Env) -> None:
    """Close an environment. One that raises an exception here, or exits, is closed as far as it can be."""
    with contextlib.suppress(Exception, SystemExit):
        env.close()


def _lives(info: Any, default: int) -> int:
    """Return the lives in the info of a step, if the environment counts them; some return None for an empty info."""
    return info.get("lives", default) if isinstance(info, dict) else default


class Outcome(NamedTuple):
    """Result of one step."""

    frame: np.ndarray  # (F, H, W) uint8, or float32 of a vector
    reward: float
    terminal: bool
    truncated: bool
    life_lost: bool


class SingleEnv:
    """One environment. Actions are numbered from 0, whatever the start of the action space.

    Args:
        name: name of the environment in messages.
        index: number of this copy, for messages.
        make_env: creates the environment.
        image: image or vector in the observations; None: the rendered image is used.
        size: height and width of a frame in pixels.
        grayscale: one channel instead of three.
        action_repeat: number of times each action is repeated; rewards are summed; stops at the end of the episode.
        max_steps: time limit of an episode in steps; 0: only the environment's own limit.
    """

    def __init__(
        self,
        name: str,
        *,
        index: int,
        make_env: Callable[[], Env],
        image: ImageFormat | VectorFormat | None,
        size: int,
        grayscale: bool,
        action_repeat: int,
        max_steps: int,
    ) -> None:
        self.name, self.index, self.image = name, index, image
        self._make_env, self._size, self._grayscale = make_env, size, grayscale
        self._action_repeat, self._max_steps = action_repeat, max_steps
        self.env = make_env()
        space = self.env.action_space
        assert isinstance(space, spaces.Discrete)
        self.num_actions, self._first_action = int(space.n), int(space.start)
        self._lives = 0
        self._age = 0  # steps since the start of the episode
        self.picture = np.zeros((1, 1), np.uint8)
        """Latest image before conversion to a frame, uint8 (H, W), (H, W, 1) or (H, W, 3)."""

    def action_names(self) -> tuple[str, ...]:
        """Return the names of the actions, or their numbers as in the action space."""
        meanings = getattr(self.env.unwrapped, "get_action_meanings", None)
        names = meanings() if meanings else range(self._first_action, self._first_action + self.num_actions)
        return tuple(str(name) for name in names)

    def begin(self, seed: int) -> np.ndarray:
        """Start an episode. Returns its first frame (F, H, W).

        Raises:
            UserError: the environment raised an exception, or returned something that is not an image.
        """
        try:
            result = self.env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise _user_error(self.name, f"be reset with seed {seed}", error) from error
        obs, info = self._unpack("reset", result, "observation, info")
        self._age = 0
        self._lives = _lives(info, 0)
        return self._frame(obs, f"at the start of an episode of environment {self.index}")

    def advance(self, action: int) -> Outcome:
        """Do one step.

        Raises:
            UserError: the environment raised an exception, returned something else than `STEP`, or a reward or an
                observation that is NaN, Inf, not a number or not an image.
        """
        total, obs = 0.0, None
        terminated = truncated = False
        info: dict[str, Any] = {}
        where = f"at step {self._age + 1} of an episode of environment {self.index} with action {action}"
        try:
            for _ in range(self._action_repeat):
                result = self.env.step(action + self._first_action)
                obs, reward, terminated, truncated, info = self._unpack("step", result, STEP)
                total += float(reward) if isinstance(reward, float | int) else self._number(reward, where)
                if terminated or truncated:
                    break
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.name} raised {describe(error).rstrip('.')}; this happened {where}. The error is in the "
                f"environment itself."
            ) from error
        if not math.isfinite(total):
            raise UserError(
                f"{self.name} returned a reward of {total} {where}. The error is in the environment itself."
            )
        self._age += 1
        terminal = bool(terminated)
        truncated = not terminal and (bool(truncated) or 0 < self._max_steps <= self._age)
        lives = _lives(info, self._lives)
        life_lost = bool(lives < self._lives) and not (terminal or truncated)
        self._lives = lives
        return Outcome(self._frame(obs, where), total, terminal, truncated, life_lost)

    def replay(self, seed: int, action_T: Sequence[int], frames: int) -> np.ndarray:
        """Repeat an episode. Returns its last frames (K, F, H, W), at most `frames`."""
        newest = deque([self.begin(seed)], maxlen=frames)
        newest.extend(self.advance(int(action)).frame for action in action_T)
        return np.stack(newest)

    def beginning(self, action_T: Sequence[int], after_another_episode: bool) -> list[tuple[bytes, float, bool, bool]]:
        """Return frames, rewards and endings of the beginning of an episode, up to an exception if there is one."""
        if after_another_episode:
            self.begin(seed=1)
        result = [(self.begin(seed=2).tobytes(), 0.0, False, False)]
        for action in action_T:
            try:
                outcome = self.advance(action)
            except UserError:  # it is raised again when the run reaches it
                break
            result.append((outcome.frame.tobytes(), outcome.reward, outcome.terminal, outcome.truncated))
            if outcome.terminal or outcome.truncated:
                break
        return result

    def recreate(self) -> None:
        """Replace the environment by a new one, after an exception."""
        close(self.env)  # a broken environment may not even close
        self.env = self._make_env()

    def render(self) -> np.ndarray:
        """Render the environment. Returns (H, W, 3) uint8.

        Raises:
            UserError: it cannot render, or renders something that is not an image.
        """
        try:
            return read_rendered(self.env.render())
        except ObservationError as error:
            raise UserError(f"{self.name} {error}") from None
        except (Exception, SystemExit) as error:
            raise _user_error(self.name, "render", error) from error

    def _frame(self, obs: Any, where: str) -> np.ndarray:
        """Convert an observation to one frame (F, H, W) uint8, grayscale or RGB, resized; a vector to (F, 1, 1)."""
        if self.image is None:
            image = self.render()
        else:
            try:
                image = self.image.read(obs)
            except ObservationError as error:
                raise UserError(f"{self.name} {error} This happened {where}.") from None
        if isinstance(self.image, VectorFormat):
            return image[:, None, None]
        self.picture = image
        frame_FHW = make_frame(image, self._size, self._grayscale)
        # An image of the right size and type was not converted, and the environment may draw the next one into the same
        # array.
        return frame_FHW.copy() if np.may_share_memory(frame_FHW, image) else frame_FHW

    def _unpack(self, method: str, result: Any, names: str) -> Sequence[Any]:
        """Return the values that a method of the environment returned, if they are as many as `names`.

        Raises:
            UserError: they are not.
        """
        if isinstance(result, tuple | list) and len(result) == names.count(",") + 1:
            return result
        what = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
        raise UserError(f"{self.name} returned {what} from {method}(), expected those of gymnasium.Env: {names}.")

    def _number(self, reward: Any, where: str) -> float:
        """Return a reward that is a number of NumPy, or an array or tensor of one number, as a float.

        Raises:
            UserError: it is something else.
        """
        array = np.asarray(reward)
        if array.size != 1 or array.dtype.kind not in "uifb":
            raise UserError(
                f"{self.name} returned a reward that is not a number, but {reward!r}, {where}. The error is in the "
                f"environment itself."
            )
        return float(array.item())
