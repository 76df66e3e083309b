"""Arcade games in C, with the same results as in NumPy bit for bit.

The C version of a game (`catch.c` beside `catch.py`) steps all environments in one call. It works on the state arrays
and random streams of the `ArcadeEnv`, so a state can be saved by one version and loaded by the other. Constants and
sprites are taken from the Python module. The library is compiled when it is first needed (library.py).

A frame is drawn into memory that shows an earlier frame already, so only the differences are drawn. Stacks of frames
are made when somebody asks for them.

Shapes: N environments, E ended episodes, K stacked frames, F channels per frame, C = K * F, P pixels of a sprite.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zerokara.envs.arcade import library
from zerokara.envs.arcade.memory import ArrayPool
from zerokara.envs.base import Step

if TYPE_CHECKING:
    from zerokara.envs.arcade.base import ArcadeEnv

C_TYPES = {"int64": "int64_t", "bool": "bool"}


def load(game: ArcadeEnv) -> CompiledGame | None:
    """Return the C version of a game; None if it has none, or if there is no compiler.

    Raises:
        BuildError: the library could not be compiled or loaded.
    """
    source = Path(sys.modules[type(game).__module__].__file__ or "").with_suffix(".c")
    compiler = library.find_compiler()
    if compiler is None or not source.is_file():
        return None
    return CompiledGame(game, _load_library(source, constants(game), tuple(compiler)))


@functools.cache
def _load_library(source: Path, header: str, compiler: tuple[str, ...]) -> ctypes.CDLL:
    files = (source, source.with_name("arcade.h"), source.with_name("step.h"))
    sources = {file.name: file.read_text("utf-8") for file in files} | {"constants.h": header}
    code = library.load(source.stem, sources, list(compiler))
    for function in (code.reset, code.step):
        function.argtypes, function.restype = [ctypes.c_void_p] * 3, ctypes.c_int64
    return code


def constants(game: ArcadeEnv) -> str:
    """Return constants.h (see arcade.h): constants of the game's module, colors, and the declarations of its state."""
    lines = ["#define BACKGROUND 0", f"#define TIME_LIMIT_STEPS {game.time_limit_steps}"]
    lines += [f"#define COLOR_{what.upper()} {index}" for what, index in game.color_index.items()]
    for name, value in vars(sys.modules[type(game).__module__]).items():
        if name.isupper() and isinstance(value, int):
            lines.append(f"#define {name} ({value})")
        elif name.isupper() and isinstance(value, np.ndarray):
            lines += _sprite(name, value) if name.endswith("_SHAPE") else _array(name, value)
    arrays = {name: getattr(game, name) for name in game.state_names}
    state = " ".join(f"{C_TYPES[array.dtype.name]} *{name};" for name, array in arrays.items())
    return "\n".join([*lines, f"#define STATE {state}", ""])


def _array(name: str, values: np.ndarray) -> list[str]:
    numbers = ", ".join(str(value) for value in values.ravel().tolist())
    return [f"static const int64_t {name}[] = {{{numbers}}};", f"#define {name}_LENGTH {len(values)}"]


def _sprite(name: str, offset_P: np.ndarray) -> list[str]:
    """Convert the offsets of a sprite's pixels to its size and the spans of its rows: row, first column, length."""
    from zerokara.envs.arcade.base import SIZE  # base.py imports this module

    row_P, column_P = np.divmod(offset_P, SIZE)
    height, width = int(row_P.max()) + 1, int(column_P.max()) + 1
    columns = [column_P[row_P == row] for row in range(height)]
    assert all(len(one) == np.ptp(one) + 1 for one in columns), f"{name} has a row with a gap"
    spans = " ".join(f"SPAN({row}, {one.min()}, {len(one)})" for row, one in enumerate(columns))
    return [f"#define {name}(SPAN) {spans}", f"#define {name}_HEIGHT {height}", f"#define {name}_WIDTH {width}"]


