"""Base class of the arcade games: N games stepped at once, in C or in NumPy, without a Python loop over environments.

A game keeps its state in arrays whose first axis is the environment. It implements one step (`_advance`), the start of
an episode (`_start`) and drawing (`_draw`). The frame is a pure function of the state and is redrawn at every step, so
a restored state needs no saved canvas.

The same is written in C (compiled.py): 6 to 19 times as fast with frames that are not copied (`Step.frame`), 1.1 to 2.9
times with observations, which are copies. NumPy is the reference, and what is used where there is no C compiler. Both
have the same results and states.

The colors of a game are defined as RGB, and no two have the same luminance. Grayscale frames are drawn with the
luminances, so they equal the usual conversion of the RGB frames, and they can be converted back to RGB for display.

Shapes: N environments, n selected environments, K stacked frames, F channels per frame (1 grayscale, 3 RGB).
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from zerokara.core.config import UserError
from zerokara.envs.arcade import compiled
from zerokara.envs.arcade.library import BuildError
from zerokara.envs.arcade.memory import ArrayPool
from zerokara.envs.base import Step, VectorEnv
from zerokara.envs.stacks import Stacks

SIZE = 84  # height and width of a frame, pixels
RENDER_SCALE = 4  # rendered images are this many times larger than frames


def luminance(color: tuple[int, int, int]) -> int:
    """Compute the luminance (ITU-R BT.601) of an RGB color, 0 to 255: its value in a grayscale frame."""
    red, green, blue = color
    return round(0.299 * red + 0.587 * green + 0.114 * blue)


def sprite(*lines: str) -> np.ndarray:
    """Convert a drawing in text lines to the flat offsets (P,) of its '#' pixels from the upper left corner."""
    return np.array([y * SIZE + x for y, line in enumerate(lines) for x, mark in enumerate(line) if mark == "#"])


def box(height: int, width: int) -> np.ndarray:
    """Return the offsets of a filled rectangle, in the format of `sprite`."""
    return sprite(*["#" * width] * height)


def bounce(position: np.ndarray, velocity: np.ndarray, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Reflect positions outside of [0, high] back inside and negate their velocity. At most one crossing."""
    out = (position < 0) | (position > high)
    return fold(position, high), np.where(out, -velocity, velocity)


def fold(position: np.ndarray, high: int) -> np.ndarray:
    """Map an unbounded position to [0, high], applying any number of reflections at the bounds."""
    phase = position % (2 * high)
    return np.where(phase > high, 2 * high - phase, phase)


