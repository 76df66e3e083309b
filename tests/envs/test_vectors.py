"""Vectors as observations: values, stacks, exact resume, Dicts, the RAM of Atari games, and mistakes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.envs.observations import ObservationError
from zerokara.envs.vectors import find_vector


class Counter(gymnasium.Env[Any, Any]):
    """Observations are (seed % 100, steps, last action); an episode has five steps."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.obs = np.zeros(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.obs = np.array([(seed or 0) % 100, 0, -1.5])
        return self.obs.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.obs = np.array([self.obs[0], self.obs[1] + 1, float(action)])
        return self.obs.copy(), 1.0, bool(self.obs[1] == 5), False, {}

    def render(self) -> Any:
        return np.full((8, 6, 3), int(self.obs[1]), np.uint8)


def make(num_envs: int = 2, **settings: Any) -> envs.VectorEnv:
    return envs.make(Counter, num_envs, obs_type="vector", **settings)


def test_numbers_are_float32_and_unchanged() -> None:
    env = make()
    obs = env.reset(3)
    assert (env.obs_shape, env.frame_channels, env.obs_dtype) == ((3, 1, 1), 3, np.float32)
    assert obs.shape == (2, 3, 1, 1)
    assert obs.dtype == np.float32
    assert obs[:, 1:, 0, 0].tolist() == [[0, -1.5]] * 2
    step = env.step(np.array([1, 0]))
    assert step.obs[:, 1:, 0, 0].tolist() == [[1, 1], [1, 0]]
    assert env.settings["observation"] == "vector of 3 numbers"
    assert "pixels" not in env.settings
    assert env.settings["frame_stack"] == 1


def test_a_stack_starts_with_zeros_and_ends_with_the_newest_numbers() -> None:
    env = make(1, frame_stack=3)
    assert env.obs_shape == (9, 1, 1)
    first = env.reset(0)[0, :, 0, 0]
    assert first[:6].tolist() == [0] * 6
    env.step(np.array([1]))
    obs = env.step(np.array([1])).obs[0, :, 0, 0]
    assert obs[[1, 4, 7]].tolist() == [0, 1, 2]


def test_the_last_observation_of_an_episode_is_kept() -> None:
    env = make(1)
    env.reset(0)
    steps = [env.step(np.array([0])) for _ in range(5)]
    assert steps[-1].terminal[0]
    assert steps[-1].last_obs[0, 1, 0, 0] == 5
    assert steps[-1].obs[0, 1:, 0, 0].tolist() == [0, -1.5]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_environment_goes_on_with_the_same_numbers(workers: int) -> None:
    env, again = make(workers=workers), make(workers=workers)
    try:
        env.reset(3)
        for _ in range(7):
            env.step(np.array([1, 0]))
        state = env.state_dict()
        expected = env.step(np.array([0, 1]))
        again.load_state_dict(state)
        actual = again.step(np.array([0, 1]))
        assert np.array_equal(actual.obs, expected.obs)
        assert actual.obs.dtype == np.float32
    finally:
        env.close()
        again.close()


def test_episodes_are_rendered() -> None:
    env = make(1, render=True)
    env.reset(0)
    env.step(np.array([0]))
    assert env.render().shape == (8, 6, 3)
    assert env.render().max() == 1


def test_the_ram_of_an_atari_game() -> None:
    env = envs.make("ALE/Pong-v5", 2, obs_type="vector", env_kwargs={"obs_type": "ram"})
    obs = env.reset(1)
    assert obs.shape == (2, 128, 1, 1)
    assert obs.dtype == np.float32
    assert 0 <= obs.min() < obs.max() <= 1
    for _ in range(30):
        obs = env.step(np.array([3, 4])).obs
    rams = [np.rint(255 * obs[i, :, 0, 0]).astype(int) for i in range(2)]
    assert rams[0][51] != rams[1][51], "byte 51 is the height of the own paddle, which was moved up and down"
    assert env.settings["observation"] == "RAM, vector of 128 numbers, 0 to 255 scaled to 0 to 1"
    assert (env.settings["frame_skip"], env.settings["noop_max"]) == (4, 30)
    again = envs.make("ALE/Pong-v5", 2, obs_type="vector")
    assert np.array_equal(again.load_state_dict(env.state_dict()), obs)
    film = envs.make("ALE/Pong-v5", 1, obs_type="vector", render=True)
    film.reset(0)
    assert film.render().shape == (210, 160, 3)