class CompiledGame:
    """C version of the game of an `ArcadeEnv`, whose state it modifies.

    Args:
        game: the environment.
        code: library of its game.
    """

    def __init__(self, game: ArcadeEnv, code: ctypes.CDLL) -> None:
        N, F = game.num_envs, game.frame_channels
        frames_shape = (N, F, *game.obs_shape[1:])
        self._game, self._run_reset, self._run_step = game, code.reset, code.step
        drawn_bytes = ctypes.c_int64.in_dll(code, "drawn_bytes").value
        self._frames = ArrayPool(frames_shape, N * drawn_bytes)
        self._stacks = ArrayPool((N, *game.obs_shape))
        self._action_N, self._reward_N = np.zeros(N, np.int64), np.zeros(N, np.float32)
        self._flag_3N = np.zeros((3, N), bool)  # terminal, truncated, life_lost
        self._last_frame_N = np.zeros(frames_shape, np.uint8)
        self._ended_N = np.zeros(N, np.int64)
        # The addresses, in the order of `struct game` in arcade.h; the array keeps the colors in memory.
        self._colors = game.color_values
        shared = [self._colors, self._action_N, game.streams.state_N, self._reward_N, *self._flag_3N]
        shared += [self._last_frame_N, self._ended_N]
        names = ("age", *game.state_names)
        self._get_state = operator.attrgetter(*names)
        self._state: tuple[np.ndarray, ...] = (np.empty(0),) * len(names)
        self._num_addresses = len(shared)
        self._context = (ctypes.c_int64 * (2 + len(shared) + len(names)))(
            N, F, *(array.ctypes.data for array in shared)
        )
        blank = np.zeros(frames_shape, np.uint8)
        self.newest = Stacks((blank,) * (game.obs_shape[0] // F), np.ones(N, np.int64), self._stacks)

    def reset(self) -> np.ndarray:
        """Start an episode in every environment, whose random streams have been seeded. Returns obs (N, C, H, W)."""
        self._call(self._run_reset)
        self.newest.length_N[:] = 1
        return self.newest.make()

    def load(self, obs: np.ndarray) -> None:
        """Continue from an observation (N, C, H, W), when the state of the game has been restored."""
        frames = tuple(np.split(obs, len(self.newest.frames), axis=1))
        self.newest = Stacks(frames, np.full(len(obs), len(frames)), self._stacks)

    def step(self, action_N: np.ndarray) -> Step:
        """Step all environments with valid actions (N,) int64."""
        self._action_N[:] = action_N
        ended = self._call(self._run_step)
        stacks = self.newest
        make_last = stacks.make
        if ended:
            env_E = self._ended_N[:ended].copy()
            length_E, last_frame_E = stacks.length_N[env_E], self._last_frame_N[:ended].copy()
            make_last = functools.partial(stacks.make_last, env_E, length_E, last_frame_E)
            stacks.length_N[env_E] = 1
        terminal_N, truncated_N, life_lost_N = self._flag_3N.copy()
        reward_N = self._reward_N.copy()
        return Step(stacks.make, reward_N, terminal_N, truncated_N, life_lost_N, make_last, stacks.frames[-1])

    def _call(self, function: Callable[..., int]) -> int:
        """Call a function of the library, which draws new frames. Returns its result."""
        state = self._get_state(self._game)
        if not all(map(operator.is_, state, self._state)):  # the NumPy version has replaced an array
            self._state = tuple(np.ascontiguousarray(array) for array in state)
            assert all(map(operator.is_, state, self._state))
            self._context[2 + self._num_addresses :] = [array.ctypes.data for array in state]
        frame_N, block = self._frames.take()
        result = function(ctypes.addressof(self._context), block.address, block.more_address)
        self.newest = Stacks((*self.newest.frames[1:], frame_N), self.newest.length_N + 1, self._stacks)
        return result


class Stacks:
    """Stacks of the last K frames of N environments, made when they are first needed.

    Args:
        frames: K arrays (N, F, H, W), oldest first.
        length_N: frames since the start of the episode; older ones are zeros in the stacks.
        pool: pool of arrays (N, C, H, W).
    """

    def __init__(self, frames: tuple[np.ndarray, ...], length_N: np.ndarray, pool: ArrayPool) -> None:
        self.frames, self.length_N = frames, length_N
        self._pool = pool
        self._obs = frames[0] if len(frames) == 1 else None

    def make(self) -> np.ndarray:
        """Return the stacks (N, C, H, W)."""
        if self._obs is None:
            K, F = len(self.frames), self.frames[0].shape[1]
            self._obs, _ = self._pool.take()
            for k, frame_N in enumerate(self.frames):
                self._obs[:, k * F : (k + 1) * F] = frame_N
            for i in np.flatnonzero(self.length_N < K):
                self._obs[i, : (K - self.length_N[i]) * F] = 0
        return self._obs

    def make_last(self, env_E: np.ndarray, length_E: np.ndarray, last_frame_E: np.ndarray) -> np.ndarray:
        """Return the stacks (N, C, H, W) before the resets of this step.

        Args:
            env_E: environments of the episodes that ended.
            length_E: their numbers of frames.
            last_frame_E: their last frames (E, F, H, W).
        """
        K, F = len(self.frames), self.frames[0].shape[1]
        last_obs, _ = self._pool.take()
        last_obs[:] = self.make()
        for k, frame_N in enumerate(self.frames[:-1]):
            last_obs[env_E, k * F : (k + 1) * F] = frame_N[env_E]
        last_obs[env_E, -F:] = last_frame_E
        for i, length in zip(env_E, length_E, strict=True):
            last_obs[i, : max(0, K - length) * F] = 0
        return last_obs
