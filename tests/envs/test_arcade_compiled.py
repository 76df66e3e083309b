"""Tests of the arcade games in C: the same results as in NumPy, the library's cache, memory that is used again."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zerokara.envs import arcade
from zerokara.envs.arcade import GAMES, library
from zerokara.envs.arcade.base import ArcadeEnv
from zerokara.envs.arcade.memory import ArrayPool

IDS = sorted(GAMES)
COMPILER = library.find_compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def make_both(game_id: str, num_envs: int, **settings: Any) -> tuple[ArcadeEnv, ArcadeEnv]:
    """Create a game in C and in NumPy."""
    both = arcade.make(game_id, num_envs, **settings), arcade.make(game_id, num_envs, compile=False, **settings)
    assert [env.is_compiled for env in both] == [True, False]
    return both


def assert_equal_states(one: Any, other: Any) -> None:
    """Compare two nested states of environments."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name, value in one.items():
            assert_equal_states(value, other[name])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def compare(game_id: str, steps: int, num_envs: int, **settings: Any) -> None:
    """Check that all arrays of all steps and the states are equal. A third of the environments play well.

    Now and then, episodes are moved close to the time limit.
    """
    in_c, in_numpy = make_both(game_id, num_envs, **settings)
    assert np.array_equal(in_c.reset(3), in_numpy.reset(3))
    rng = np.random.default_rng(1)
    plays_well_N = np.arange(num_envs) % 3 == 0
    seen = np.zeros(3, int)
    for t in range(steps // num_envs):
        if t % 25 == 24:
            late_n = rng.integers(num_envs, size=1 + num_envs // 50)
            for env in (in_c, in_numpy):
                env.age[late_n] = env.time_limit_steps - 2
        random_N = rng.integers(in_c.num_actions, size=num_envs)
        action_N = np.where(plays_well_N, in_numpy.expert(), random_N)
        got, expected = in_c.step(action_N), in_numpy.step(action_N)
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
        assert np.array_equal(got.newest, expected.obs[:, -in_c.frame_channels :])
        seen += [flag.sum() for flag in (expected.terminal, expected.truncated, expected.life_lost)]
    assert_equal_states(in_c.state_dict(), in_numpy.state_dict())
    assert np.array_equal(in_c.render(), in_numpy.render())
    assert seen[:2].all(), "no episode ended in one of the two ways"
    assert seen[2] or game_id in ("zerokara/Catch-v0", "zerokara/Snake-v0"), "no life was lost"


# The same results.


@needs_compiler
@pytest.mark.parametrize("game_id", IDS)
def test_c_and_numpy_are_equal(game_id: str) -> None:
    compare(game_id, steps=40_000, num_envs=128, frame_stack=1)


@needs_compiler
@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize(("frame_stack", "grayscale"), [(4, True), (3, False)])
def test_stacks_in_c_and_numpy_are_equal(game_id: str, frame_stack: int, grayscale: bool) -> None:
    compare(game_id, steps=6_000, num_envs=12, frame_stack=frame_stack, grayscale=grayscale)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("game_id", IDS)
def test_a_million_steps_in_c_and_numpy_are_equal(game_id: str) -> None:
    compare(game_id, steps=1_000_000, num_envs=256, frame_stack=1)


@needs_compiler
@pytest.mark.parametrize("game_id", IDS)
def test_states_are_exchanged(game_id: str) -> None:
    """Save in one version and load in the other, several times in one game, against a run in NumPy alone."""
    env, reference = arcade.make(game_id, 6), arcade.make(game_id, 6, compile=False)
    assert np.array_equal(env.reset(5), reference.reset(5))
    rng = np.random.default_rng(0)
    for t in range(160):
        if t % 8 == 7:
            other = arcade.make(game_id, 6, compile=not env.is_compiled)
            assert np.array_equal(other.load_state_dict(env.state_dict()), reference._obs())
            env = other
        action_N = rng.integers(env.num_actions, size=6)
        for one, two in zip(env.step(action_N), reference.step(action_N), strict=True):
            assert np.array_equal(one, two)


@needs_compiler
@pytest.mark.parametrize("game_id", IDS)
def test_arrays_that_the_numpy_version_replaced_are_found(game_id: str) -> None:
    in_c, in_numpy = make_both(game_id, 4, frame_stack=1)
    actions = np.random.default_rng(0).integers(in_c.num_actions, size=(60, 4))
    for env in (in_c, in_numpy):
        env.reset(2)
    for action_N in actions[:30]:
        for env in (in_c, in_numpy):
            env._advance(action_N)
        assert np.array_equal(in_c.step(action_N).obs, in_numpy.step(action_N).obs)


@needs_compiler
@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("value", [-(2**63), -1000, -1, 7, 84, 1000, 2**62])
def test_impossible_states_do_not_touch_other_memory(game_id: str, value: int) -> None:
    """Put a number into all of the state of the middle one of three environments: the others must not notice."""
    env, same = arcade.make(game_id, 3, frame_stack=1), arcade.make(game_id, 3, frame_stack=1)
    env.reset(4)
    same.reset(4)
    rng = np.random.default_rng(0)
    for t in range(80):
        if t % 10 == 5:
            for name in ("age", *env.state_names):
                array = getattr(env, name)
                if array.dtype == np.int64:
                    array[1] = value
                else:
                    array[1] = True
        action_N = rng.integers(env.num_actions, size=3)
        for one, two in zip(env.step(action_N), same.step(action_N), strict=True):
            assert np.array_equal(one[[0, 2]], two[[0, 2]])


# Without a compiler.


def test_without_a_compiler_the_games_are_stepped_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", "")
    env = arcade.make("zerokara/Catch-v0", 2)
    assert not env.is_compiled
    assert env.warnings == []
    assert env.reset(0).shape == (2, 4, 84, 84)


def test_a_compiler_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'catch.c:1: error: no space' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    env = arcade.make("zerokara/Catch-v0", 2)
    assert not env.is_compiled
    (warning,) = env.warnings
    assert warning == (
        f"zerokara/Catch-v0: the C version of the game cannot be used ({compiler}: exit code 3: catch.c:1: error: no "
        f"space): it is stepped in NumPy, with the same results, but more slowly."
    )
    assert env.reset(0).shape == (2, 4, 84, 84)


# The library.

ANSWER = {"answer.c": '#include "number.h"\nint answer(void) { return NUMBER; }\n', "number.h": "#define NUMBER 42\n"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "zerokara"


@needs_compiler
def test_a_library_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPILER is not None
    assert library.load("answer", ANSWER, COMPILER).answer() == 42
    (built,) = cache.iterdir()  # and no temporary file
    assert library.load("answer", {**ANSWER, "number.h": "#define NUMBER 43\n"}, COMPILER).answer() == 43
    assert len(list(cache.iterdir())) == 2
    assert library.load("answer", ANSWER, [*COMPILER, "-DOTHER"]).answer() == 42
    assert len(list(cache.iterdir())) == 3
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        assert library.load("answer", ANSWER, COMPILER).answer() == 42
    assert built.name.startswith("answer-")


@needs_compiler
def test_a_damaged_library_is_compiled_again(cache: Path) -> None:
    assert COMPILER is not None
    sources = {**ANSWER, "number.h": "#define NUMBER 7\n"}
    path = cache / f"answer-{library._key(sources, COMPILER)}.so"
    cache.mkdir()
    path.write_bytes(b"\x7fELF")
    assert library.load("answer", sources, COMPILER).answer() == 7


@needs_compiler
def test_processes_may_compile_at_the_same_time(cache: Path) -> None:
    def load(_: int) -> int:
        assert COMPILER is not None
        answer: int = library.load("answer", ANSWER, COMPILER).answer()
        return answer

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, range(4))) == [42] * 4
    assert len(list(cache.iterdir())) == 1


@needs_compiler
def test_errors_of_the_library(cache: Path) -> None:
    assert COMPILER is not None
    with pytest.raises(library.BuildError, match=r"exit code 1: answer\.c:1"):
        library.load("answer", {"answer.c": "int answer(void) { return ; } nonsense"}, COMPILER)
    assert list(cache.iterdir()) == []
    cache.rmdir()
    cache.write_text("a file in place of the folder")
    with pytest.raises(library.BuildError, match="zerokara"):
        library.load("answer", ANSWER, COMPILER)


# Memory.


def test_memory_is_used_again_when_nobody_has_it() -> None:
    pool = ArrayPool((2, 3), 8)
    array, block = pool.take()
    assert array.shape == (2, 3)
    assert not array.any()
    array[:] = 7
    assert pool.take()[1] is not block
    holders: list[Any] = [array[1:], array.reshape(6), torch.from_numpy(array), array.data, array[0][None]]
    del array
    while holders:
        holders.pop()
        other, other_block = pool.take()
        assert (other_block is block) == (not holders)
        del other


def test_memory_of_many_arrays_is_released() -> None:
    pool = ArrayPool((4,), max_free=2)
    arrays = [pool.take()[0] for _ in range(10)]
    del arrays
    pool.take()
    assert len(pool._free) <= 3