BOX = spaces.Box(-1, 1, (2,), np.float32)
DICT = spaces.Dict({"b": spaces.Discrete(3, start=1), "a": BOX, "c": spaces.MultiBinary(2)})
PICTURE = spaces.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "key", "obs_range", "value", "expected"),
    [
        (BOX, "", None, [0.5, -1], [0.5, -1]),
        (BOX, "", (-1, 1), np.array([0.5, -1]), [0.75, 0]),
        (spaces.Box(0, 255, (2,), np.uint8), "", None, np.array([51, 255], np.uint8), [0.2, 1]),
        (spaces.Box(-(2**31), 2**31 - 1, (2,), np.int32), "", None, [7, -3], [7, -3]),
        (spaces.Box(0, 9, (2, 2), np.float32), "", None, [[1, 2], [3, 4]], [1, 2, 3, 4]),
        (spaces.Discrete(4), "", None, 2, [0, 0, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), "", None, np.array([1, 0]), [0, 1, 1, 0, 0]),
        (DICT, "", None, {"a": [0.5, 1], "b": 3, "c": np.array([0, 1])}, [0.5, 1, 0, 0, 1, 0, 1]),
        (DICT, "b", None, {"a": [0.5, 1], "b": 3, "c": np.array([0, 1])}, [0, 0, 1]),
        (spaces.Tuple((BOX, spaces.Discrete(2))), "", None, ([0.5, 1], 0), [0.5, 1, 1, 0]),
        (spaces.Dict({"picture": PICTURE, "speed": BOX}), "speed", None, {"speed": [1, 0]}, [1, 0]),
    ],
)
def test_spaces(space: Any, key: str, obs_range: Any, value: Any, expected: list[float]) -> None:
    vector = find_vector(space, key, obs_range).read(value)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert find_vector(space, key, obs_range).size == len(expected)


@pytest.mark.parametrize(
    ("space", "key", "message"),
    [
        (PICTURE, "", "has an image in its observations, which is not a vector of numbers: use images"),
        (
            spaces.Dict({"a": BOX, "picture": PICTURE}),
            "",
            r"has an image in its observations.*: choose a part of it wi",
        ),
        (
            spaces.Dict({"a": BOX, "mission": spaces.Text(9)}),
            "",
            r"has a Text in its observations.*\(as in --obs-key a\)",
        ),
        (spaces.Dict({"a": BOX, "picture": PICTURE}), "picture", "has an image in its observations"),
        (DICT, "d", r"has no observation 'd': choose obs_key \(--obs-key\) from a, b, c"),
        (BOX, "a", "without keys: remove obs_key"),
    ],
)
def test_other_spaces_are_refused(space: Any, key: str, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        find_vector(space, key, None)


@pytest.mark.parametrize(
    ("space", "obs_range", "value", "message"),
    [
        (BOX, None, [1.0], r"returned an observation with an array of shape \(1,\) .* declares \(2,\) numbers"),
        (BOX, None, [np.nan, 0], "with NaN or Inf"),
        (spaces.Box(-np.inf, np.inf, (2,), np.float64), None, [1e300, 0], "with NaN or Inf"),
        (BOX, None, ["a", "b"], "with an array of shape"),
        (spaces.Box(0, 255, (2,), np.uint8), None, [300, 0], r"numbers from 0 to 300, outside of the range 0 to 255"),
        (BOX, (0, 1), [-0.5, 0], r"from -0\.5 to 0, outside of the range 0 to 1: name the right one with obs_range"),
        (DICT, None, {"a": [0, 0]}, r"that cannot be read \(KeyError"),
    ],
)
def test_other_values_are_errors(space: Any, obs_range: Any, value: Any, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        find_vector(space, "", obs_range).read(value)


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (
            "zerokara/Catch-v0",
            {"obs_type": "vector"},
            "Catch-v0 has images as observations and no vector: choose a conv",
        ),
        ("ALE/Pong-v5", {"env_kwargs": {"obs_type": "ram"}}, r"The RAM of ALE/Pong-v5 is a vector: add --backbone mlp"),
        ("CartPole-v1", {"obs_type": "vector", "size": 84}, "size has no effect on observations that are vectors"),
        ("CartPole-v1", {"obs_type": "numbers"}, "unknown obs_type 'numbers': expected image or vector"),
    ],
)
def test_mistakes_get_one_sentence(env: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        envs.make(env, 1, **settings)
    assert "\n" not in str(error.value)


def test_an_environment_that_cannot_render_trains_without_films() -> None:
    class Blind(Counter):
        metadata = {"render_modes": []}  # noqa: RUF012

    assert envs.make(Blind, 1, obs_type="vector").reset(0).shape == (1, 3, 1, 1)
    with pytest.raises(UserError, match=r"Blind cannot render images .*: train it with --no-capture-video"):
        envs.make(Blind, 1, obs_type="vector", render=True)
