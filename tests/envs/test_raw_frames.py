"""Frames of Gymnasium environments and stacked observations give the same input as the training environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import AtariPreprocessing

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.envs.gymnasium import GymnasiumVectorEnv
from zerokara.envs.observations import ImageFormat
from zerokara.envs.raw_frames import FrameReader, VectorReader
from zerokara.envs.vectors import VectorFormat

SPACES: dict[str, spaces.Space[Any]] = {
    "flat": spaces.Box(0, 255, (30, 40), np.uint8),
    "one channel": spaces.Box(0, 255, (30, 40, 1), np.uint8),
    "rgb": spaces.Box(0, 255, (30, 40, 3), np.uint8),
    "channels first": spaces.Box(0, 255, (3, 30, 40), np.uint8),
    "unit": spaces.Box(0, 1, (30, 40, 3), np.float32),
    "bytes as floats": spaces.Box(0, 255, (30, 40, 3), np.float64),
    "network's size": spaces.Box(0, 255, (84, 84), np.uint8),
    "dict": spaces.Dict({"image": spaces.Box(0, 255, (30, 40, 3), np.uint8), "goal": spaces.Discrete(3)}),
}


class Recorded(gymnasium.Env[Any, Any]):
    """Environment with random observations, which keeps them. Every third step ends an episode."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space
        self.observations: list[tuple[bool, Any]] = []  # True for the first of an episode
        self.age = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.age = 0
        return self._observe(first=True), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        return self._observe(first=False), 0.0, self.age == 3, False, {}

    def _observe(self, *, first: bool) -> Any:
        obs = self.observation_space.sample()
        self.observations.append((first, obs))
        return obs


def declared(env: envs.VectorEnv) -> Callable[[], ImageFormat | VectorFormat | None]:
    assert isinstance(env, GymnasiumVectorEnv)
    return lambda: env.image


@pytest.mark.parametrize("grayscale", [True, False])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_frames_give_the_observations_of_the_training_environment(space: spaces.Space[Any], grayscale: bool) -> None:
    created: list[Recorded] = []

    def make() -> Recorded:
        created.append(Recorded(space))
        return created[-1]

    env = envs.make(make, 1, frame_stack=2, grayscale=grayscale)
    recorded = created[1]  # the first one only tells its spaces
    recorded.observations.clear()
    expected = [env.reset(0)]
    for _ in range(7):
        step = env.step(np.array([0]))
        expected += [step.last_obs, step.obs] if step.terminal[0] else [step.obs]
    reader = FrameReader(env.obs_shape, env.frame_channels, declared=declared(env))
    assert len(recorded.observations) == len(expected)
    assert sum(first for first, _ in recorded.observations) == 3
    for (first, obs), expected_1CHW in zip(recorded.observations, expected, strict=True):
        if first:
            reader.reset()
        observation, is_batch = reader.read(obs)
        assert not is_batch
        np.testing.assert_array_equal(observation, expected_1CHW)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-2, 2, (4,), np.float32),
        spaces.Box(0, 255, (128,), np.uint8),
        spaces.Dict({"position": spaces.Box(-1, 1, (2,), np.float32), "goal": spaces.Discrete(3)}),
    ],
    ids=str,
)
def test_vectors_give_the_observations_of_the_training_environment(space: spaces.Space[Any]) -> None:
    created: list[Recorded] = []

    def make() -> Recorded:
        created.append(Recorded(space))
        return created[-1]

    env = envs.make(make, 1, frame_stack=2, obs_type="vector")
    created[1].observations.clear()
    expected = [env.reset(0), *(env.step(np.array([0])).obs for _ in range(2))]
    reader = VectorReader(env.obs_shape, declared(env))
    for (_, obs), expected_1CHW in zip(created[1].observations, expected, strict=True):
        observation, is_batch = reader.read(obs)
        assert (is_batch, observation.dtype.name) == (False, "float32")
        np.testing.assert_array_equal(observation, expected_1CHW)
    reader.reset()
    first = reader.read(created[1].observations[0][1])[0]
    np.testing.assert_array_equal(first, expected[0])


def test_a_batch_of_vectors() -> None:
    env = envs.make(lambda: Recorded(spaces.Box(0, 10, (3,), np.int64)), 1, frame_stack=1, obs_type="vector")
    batch = np.array([[0, 5, 10], [10, 0, 0]])
    observation, is_batch = VectorReader((3, 1, 1), declared(env)).read(batch)
    assert is_batch
    assert observation[:, :, 0, 0].tolist() == [[0, 0.5, 1], [1, 0, 0]]
    with pytest.raises(UserError, match="stacks vectors: give one at a time"):
        VectorReader((6, 1, 1), declared(env)).read(batch)
    with pytest.raises(UserError, match=r"^The environment returned an observation"):
        VectorReader((3, 1, 1), declared(env)).read(np.zeros(4, np.int64))


def test_a_range_that_the_run_names_replaces_the_declared_one() -> None:
    space = spaces.Box(0, 255, (30, 40), np.uint8)
    frame = np.full((30, 40), 5, np.uint8)
    reader = FrameReader((1, 84, 84), 1, obs_range=(0, 10))
    assert reader.read(frame)[0].max() == 128
    assert space.contains(frame)
    with pytest.raises(UserError, match=r"environment returned an observation with values from 11 to 11, outside"):
        reader.read(np.full((30, 40), 11, np.uint8))


