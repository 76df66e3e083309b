"""Arcade games in C, with the same results as in NumPy bit for bit.

The C version of a game (`catch.c` beside `catch.py`) steps all environments in one call. It works on the state arrays
and random streams of the `ArcadeEnv`, so a state can be saved by one version and loaded by the other. Constants and
sprites are taken from the Python module. The library is compiled when it is first needed (library.py).

A frame is drawn into memory that shows an earlier frame already, so only the differences are drawn. Others get that
memory as read-only arrays, and it is not drawn into before the last of them is gone. Stacks of frames are copies, made
when somebody asks for them.

Shapes: N environments, E ended episodes, K stacked frames, F channels per frame, C = K * F, P pixels of a sprite.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zerokara.envs.arcade import library
from zerokara.envs.arcade.memory import ArrayPool
from zerokara.envs.base import Step
from zerokara.envs.stacks import Stacks

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
    code = _load_library(source, constants(game), tuple(compiler))
    if isinstance(code, str):
        raise library.BuildError(code)
    return CompiledGame(game, code)


@functools.cache
def _load_library(source: Path, header: str, compiler: tuple[str, ...]) -> ctypes.CDLL | str:
    """Return the library, or the message of the error, so that a compiler that fails is not started again."""
    files = (source, source.with_name("arcade.h"), source.with_name("step.h"))
    sources = {file.name: file.read_text("utf-8") for file in files} | {"constants.h": header}
    try:
        code = library.load(source.stem, sources, list(compiler))
    except library.BuildError as error:
        return str(error)
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
    """C version of the game of an `ArcadeEnv`.

    It does not refer to the environment, which refers to it, so both are freed at once.

    Args:
        game: the environment.
        code: library of its game.
    """

    def __init__(self, game: ArcadeEnv, code: ctypes.CDLL) -> None:
        N, F = game.num_envs, game.frame_channels
        frames_shape = (N, F, *game.obs_shape[1:])
        self._run_reset, self._run_step = code.reset, code.step
        drawn_bytes = ctypes.c_int64.in_dll(code, "drawn_bytes").value
        self._frames = ArrayPool(frames_shape, N * drawn_bytes)
        self._observations = ArrayPool((N, *game.obs_shape))
        self._action_N, self._reward_N = np.zeros(N, np.int64), np.zeros(N, np.float32)
        self._flag_3N = np.zeros((3, N), bool)  # terminal, truncated, life_lost
        self._last_frame_N = np.zeros(frames_shape, np.uint8)
        self._ended_N = np.zeros(N, np.int64)
        # The addresses, in the order of `struct game` in arcade.h; the array keeps the colors in memory.
        self._colors = game.color_values
        own = [self._colors, self._action_N, self._reward_N, *self._flag_3N, self._last_frame_N, self._ended_N]
        self._state_names = ("streams.state_N", "age", *game.state_names)
        self._get_state = operator.attrgetter(*self._state_names)
        self._expected = [(array.dtype, array.shape) for array in self._get_state(game)]
        self._state: tuple[np.ndarray, ...] = (np.empty(0),) * len(self._state_names)
        self._context = (ctypes.c_int64 * (2 + len(own) + len(self._state)))(
            N, F, *(array.ctypes.data for array in own)
        )
        blank = np.zeros(frames_shape, np.uint8)
        self.stacks = Stacks(
            (blank,) * (game.obs_shape[0] // F), np.zeros(N, np.int64), new_array=self._observations.array
        )

    def reset(self, game: ArcadeEnv) -> np.ndarray:
        """Start an episode in every environment, whose random streams have been seeded. Returns obs (N, C, H, W)."""
        frame_N, _ = self._call(self._run_reset, game)
        self.stacks = self.stacks.push(frame_N, slice(None))
        return self.stacks.make()

    def load(self, obs: np.ndarray) -> None:
        """Continue from an observation (N, C, H, W), which is that of the game's state."""
        self.stacks = self.stacks.filled(obs)

    def step(self, game: ArcadeEnv, action_N: np.ndarray) -> Step:
        """Step all environments of a game with valid actions (N,) int64."""
        self._action_N[:] = action_N
        frame_N, ended = self._call(self._run_step, game)
        before, env_E, make_last = self.stacks, self._ended_N[:ended].copy(), None
        if ended:
            make_last = functools.partial(before.make_last, frame_N, env_E, self._last_frame_N[:ended].copy())
        self.stacks = stacks = before.push(frame_N, env_E)
        terminal_N, truncated_N, life_lost_N = self._flag_3N.copy()
        reward_N = self._reward_N.copy()
        return Step(stacks.make, reward_N, terminal_N, truncated_N, life_lost_N, make_last, stacks.frame_N)

    def _call(self, function: Callable[..., int], game: ArcadeEnv) -> tuple[np.ndarray, int]:
        """Call a function of the library, which modifies the game's state. Returns new frames and its result."""
        state = self._get_state(game)
        if not all(map(operator.is_, state, self._state)):  # arrays were replaced, as the NumPy version does
            self._check(state)
            self._state = state
            self._context[-len(state) :] = [array.ctypes.data for array in state]
        frame_N, block = self._frames.take()
        return frame_N, function(ctypes.addressof(self._context), block.address, block.more_address)

    def _check(self, state: tuple[Any, ...]) -> None:
        """Raise TypeError if C code cannot work on these arrays."""
        for name, array, (dtype, shape) in zip(self._state_names, state, self._expected, strict=True):
            expected = f"{name} must be a contiguous, writable array of {dtype} with shape {shape}"
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{expected}, got {type(array).__name__}")
            if (array.dtype, array.shape) != (dtype, shape):
                raise TypeError(f"{expected}, got {array.dtype} with shape {array.shape}")
            if not array.flags.carray:
                raise TypeError(f"{expected}, got one that is not contiguous, not aligned or not writable")
