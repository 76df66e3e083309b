"""Tests of the arcade games in C: the same results as in NumPy, arrays that the caller modifies or copies, memory."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zerokara.envs import arcade
from zerokara.envs.arcade import GAMES, library
from zerokara.envs.arcade.base import ArcadeEnv, Streams
from zerokara.envs.arcade.gymnasium import ArcadeGymnasiumEnv
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


# Arrays that the caller modifies, replaces or copies.


@needs_compiler
@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("frame_stack", [1, 4])
@pytest.mark.parametrize("compile", [True, False])
def test_observations_may_be_modified(game_id: str, frame_stack: int, compile: bool) -> None:
    """Overwrite every observation; later ones, states and images must not change."""
    env, reference = (arcade.make(game_id, 6, frame_stack=frame_stack, compile=c) for c in (compile, not compile))
    env.reset(5)[...] = 255
    reference.reset(5)
    rng = np.random.default_rng(0)
    for t in range(150):
        if t % 40 == 9:
            env.load_state_dict(reference.state_dict())[...] = 255
        if t % 30 == 20:
            for one in (env, reference):
                one.age[t % 6] = one.time_limit_steps - 2
        action_N = rng.integers(env.num_actions, size=6)
        step, expected = env.step(action_N), reference.step(action_N)
        assert np.array_equal(step.obs, expected.obs)
        ended_N = expected.terminal | expected.truncated
        if t % 2 and ended_N.any():  # otherwise obs may be last_obs
            step.obs[...] = 255
        assert np.array_equal(step.last_obs, expected.last_obs)
        assert np.array_equal(env.render(), reference.render())
        assert np.array_equal(step.frame, expected.obs[:, -1:])
        with pytest.raises(ValueError, match="read-only"):
            step.frame[...] = 255
        step.obs[...] = 255
        step.last_obs[...] = 255
        assert_equal_states(env.state_dict(), reference.state_dict())


@needs_compiler
@pytest.mark.parametrize("grayscale", [True, False])
def test_observations_of_gymnasium_may_be_modified(grayscale: bool) -> None:
    env = ArcadeGymnasiumEnv("zerokara/Breaker-v0", grayscale=grayscale, render_mode="rgb_array")
    same = ArcadeGymnasiumEnv("zerokara/Breaker-v0", grayscale=grayscale, render_mode="rgb_array")
    same._game = arcade.make("zerokara/Breaker-v0", 1, frame_stack=1, grayscale=grayscale, compile=False)
    env.reset(seed=1)[0][...] = 255
    same.reset(seed=1)
    for action in np.random.default_rng(0).integers(3, size=60):
        assert np.array_equal(env.render(), same.render())  # type: ignore[arg-type]
        obs, expected = env.step(action)[0], same.step(action)[0]
        assert np.array_equal(obs, expected)
        obs[...] = 255


@needs_compiler
@pytest.mark.parametrize("frame_stack", [1, 4])
def test_steps_and_environments_can_be_copied(frame_stack: int) -> None:
    """Copy an environment and a step in the middle of a game, with free blocks of memory in the pools."""
    env, reference = make_both("zerokara/Breaker-v0", 3, frame_stack=frame_stack)
    for one in (env, reference):
        one.reset(1)
    rng = np.random.default_rng(0)
    step, expected = env.step(np.zeros(3, np.int64)), reference.step(np.zeros(3, np.int64))
    for _ in range(40):
        action_N = rng.integers(env.num_actions, size=3)
        step, expected = env.step(action_N), reference.step(action_N)
        step.obs, step.last_obs  # noqa: B018  (taken from the pool, and returned to it)
    copied = copy.deepcopy(step)
    envs = [env, copy.deepcopy(env), pickle.loads(pickle.dumps(env)), copy.deepcopy(reference)]
    assert [one.is_compiled for one in envs] == [True, True, True, False]
    assert np.array_equal(envs[2].render(), reference.render())
    values = [array.copy() for array in expected]
    del step, expected
    for _ in range(40):
        action_N = rng.integers(env.num_actions, size=3)
        obs = reference.step(action_N).obs
        for one in envs:
            assert np.array_equal(one.step(action_N).obs, obs)
        for array, value in zip(copied, values, strict=True):
            assert np.array_equal(array, value)


@needs_compiler
def test_a_step_is_pickled_with_its_arrays(tmp_path: Path) -> None:
    """Load a step in a new process: addresses of this one would end it."""
    env, reference = make_both("zerokara/Breaker-v0", 3)
    assert env._compiled is not None
    for one in (env, reference):
        one.reset(1)
    for _ in range(8):
        env.step(np.zeros(3, np.int64)).obs  # noqa: B018  (taken from the pool, and returned to it)
        reference.step(np.zeros(3, np.int64))
    step, expected = env.step(np.zeros(3, np.int64)), reference.step(np.zeros(3, np.int64))
    assert env._compiled._observations._free
    (tmp_path / "step").write_bytes(pickle.dumps(step))
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).obs.tobytes().hex())"
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "step"], capture_output=True, text=True, check=True
    )
    assert bytes.fromhex(done.stdout) == expected.obs.tobytes()
    assert all(
        np.array_equal(one, other) for one, other in zip(pickle.loads(pickle.dumps(step)), expected, strict=True)
    )


@needs_compiler
@pytest.mark.parametrize("compile", [True, False])
def test_frames_are_neither_copied_nor_changed(compile: bool) -> None:
    """Hold the frames of many steps, one of which was pickled, and compare them with copies."""
    env = arcade.make("zerokara/Snake-v0", 3, compile=compile)
    env.reset(1)
    actions = np.random.default_rng(0).integers(env.num_actions, size=(60, 3))
    steps = [env.step(action_N) for action_N in actions]
    copies = [step.frame.copy() for step in steps]
    for action_N in actions:
        env.step(action_N)
    for step, copied in zip(steps, copies, strict=True):
        assert np.array_equal(step.frame, copied)
        assert step.frame is step.frame
        assert np.array_equal(step.obs[:, -1:], copied)
    assert np.array_equal(pickle.loads(pickle.dumps(steps[7])).frame, copies[7])


def test_a_copied_pool_is_empty() -> None:
    pool = ArrayPool((2,), 8, max_free=3)
    block = pool.take()[1]
    assert pool._free == [block]
    for copied in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        array, other = copied.take()
        assert array.shape == (2,)
        assert other.address != block.address
        assert copied._max_free == 3


@needs_compiler
@pytest.mark.parametrize("game_id", IDS)
@pytest.mark.parametrize("pending", [True, False])
def test_a_running_game_can_be_compiled(game_id: str, pending: bool) -> None:
    env, reference = (arcade.make(game_id, 4, compile=False) for _ in range(2))
    for one in (env, reference):
        one.reset(3)
    actions = np.random.default_rng(0).integers(env.num_actions, size=(80, 4))
    for t, action_N in enumerate(actions):
        for one in (env, reference):
            one.send(action_N)
        if t == 20 and pending:
            env.compile()
        for one_array, other in zip(env.recv(), reference.recv(), strict=True):
            assert np.array_equal(one_array, other)
        if t in (20, 30):
            env.compile()
            assert np.array_equal(env.render(), reference.render())
    assert env.is_compiled
    assert_equal_states(env.state_dict(), reference.state_dict())


@needs_compiler
def test_replaced_arrays_that_c_cannot_use_are_rejected() -> None:
    env: Any = arcade.make("zerokara/Catch-v0", 4)
    env.reset(0)
    read_only = np.zeros(4, np.int64)
    read_only.setflags(write=False)
    wrong: list[tuple[Any, str]] = [
        (np.zeros(4, np.int32), "got int32 with shape"),
        (np.zeros(3, np.int64), r"got int64 with shape \(3,\)"),
        (np.zeros(4, ">i8"), "got >i8 with shape"),
        (np.zeros(8, np.int64)[::2], "not contiguous"),
        (read_only, "not writable"),
        ([0, 0, 0, 0], "got list"),
    ]
    stay_N = np.ones(4, np.int64)
    for array, message in wrong:
        for _ in range(2):  # and is not accepted at the second attempt
            env.paddle = array
            with pytest.raises(TypeError, match=f"paddle must be a contiguous, writable array of int64 .*{message}"):
                env.step(stay_N)
        env.paddle = np.full(4, 34)
        env.step(stay_N)
    env.streams.state_N = np.zeros(4, np.int64)
    with pytest.raises(TypeError, match=r"streams\.state_N must be .* uint64"):
        env.step(stay_N)


@needs_compiler
def test_random_streams_may_be_replaced() -> None:
    env, reference = make_both("zerokara/Snake-v0", 3)
    for one in (env, reference):
        one.reset(1)
        one.streams = Streams(3)
        one.streams.seed(7)
    for action_N in np.random.default_rng(0).integers(4, size=(60, 3)):
        assert np.array_equal(env.step(action_N).obs, reference.step(action_N).obs)


@needs_compiler
def test_environments_are_freed_at_once() -> None:
    env = arcade.make("zerokara/Catch-v0", 2)
    env.reset(0)
    step = env.step(np.zeros(2, np.int64))
    freed = weakref.ref(env)
    gc.disable()
    try:
        del env
        assert freed() is None
    finally:
        gc.enable()
    assert step.obs.any()


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