def test_atari_frames_of_gymnasium_s_preprocessing_give_the_same_observations() -> None:
    env = envs.make("ALE/Breakout-v5", 1, repeat_action_probability=0.0, noop_max=0)
    game = gymnasium.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    wrapped = AtariPreprocessing(game, noop_max=0, frame_skip=4)
    reader = FrameReader(env.obs_shape, env.frame_channels)
    frame, _ = wrapped.reset(seed=0)
    np.testing.assert_array_equal(reader.read(frame)[0], env.reset(3))
    for action in np.random.default_rng(0).integers(4, size=20):
        np.testing.assert_array_equal(reader.read(wrapped.step(action)[0])[0], env.step(np.array([action])).last_obs)
    env.close()


def stack(channels: int = 4, size: int = 84, number: int = 1) -> np.ndarray:
    return np.random.default_rng(1).integers(256, size=(number, channels, size, size), dtype=np.uint8)


def test_stacked_observations_in_every_layout() -> None:
    obs = stack(number=3)
    reader = FrameReader((4, 84, 84), 1)
    for given, is_batch in (
        (obs, True),
        (obs.transpose(0, 2, 3, 1), True),
        (obs[..., None], True),
        (obs.astype(np.int64), True),
        (obs[0], False),
        (obs[0].transpose(1, 2, 0), False),
        (obs[0, ..., None], False),
        (obs[0].tolist(), False),
    ):
        read, batch = reader.read(given)
        assert (batch, read.dtype.name, read.flags.c_contiguous) == (is_batch, "uint8", True)
        np.testing.assert_array_equal(read, obs if is_batch else obs[:1])


def test_stacked_rgb_frames() -> None:
    obs = stack(channels=12)
    reader = FrameReader((12, 84, 84), 3)
    frames_KHWF = obs[0].reshape(4, 3, 84, 84).transpose(0, 2, 3, 1)
    for given in (obs[0], obs[0].transpose(1, 2, 0), frames_KHWF):
        np.testing.assert_array_equal(reader.read(given)[0], obs)
    np.testing.assert_array_equal(reader.read(frames_KHWF[None])[0], obs)


def test_stacked_observations_do_not_change_the_frames_of_the_episode() -> None:
    reader = FrameReader((2, 84, 84), 1)
    first, second = np.full((2, 30, 40), [[[10]], [[20]]], np.uint8)
    reader.read(first)
    reader.read(stack(channels=2)[0])
    assert reader.read(second)[0].max(axis=(0, 2, 3)).tolist() == [10, 20]
    reader.reset()
    assert reader.read(second)[0].max(axis=(0, 2, 3)).tolist() == [0, 20]


def test_an_array_that_can_be_a_frame_or_a_stack_is_not_guessed() -> None:
    obs = stack(channels=3)[0]
    with pytest.raises(UserError, match=r"shape \(3, 84, 84\) can be one RGB frame or three stacked grayscale frames"):
        FrameReader((3, 84, 84), 1).read(obs)
    np.testing.assert_array_equal(FrameReader((3, 84, 84), 1).read(obs, stacked=True)[0][0], obs)
    frame = FrameReader((3, 84, 84), 1).read(obs, stacked=False)[0][0]
    assert not frame[:2].any()
    assert frame[2].any()
    # One RGB frame is the whole stack: both are the same.
    np.testing.assert_array_equal(FrameReader((3, 84, 84), 3).read(obs)[0][0], obs)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(4), r"shape \(4,\) is neither a frame .* nor stacked: \(4, 84, 84\) or \(84, 84, 4\), or several"),
        (np.zeros((2, 30, 40, 3), np.uint8), r"shape \(2, 30, 40, 3\) is neither a frame"),
        (np.zeros((84, 84, 4)), r"Stacked observations are integers from 0 to 255, got float64 from 0 to 0: convert"),
        (np.full((4, 84, 84), 256), r"got int64 from 256 to 256"),
        (np.zeros((30, 40, 2), np.uint8), r"contains no image, .* env.render\(\)"),
        ({"position": np.zeros(3), "mission": "go"}, r"contains no image"),
        ({"a": np.zeros((30, 40), np.uint8), "b": np.zeros((30, 40), np.uint8)}, r"images a, b in its observations"),
        (np.full((30, 40), np.nan), r"NaN or Inf"),
    ],
)
def test_mistakes_get_one_sentence(obs: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        FrameReader((4, 84, 84), 1).read(obs)
    assert "\n" not in str(error.value)


def test_floats_of_unknown_range_need_the_environment_of_the_training() -> None:
    def cannot_be_made() -> ImageFormat | None:
        raise UserError("There is no environment.")

    with pytest.raises(UserError, match=r"cannot be created here \(There is no environment\): give frames of uint8"):
        FrameReader((4, 84, 84), 1, declared=cannot_be_made).read(np.full((30, 40), 0.5))
    rendered = FrameReader((4, 84, 84), 1, declared=lambda: None)
    assert rendered.read(np.full((30, 40, 3), 0.5))[0].max() == 128
