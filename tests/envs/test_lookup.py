"""Environments by id, by module, by file, and as a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.envs.lookup import find

SOURCE = """
import gymnasium
import numpy as np

class Blink(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (12, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, level=10):
        self.level = level

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full((12, 16, 3), self.level, np.uint8), {}

    def step(self, action):
        return np.full((12, 16, 3), self.level + int(action), np.uint8), 1.0, False, False, {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_env.py"
    path.write_text(SOURCE)
    return path


def test_a_class_in_a_file_with_arguments(file: Path) -> None:
    env = envs.make(f"{file}:Blink", 2, env_kwargs={"level": 40}, size=84)
    assert env.reset(0)[:, -1].tolist() == np.full((2, 84, 84), 40).tolist()
    assert env.step(np.array([0, 1])).obs[:, -1].max(axis=(1, 2)).tolist() == [40, 41]
    assert env.settings["env_kwargs"] == {"level": 40}
    assert "env_kwargs" not in envs.make(f"{file}:Blink", 1).settings
    with pytest.raises(UserError, match=r"Blink cannot be created: TypeError: .*'lvel'"):
        envs.make(f"{file}:Blink", 1, env_kwargs={"lvel": 40})


def test_a_class_in_a_module_and_from_python(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    assert envs.make("my_env:Blink", 1).num_actions == 2
    name, target = find("my_env:Blink")
    assert name == "my_env:Blink"
    assert callable(target)
    env = envs.make(target, 1)
    assert env.id == "Blink"
    assert env.reset(0).shape == (1, 4, 84, 84)
    assert envs.make(lambda: target(level=9), 1).reset(0).max() == 9


def test_an_id_that_a_module_registers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registering = SOURCE + "gymnasium.register('Blink-v3', entry_point=Blink, max_episode_steps=2)\n"
    file.with_name("my_envs.py").write_text(registering)
    monkeypatch.syspath_prepend(str(file.parent))
    try:
        env = envs.make("my_envs:Blink-v3", 1)
        assert env.id == "Blink-v3"
        env.reset(0)
        assert [bool(env.step(np.array([0])).truncated[0]) for _ in range(3)] == [False, True, False]
    finally:
        gymnasium.registry.pop("Blink-v3", None)


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("{file}:Blnk", r"has no environment .Blnk.: it neither registers"),
        ("gymnasium.envs:CartPol-v1", r"of this name; did you mean CartPole-v1"),
        ("no_such_file.py:Blink", r"There is no file no_such_file\.py"),
        ("MiniGrid-Empty-5x5-v0", r"package minigrid: type pip install minigrid, then --env minigrid:MiniGrid-Empty"),
        ("MinAtar/Breakout-v1", r"pip install minatar, then --env minatar:MinAtar/Breakout-v1"),
        ("VizdoomBasic-v0", r"--env vizdoom.gymnasium_wrapper:VizdoomBasic-v0"),
        ("%%%", r"unknown environment '%%%': give the id of a registered environment"),
    ],
)
def test_mistakes_get_one_sentence(id: str, message: str, file: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        envs.make(id.format(file=file), 1)
    assert "\n" not in str(error.value)


def test_a_file_with_an_error(file: Path) -> None:
    file.write_text("import gymnasium\n1 / 0\n")
    with pytest.raises(UserError, match=r"my_env\.py cannot be imported: ZeroDivisionError"):
        find(f"{file}:Blink")


def test_settings_of_observations_are_rejected_where_they_have_no_effect() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"env_kwargs": {"a": 1}}, "env_kwargs cannot be set for zerokara/Catch-v0"),
        ({"obs_key": "image"}, "obs_key cannot be set"),
        ({"obs_range": (0, 1)}, "obs_range cannot be set"),
    )
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            envs.make("zerokara/Catch-v0", 1, **settings)
        with pytest.raises(UserError, match=message.split(" for")[0]):
            envs.make("ALE/Pong-v5", 1, **settings)
    with pytest.raises(UserError, match="two increasing numbers"):
        envs.make("CartPole-v1", 1, obs_range=(1, 0))