class Streams:
    """One SplitMix64 random generator per environment, vectorized over environments.

    Every environment has its own stream, so a game depends only on its seed, its index in the batch and its own
    actions, not on the number of other environments or on their random draws.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16.
    """

    def __init__(self, num_envs: int) -> None:
        self.state_N = np.zeros(num_envs, np.uint64)

    def seed(self, seed: int) -> None:
        """Seed every stream. `seed` is any integer >= 0."""
        self.state_N[:] = np.random.SeedSequence(seed).generate_state(len(self.state_N), np.uint64)

    def integers(self, index_n: np.ndarray, low: int, high: int | np.ndarray) -> np.ndarray:
        """Draw one integer from [low, high) for each environment of index_n (n,). Returns (n,) int64.

        `high` may have shape (n,). Uses multiply and shift; the bias is below (high - low) / 2**32.
        """
        bits_n = self.state_N[index_n] + np.uint64(0x9E3779B97F4A7C15)
        self.state_N[index_n] = bits_n
        bits_n = (bits_n ^ (bits_n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits_n = (bits_n ^ (bits_n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits_n ^= bits_n >> np.uint64(31)
        top_n = (bits_n >> np.uint64(32)).astype(np.int64)
        sample_n: np.ndarray = low + ((top_n * (high - low)) >> 32)
        return sample_n


class ArcadeEnv(VectorEnv):
    """Vector environment of N copies of one arcade game. Each game is a subclass.

    Games are stepped in NumPy; `compile` changes to C.

    Args:
        num_envs: N.
        frame_stack: K, frames per observation.
        grayscale: one channel per frame instead of three (RGB).

    Raises:
        UserError: num_envs or frame_stack below 1.
    """

    name: ClassVar[str]
    colors: ClassVar[Mapping[str, tuple[int, int, int]]]  # object -> RGB; the background is black
    time_limit_steps: ClassVar[int]  # an episode is truncated after this many steps
    rules: ClassVar[Mapping[str, Any]]  # constants of the game, included in the settings
    state_names: ClassVar[tuple[str, ...]]  # attribute names of the state arrays, each with first axis N
    palette: ClassVar[np.ndarray]  # (256, 3) uint8: luminance -> RGB

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        luminances = [luminance(color) for color in cls.colors.values()]
        if len({0, *luminances}) <= len(luminances):
            raise ValueError(f"the luminances of the colors of {cls.name} must be distinct and > 0, got {luminances}")
        cls.palette = np.zeros((256, 3), np.uint8)
        cls.palette[luminances] = list(cls.colors.values())

    def __init__(self, num_envs: int, *, frame_stack: int = 4, grayscale: bool = True) -> None:
        for what, value in (("environments", num_envs), ("stacked frames", frame_stack)):
            if value < 1:
                raise UserError(f"the number of {what} of {self.name} must be at least 1, got {value}.")
        self.id = f"zerokara/{self.name}-v0"
        self.num_envs = num_envs
        self.num_actions = len(self.action_names)
        self.frame_channels = 1 if grayscale else 3
        self.obs_shape = (frame_stack * self.frame_channels, SIZE, SIZE)
        self.settings = {
            "frame_stack": frame_stack,
            "size": SIZE,
            "grayscale": grayscale,
            "max_episode_steps": self.time_limit_steps,
            **self.rules,
        }
        self.streams = Streams(num_envs)
        self.age = np.zeros(num_envs, np.int64)  # steps since the episode's start
        self._canvases = ArrayPool((num_envs, self.frame_channels, SIZE, SIZE))
        self.canvas = self._canvases.array()  # the current frames, (N, F, SIZE, SIZE)
        # Index of each color, in the order of `colors`; index 0 is the background.
        self.color_index = {what: index for index, what in enumerate(self.colors, start=1)}
        luminances = [[luminance(color)] for color in self.colors.values()]
        rgb = [list(color) for color in self.colors.values()]
        self.color_values = np.array(
            [[0] * self.frame_channels, *(luminances if grayscale else rgb)], np.uint8
        )  # color index -> (F,)
        self._all = np.arange(num_envs)
        self._stacks = Stacks.blank(num_envs, frame_stack, (self.frame_channels, SIZE, SIZE))
        self._action: np.ndarray | None = None
        self._started = False
        self._compiled: compiled.CompiledGame | None = None

    def compile(self) -> None:
        """Step the games in C from now on, if there is a C compiler. Running episodes continue."""
        if self._compiled is not None:
            return
        try:
            self._compiled = compiled.load(self)
        except BuildError as error:
            self.warnings.append(
                f"{self.id}: the C version of the game cannot be used ({error}): it is stepped in NumPy, with the same "
                f"results, but more slowly."
            )
        if self._compiled is not None and self._started:
            self._compiled.load(self._stacks.make())

    @property
    def is_compiled(self) -> bool:
        """True if the games are stepped in C."""
        return self._compiled is not None

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for `pickle` and `copy`: of the C version, only that it is used, and the frames."""
        if self._compiled is None:
            return self.__dict__
        return {**self.__dict__, "_stacks": self._stacks.filled(self._compiled.stacks.make()), "_compiled": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _compiled=None)
        if state.get("_compiled"):
            if self._started:
                self._redraw(self._all)  # shown by `render` if the games cannot be compiled here
            self.compile()

    # Implemented by each game.

    @abstractmethod
    def _start(self, index_n: np.ndarray) -> None:
        """Start an episode in the environments index_n (n,)."""

    @abstractmethod
    def _advance(self, action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step all environments. Returns reward (N,) float32, terminal (N,) bool, life_lost (N,) bool.

        If the last life was lost, terminal is True and life_lost is False.
        """

    @abstractmethod
    def _draw(self, index_n: np.ndarray) -> None:
        """Draw the environments index_n (n,) on their canvases, which have been cleared to black."""

    @abstractmethod
    def expert(self) -> np.ndarray:
        """Return the actions (N,) int64 of a scripted policy with access to the game's state: a reference score."""

    # Shared by all games.

    def _stamp(
        self, index_n: np.ndarray, row_n: np.ndarray | int, column_n: np.ndarray | int, shape_P: np.ndarray, what: str
    ) -> None:
        """Draw a shape (see `sprite`) with its upper left corner at (row, column). It must lie within the frame."""
        corner_n = index_n * (self.frame_channels * SIZE * SIZE) + row_n * SIZE + column_n
        pixel_nP = corner_n[:, None] + shape_P
        flat = self.canvas.reshape(-1)
        for channel, value in enumerate(self.color_values[self.color_index[what]]):
            flat[pixel_nP + channel * (SIZE * SIZE)] = value

    def _tile(self, index_n: np.ndarray, top: int, color_index_nRC: np.ndarray, height: int, width: int) -> None:
        """Draw R rows and C columns of tiles (height, width) from pixel row `top` down, over the full frame width.

        The last pixel row and the last pixel column of each tile stay black, as a gap.
        """
        n, rows, columns = color_index_nRC.shape
        which = slice(None) if n == self.num_envs else index_n
        # Compute one pixel line per row of tiles and broadcast it over the height of the tiles.
        line = np.zeros((n, self.frame_channels, rows, columns, width), np.uint8)
        line[..., :-1] = self.color_values[color_index_nRC].transpose(0, 3, 1, 2)[..., None]
        area = self.canvas[:, :, top : top + rows * height].reshape(self.num_envs, -1, rows, height, SIZE, copy=False)
        area[which, :, :, :-1] = line.reshape(n, self.frame_channels, rows, 1, SIZE)

    def _redraw(self, index_n: np.ndarray) -> None:
        if len(index_n) == self.num_envs:
            self.canvas = self._canvases.array()  # the frames so far are part of stacks
            self.canvas.fill(0)
        else:
            self.canvas[index_n] = 0
        self._draw(index_n)

    def reset(self, seed: int) -> np.ndarray:
        """See `VectorEnv.reset`. `seed` is any integer >= 0."""
        self.streams.seed(seed)
        self._action = None
        self._started = True
        if self._compiled is not None:
            return self._compiled.reset(self)
        self.age[:] = 0
        self._start(self._all)
        self._redraw(self._all)
        self._stacks = self._stacks.push(self.canvas, slice(None))
        return self._stacks.make()

    def _send(self, action_N: np.ndarray) -> None:
        if not self._started:
            raise RuntimeError(f"{self.id} has no current episode: call reset(seed) or load_state_dict(state) first")
        if self._action is not None:
            raise RuntimeError(f"{self.id}: send() was called twice: call recv() between two calls of send()")
        self._action = action_N.copy()

    def recv(self) -> Step:
        """See `VectorEnv.recv`. Computes the step, because `send` has no thread to compute it in."""
        if self._action is None:
            raise RuntimeError(f"{self.id} has no pending step: call send(actions) before recv()")
        action_N, self._action = self._action, None
        if self._compiled is not None:
            return self._compiled.step(self, action_N)
        reward_N, terminal_N, life_lost_N = self._advance(action_N)
        self.age += 1
        truncated_N = (self.age >= self.time_limit_steps) & ~terminal_N
        ended_N = terminal_N | truncated_N
        index_n = np.flatnonzero(ended_N)
        self._redraw(self._all)
        before, make_last = self._stacks, None
        if len(index_n):
            last_frame_n = self.canvas[index_n]
            self._start(index_n)
            self.age[index_n] = 0
            self._redraw(index_n)
            make_last = functools.partial(before.make_last, self.canvas, index_n, last_frame_n)
        self._stacks = stacks = before.push(self.canvas, index_n)
        return Step(stacks.make, reward_N, terminal_N, truncated_N, life_lost_N, make_last, stacks.frame_N)

    def state_dict(self) -> dict[str, Any]:
        """See `VectorEnv.state_dict`."""
        import torch  # imported here, because it is slow to import and worker processes of environments do not need it

        if self._action is not None or not self._started:
            raise RuntimeError(
                f"{self.id}: state_dict() must follow reset() or recv(), not come between send() and recv()"
            )
        arrays = {name: getattr(self, name) for name in self.state_names}
        return {
            "id": self.id,
            "streams": torch.from_numpy(self.streams.state_N.view(np.int64).copy()),
            "age": torch.from_numpy(self.age.copy()),
            "obs": torch.from_numpy(self._obs()),
            "game": {name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """See `VectorEnv.load_state_dict`.

        Raises:
            ValueError: the state of another game, or with another shape of observations.
        """
        if state["id"] != self.id:
            raise ValueError(f"the state was saved by {state['id']}, expected a state of {self.id}")
        obs: np.ndarray = state["obs"].numpy().copy()
        if obs.shape != (expected := (self.num_envs, *self.obs_shape)):
            raise ValueError(f"the observations of the state have shape {obs.shape}, expected {expected}")
        for name in self.state_names:
            getattr(self, name)[...] = state["game"][name].numpy()
        self.streams.state_N[:] = state["streams"].numpy().view(np.uint64)
        self.age[:] = state["age"].numpy()
        self._action = None
        self._started = True
        if self._compiled is not None:
            self._compiled.load(obs)
        else:
            self._stacks = self._stacks.filled(obs)
            self._redraw(self._all)
        return obs

    def _obs(self) -> np.ndarray:
        """Return a copy of the current observation (N, C, H, W)."""
        return (self._stacks if self._compiled is None else self._compiled.stacks).make()

    def render_frame(self, frame_FHW: np.ndarray) -> np.ndarray:
        """Convert a frame (F, 84, 84) to an enlarged RGB image (336, 336, 3) uint8 for display."""
        rgb_HWF = self.palette[frame_FHW[0]] if self.frame_channels == 1 else frame_FHW.transpose(1, 2, 0)
        return rgb_HWF.repeat(RENDER_SCALE, axis=0).repeat(RENDER_SCALE, axis=1)

    def render(self) -> np.ndarray:
        """See `VectorEnv.render`. Available without render=True."""
        frame_NFHW = self.canvas if self._compiled is None else self._compiled.stacks.frame_N
        return self.render_frame(frame_NFHW[0])
