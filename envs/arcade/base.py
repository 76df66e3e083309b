"""Small pixel games of our own: N of them at once in NumPy, without a Python loop over environments.

A game keeps its state in arrays whose first axis is the environment, and says what one step does (`_advance`), how an
episode starts (`_start`) and what it looks like (`_draw`). The picture is a pure function of the state, drawn anew at
every step: nothing has to be erased, and a restored state needs no saved canvas.

Each colour of a game is named once, as RGB, and no two have the same luminance. Grey frames are drawn in luminances, so
they are what anybody's conversion of the RGB ones gives, and a grey frame can be coloured again for people.

Shapes: N environments, n those of them that a call is about, K stacked frames, F channels of one frame (1 grey, 3 RGB).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from zerokara.core.config import UserError
from zerokara.envs.base import FrameStack, Step, VectorEnv

SIZE = 84  # height and width of a frame, pixels
RENDER_SCALE = 4  # a person's picture is that many times larger


def luminance(colour: tuple[int, int, int]) -> int:
    """The luminance (ITU-R BT.601) of an RGB colour, 0 to 255: its byte in a grey frame."""
    red, green, blue = colour
    return round(0.299 * red + 0.587 * green + 0.114 * blue)


def sprite(*lines: str) -> np.ndarray:
    """The pixels marked '#' in a drawing of text lines, as flat offsets (P,) from the drawing's upper left corner."""
    return np.array([y * SIZE + x for y, line in enumerate(lines) for x, mark in enumerate(line) if mark == "#"])


def box(height: int, width: int) -> np.ndarray:
    """A filled rectangle, as `sprite` gives it."""
    return sprite(*["#" * width] * height)


