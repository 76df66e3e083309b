"""Environments are closed when nothing uses them any more, also after an error; `resumable`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import zerokara
from tests.public.test_training import TINY, TINY_DQN
from zerokara import envs
from zerokara.agents.configs.dqn import Config
from zerokara.agents.training.start import make_env
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.named_object import NamedObject


class Counted(gymnasium.Env[Any, Any]):
    """Environment that counts how many of it are open, and its episodes; it raises an exception in episode `last`."""

    observation_space = spaces.Box(0, 255, (12, 16, 3), np.uint8)
    action_space: spaces.Space[Any] = spaces.Discrete(2)
    open: ClassVar[int] = 0
    episodes: ClassVar[int] = 0
    last: ClassVar[int | None] = None  # episode, counted over all environments, that cannot be started
    limit: ClassVar[int | None] = None  # number of environments that can be created

    def __init__(self) -> None:
        if type(self).open == self.limit:
            raise RuntimeError("no license left")
        Counted.open += 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        Counted.episodes += 1
        if Counted.episodes == self.last:
            raise RuntimeError("broken")
        self.age = 0
        return np.zeros((12, 16, 3), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        return np.full((12, 16, 3), self.age, np.uint8), 1.0, self.age == 10, False, {}

    def close(self) -> None:
        Counted.open -= 1


class Continuous(Counted):
    """Environment with actions that are not supported."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)


@pytest.fixture(autouse=True)
def _counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("open", 0), ("episodes", 0), ("last", None), ("limit", None)):
        monkeypatch.setattr(Counted, name, value)
    monkeypatch.chdir(tmp_path)


def test_an_environment_that_cannot_be_used_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="action space"):
        envs.make(Continuous, 1)
    assert Counted.open == 0
    monkeypatch.setattr(Counted, "last", 1)  # in the check that episodes can be repeated
    with pytest.raises(UserError, match="broken"):
        envs.make(Counted, 3)
    assert Counted.open == 0
    monkeypatch.setattr(Counted, "limit", 2)
    with pytest.raises(UserError, match="no license left"):
        envs.make(Counted, 3)
    assert Counted.open == 0


def test_episodes_are_repeated_only_where_they_can_be_resumed() -> None:
    envs.make(Counted, 1).close()
    assert Counted.episodes == 3
    env = envs.make(Counted, 1, resumable=False)
    assert (Counted.episodes, Counted.open) == (3, 1)
    env.reset(0)
    assert Counted.episodes == 4
    env.close()


def test_no_environment_stays_open_after_training_and_evaluation() -> None:
    agent = zerokara.train_dqn(env=Counted, name="a", **{**TINY_DQN, "eval_every_steps": 200})
    assert Counted.open == 0
    agent.evaluate(2)
    assert Counted.open == 0
    zerokara.train_pqn(env=Counted, name="b", rollout_steps=10, num_minibatches=4, **{**TINY, "eval_every_steps": 200})
    assert Counted.open == 0


@pytest.mark.parametrize("train", [zerokara.train_dqn, zerokara.train_pqn])
def test_no_environment_stays_open_after_an_error(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = TINY_DQN if train is zerokara.train_dqn else {**TINY, "rollout_steps": 10, "num_minibatches": 4}
    monkeypatch.setattr(Counted, "last", 9)
    with pytest.raises(UserError, match="cannot be reset"):
        train(env=Counted, name="a", **own)
    assert Counted.open == 0
    monkeypatch.setattr(Counted, "last", None)
    agent = train(env=Counted, name="b", **own)
    monkeypatch.setattr(Counted, "last", Counted.episodes + 1)
    with pytest.raises(UserError, match="cannot be reset"):
        agent.evaluate(2)
    assert Counted.open == 0


def test_an_environment_for_which_there_is_no_network_is_closed() -> None:
    with pytest.raises(UserError, match="too small"):
        make_env(Config(env=NamedObject.of(Counted), image_size=16, backbone="nature", num_envs=1), World())
    assert Counted.open == 0
