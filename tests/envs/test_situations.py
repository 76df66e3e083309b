"""Environments that draw into one array, return unusual values, or end their process; see docs/situations.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.envs.gymnasium import GymnasiumVectorEnv
from zerokara.envs.pools import WorkerPool

SIZE = (84, 84)  # that of a frame, so that images are not converted


class Counting(gymnasium.Env[Any, Any]):
    """Environment whose pixels are 10 times the number of the step; the reward is the action. 20 steps."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's form)
    action_space = spaces.Discrete(3)

    def __init__(self, shape: tuple[int, ...] = SIZE) -> None:
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.age = 0

    def draw(self) -> Any:
        return np.full(self.observation_space.shape or (), 10 * self.age, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.age = 0
        return self.draw(), {}

    def step(self, action: Any) -> Any:
        self.age += 1
        return self.draw(), float(action), self.age == 20, False, {}


def in_place(shape: tuple[int, ...], shared: bool) -> type[Counting]:
    """Return a class that draws every observation into the same array: one per environment, or one for all of them."""
    canvas = np.zeros(shape, np.uint8)

    class InPlace(Counting):
        def __init__(self) -> None:
            super().__init__(shape)
            self.canvas = canvas if shared else np.zeros(shape, np.uint8)

        def draw(self) -> Any:
            self.canvas[:] = super().draw()
            return self.canvas

    return InPlace


@pytest.mark.parametrize("shape", [SIZE, (*SIZE, 1), (*SIZE, 3), (3, *SIZE)])
@pytest.mark.parametrize("shared", [False, True])
def test_an_observation_may_be_overwritten_by_the_next_one(shape: tuple[int, ...], shared: bool) -> None:
    grayscale = 3 not in shape
    env = envs.make(in_place(shape, shared), 2, grayscale=grayscale, frame_stack=4)
    env.reset(0)
    steps = [env.step(np.array([0, 1])) for _ in range(6)]
    for number, step in enumerate(steps, start=1):
        newest = step.obs[:, :: env.frame_channels, 0, 0]
        assert newest.tolist() == [[10 * max(0, age) for age in range(number - 3, number + 1)]] * 2
    state = env.state_dict()
    resumed = envs.make(in_place(shape, shared), 2, grayscale=grayscale, frame_stack=4)
    assert np.array_equal(resumed.load_state_dict(state), steps[-1].obs)
    assert np.array_equal(resumed.step(np.array([0, 1])).obs, env.step(np.array([0, 1])).obs)


@pytest.mark.parametrize(
    "reward", [np.array([2.5]), np.float32(2.5), np.array(2.5), np.array(5) / 2, np.array([[2.5]])], ids=repr
)
def test_a_reward_may_be_an_array_of_one_number(reward: Any) -> None:
    class Rewarding(Counting):
        def step(self, action: Any) -> Any:
            obs, _, terminated, truncated, _ = super().step(action)
            return obs, reward, np.bool_(terminated), np.array([truncated]), None

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return super().reset(seed=seed)[0], None  # some environments return no info

    env = envs.make(Rewarding, 1)
    env.reset(0)
    steps = [env.step(np.array([0])) for _ in range(20)]
    assert [step.reward.item() for step in steps] == [2.5] * 20
    assert [step.terminal.item() for step in steps] == [False] * 19 + [True]
    assert not any(step.truncated.item() for step in steps)


@pytest.mark.parametrize(
    ("reset", "step", "message"),
    [
        ((0, {}), (0, None, False, False, {}), r"a reward that is not a number, but None, at step 1 of an episode"),
        (
            (0, {}),
            (0, np.zeros(2), False, False, {}),
            r"not a number, but array\(\[0\., 0\.\]\), at step 1 .* itself\.$",
        ),
        ((0, {}), (0, "1", False, False, {}), r"a reward that is not a number, but '1', at step 1"),
        (
            (0, {}),
            (0, 1.0, False, {}),
            r"returned 4 values from step\(\), expected those of gymnasium\.Env: observation, reward, terminated, ",
        ),
        ((0, {}), None, r"returned a NoneType from step\(\), expected"),
        ("image", (0, 1.0, False, False, {}), r"returned a ndarray from reset\(\), expected .*: observation, info\.$"),
        ((0, {}, 1), (0, 1.0, False, False, {}), r"returned 3 values from reset\(\)"),
    ],
)
def test_other_values_than_those_of_gymnasium_get_one_sentence(reset: Any, step: Any, message: str) -> None:
    class Wrong(Counting):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            image = super().reset(seed=seed)[0]
            return image if reset == "image" else (image, *reset[1:])

        def step(self, action: Any) -> Any:
            return step and (super().step(action)[0], *step[1:])

    def play() -> None:
        env = envs.make(Wrong, 1)
        env.reset(0)
        env.step(np.array([0]))

    with pytest.raises(UserError, match=rf"Wrong.* {message}"):
        play()


def quitting(flag: Path, step: int) -> type[Counting]:
    """Return a class whose process ends at a step of an episode with action 1, if the file exists."""

    class Quitting(Counting):
        def step(self, action: Any) -> Any:
            if action == 1 and self.age == step - 1 and flag.exists():
                flag.unlink()
                os._exit(3)
            return super().step(action)

    return Quitting


def test_a_worker_process_that_ended_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    env = envs.make(quitting(tmp_path / "flag", 5), 4, workers=2)
    env.reset(0)
    (tmp_path / "flag").touch()
    for _ in range(4):
        env.step(np.arange(4) % 3)
    with pytest.raises(UserError, match="worker process of the environments ended with exit code 3: see its message"):
        env.step(np.arange(4) % 3)
    env.close()


def test_a_worker_process_that_is_killed_between_two_steps_is_the_same_error() -> None:
    env = envs.make(Counting, 2, workers=2)
    assert isinstance(env, GymnasiumVectorEnv)
    assert isinstance(env._pool, WorkerPool)
    env.reset(0)
    env._pool._processes[1].kill()
    env._pool._processes[1].wait()
    with pytest.raises(UserError, match="ended with exit code -9"):
        env.step(np.zeros(2, np.int64))
    env.close()


def test_a_worker_process_that_ended_is_replaced_if_exceptions_restart_episodes(tmp_path: Path) -> None:
    env = envs.make(quitting(tmp_path / "flag", 5), 4, workers=2, restart_on_error=True, frame_stack=1)
    env.reset(0)
    (tmp_path / "flag").touch()
    ages, truncated = [], []
    for _ in range(8):
        step = env.step(np.arange(4) % 3)
        ages.append((step.obs[:, 0, 0, 0] // 10).tolist())
        truncated.append(step.truncated.tolist())
    # The process has the environments 0 and 1. Both lose their episodes and begin new ones; the others go on.
    assert ages == [[1] * 4, [2] * 4, [3] * 4, [4] * 4, [0, 0, 5, 5], [1, 1, 6, 6], [2, 2, 7, 7], [3, 3, 8, 8]]
    assert truncated == [[False] * 4] * 4 + [[True, True, False, False]] + [[False] * 4] * 3
    assert env.errors == 2
    assert "ended with exit code 3" in env.warnings[0]
    assert "the environment is created again" in env.warnings[0]
    state = env.state_dict()
    obs = env.step(np.arange(4) % 3).obs
    env.load_state_dict(state)
    assert np.array_equal(env.step(np.arange(4) % 3).obs, obs)
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_environment_is_created_again_only_once(tmp_path: Path, workers: int) -> None:
    """A worker that replaces another one creates its environments; they were then closed and created once more."""
    created = tmp_path / "created"

    class Counted(quitting(tmp_path / "flag", 5)):  # type: ignore[misc]  # the class is made by a function
        def __init__(self) -> None:
            super().__init__()
            with created.open("a") as file:
                file.write("x")

        def step(self, action: Any) -> Any:
            if not workers and action == 1 and self.age == 4 and (tmp_path / "flag").exists():
                (tmp_path / "flag").unlink()
                raise RuntimeError("broken")
            return super().step(action)

    env = envs.make(Counted, 4, workers=workers, restart_on_error=True, frame_stack=1)
    env.reset(0)
    (tmp_path / "flag").touch()
    before = len(created.read_text())
    for _ in range(7):
        env.step(np.arange(4) % 3)
    lost = 2 if workers else 1
    assert env.errors == lost
    assert len(created.read_text()) - before == lost
    assert isinstance(env, GymnasiumVectorEnv)
    env._pool.call([(0, "recreate", ())])  # this one has been used
    assert len(created.read_text()) - before == lost + 1
    env.close()