def bounce(position: np.ndarray, velocity: np.ndarray, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Mirror positions that left [0, high] back inside and turn their velocity. One crossing at the most."""
    out = (position < 0) | (position > high)
    return fold(position, high), np.where(out, -velocity, velocity)


def fold(position: np.ndarray, high: int) -> np.ndarray:
    """Where something ends that would be at `position`, had it not bounced in [0, high], however often."""
    phase = position % (2 * high)
    return np.where(phase > high, 2 * high - phase, phase)


class Streams:
    """One SplitMix64 generator per environment, drawn from many at once.

    Every environment has its own stream, so a game depends on its seed, its place in the batch and its own actions,
    never on when its neighbours draw, nor on how many they are.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16.
    """

    def __init__(self, num_envs: int) -> None:
        self.state_N = np.zeros(num_envs, np.uint64)

    def seed(self, seed: int) -> None:
        """Start every stream anew. `seed` is any integer from 0 up."""
        self.state_N[:] = np.random.SeedSequence(seed).generate_state(len(self.state_N), np.uint64)

    def integers(self, index_n: np.ndarray, low: int, high: int | np.ndarray) -> np.ndarray:
        """One integer from [low, high) for each environment of index_n (n,); returns (n,) int64.

        `high` may be (n,). By multiply and shift: the bias is below (high - low) / 2**32.
        """
        bits_n = self.state_N[index_n] + np.uint64(0x9E3779B97F4A7C15)
        self.state_N[index_n] = bits_n
        bits_n = (bits_n ^ (bits_n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits_n = (bits_n ^ (bits_n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits_n ^= bits_n >> np.uint64(31)
        top_n = (bits_n >> np.uint64(32)).astype(np.int64)
        drawn_n: np.ndarray = low + ((top_n * (high - low)) >> 32)
        return drawn_n


class ArcadeEnv(VectorEnv):
    """N copies of one arcade game. Subclasses are the games.

    Args:
        num_envs: N.
        stack: K, frames of an observation.
        grey: one channel a frame instead of RGB.

    Raises:
        UserError: num_envs or stack below 1.
    """

    name: ClassVar[str]
    colours: ClassVar[Mapping[str, tuple[int, int, int]]]  # what is drawn -> RGB; black is the background
    time_limit_steps: ClassVar[int]  # then an episode is truncated
    rules: ClassVar[Mapping[str, Any]]  # the game's constants, shown among the settings
    state_names: ClassVar[tuple[str, ...]]  # the game's state arrays, each with first axis N
    palette: ClassVar[np.ndarray]  # (256, 3) uint8: luminance -> RGB

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        luminances = [luminance(colour) for colour in cls.colours.values()]
        if len({0, *luminances}) <= len(luminances):
            raise ValueError(f"the luminances of {cls.name}'s colours are not distinct and above 0: {luminances}")
        cls.palette = np.zeros((256, 3), np.uint8)
        cls.palette[luminances] = list(cls.colours.values())

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
        self.canvas = np.zeros((num_envs, self.frame_channels, SIZE, SIZE), np.uint8)
        # Colours by number, as the games draw them: 0 is the background, then in the order of `colours`.
        self.number = {what: number for number, what in enumerate(self.colours, start=1)}
        luminances = [[luminance(colour)] for colour in self.colours.values()]
        rgb = [list(colour) for colour in self.colours.values()]
        self._inks = np.array(
            [[0] * self.frame_channels, *(luminances if grayscale else rgb)], np.uint8
        )  # number -> (F,)
        self._all = np.arange(num_envs)
        self._stack = FrameStack(num_envs, frame_stack, (self.frame_channels, SIZE, SIZE))
        self._action: np.ndarray | None = None
        self._started = False

    # What a game says of itself.

    @abstractmethod
    def _start(self, index_n: np.ndarray) -> None:
        """Put the environments index_n (n,) at the start of an episode."""

    @abstractmethod
    def _advance(self, action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of every game. Returns reward (N,) float32, terminal (N,) bool, life_lost (N,) bool.

        Where a life was lost and it was the last one, the episode is terminal and life_lost is false.
        """

    @abstractmethod
    def _draw(self, index_n: np.ndarray) -> None:
        """Draw the environments index_n (n,) on their canvases, which are black."""

    @abstractmethod
    def expert(self) -> np.ndarray:
        """The actions (N,) int64 of a scripted player who reads the state: the measure for what learns from pixels."""

    # What every game does alike.

    def _stamp(
        self, index_n: np.ndarray, row_n: np.ndarray | int, column_n: np.ndarray | int, shape_P: np.ndarray, what: str
    ) -> None:
        """Draw a shape (see `sprite`) with its upper left corner at (row, column) of each frame; it must lie inside."""
        corner_n = index_n * (self.frame_channels * SIZE * SIZE) + row_n * SIZE + column_n
        pixel_nP = corner_n[:, None] + shape_P
        flat = self.canvas.reshape(-1)
        for channel, value in enumerate(self._inks[self.number[what]]):
            flat[pixel_nP + channel * (SIZE * SIZE)] = value

    def _tile(self, index_n: np.ndarray, top: int, number_nRC: np.ndarray, height: int, width: int) -> None:
        """Draw R rows and C columns of tiles (height, width) from row `top` down, over the frame's full width.

        number_nRC are numbers of colours. Tiles are parted by one dark pixel at their right and one below.
        """
        n, rows, columns = number_nRC.shape
        which = slice(None) if n == self.num_envs else index_n
        # A row's pixels are made once and copied down.
        line = np.zeros((n, self.frame_channels, rows, columns, width), np.uint8)
        line[..., :-1] = self._inks[number_nRC].transpose(0, 3, 1, 2)[..., None]
        area = self.canvas[:, :, top : top + rows * height].reshape(self.num_envs, -1, rows, height, SIZE, copy=False)
        area[which, :, :, :-1] = line.reshape(n, self.frame_channels, rows, 1, SIZE)

    def _redraw(self, index_n: np.ndarray) -> None:
        if len(index_n) == self.num_envs:
            self.canvas.fill(0)
        else:
            self.canvas[index_n] = 0
        self._draw(index_n)

    def reset(self, seed: int) -> np.ndarray:
        """See `VectorEnv.reset`. `seed` is any integer from 0 up."""
        self.streams.seed(seed)
        self.age[:] = 0
        self._start(self._all)
        self._redraw(self._all)
        self._action = None
        self._started = True
        return self._stack.push(self.canvas, np.ones(self.num_envs, bool))

    def _send(self, action_N: np.ndarray) -> None:
        if not self._started:
            raise RuntimeError(f"{self.id} has no episode to step: call reset(seed) or load_state_dict(state) first")
        if self._action is not None:
            raise RuntimeError(f"{self.id} was sent actions twice: call recv() between two send()")
        self._action = action_N.copy()

    def recv(self) -> Step:
        """See `VectorEnv.recv`. The step is done here: NumPy has no thread of its own to do it in."""
        if self._action is None:
            raise RuntimeError(f"{self.id} has no step under way: call send(actions) before recv()")
        action_N, self._action = self._action, None
        reward_N, terminal_N, life_lost_N = self._advance(action_N)
        self.age += 1
        truncated_N = (self.age >= self.time_limit_steps) & ~terminal_N
        ended_N = terminal_N | truncated_N
        index_n = np.flatnonzero(ended_N)
        self._redraw(self._all)
        if not len(index_n):
            obs = last_obs = self._stack.push(self.canvas, ended_N)
            return Step(obs, reward_N, terminal_N, truncated_N, life_lost_N, last_obs)
        F = self.frame_channels
        before = self._stack.obs
        last_frame_n = self.canvas[index_n]
        self._start(index_n)
        self.age[index_n] = 0
        self._redraw(index_n)
        obs = self._stack.push(self.canvas, ended_N)
        last_obs = obs.copy()
        last_obs[index_n, :-F] = before[index_n, F:]
        last_obs[index_n, -F:] = last_frame_n
        return Step(obs, reward_N, terminal_N, truncated_N, life_lost_N, last_obs)

    def state_dict(self) -> dict[str, Any]:
        """See `VectorEnv.state_dict`."""
        if self._action is not None or not self._started:
            raise RuntimeError(f"{self.id} has no state between two steps: call it after reset() or recv()")
        arrays = {name: getattr(self, name) for name in self.state_names}
        return {
            "id": self.id,
            "streams": torch.from_numpy(self.streams.state_N.view(np.int64).copy()),
            "age": torch.from_numpy(self.age.copy()),
            "obs": torch.from_numpy(self._stack.obs.copy()),
            "game": {name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """See `VectorEnv.load_state_dict`.

        Raises:
            ValueError: the state of another game, another number of environments or another form of frames.
        """
        if state["id"] != self.id:
            raise ValueError(f"the state is one of {state['id']}, expected one of {self.id}")
        if tuple(state["obs"].shape) != self._stack.obs.shape:
            raise ValueError(
                f"the state's observations are of shape {tuple(state['obs'].shape)}, expected {self._stack.obs.shape}"
            )
        for name in self.state_names:
            getattr(self, name)[...] = state["game"][name].numpy()
        self.streams.state_N[:] = state["streams"].numpy().view(np.uint64)
        self.age[:] = state["age"].numpy()
        self._stack.obs = state["obs"].numpy().copy()
        self._redraw(self._all)
        self._action = None
        self._started = True
        return self._stack.obs

    def picture(self, frame_FHW: np.ndarray) -> np.ndarray:
        """A frame (F, 84, 84) for people: in colour and enlarged, (336, 336, 3) uint8 RGB."""
        rgb_HWF = self.palette[frame_FHW[0]] if self.frame_channels == 1 else frame_FHW.transpose(1, 2, 0)
        return rgb_HWF.repeat(RENDER_SCALE, axis=0).repeat(RENDER_SCALE, axis=1)

    def render(self) -> np.ndarray:
        """See `VectorEnv.render`. There is always a picture: it costs nothing to be able to draw one."""
        return self.picture(self._stack.obs[0, -self.frame_channels :])
