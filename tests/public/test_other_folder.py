"""Agents and classifiers with an environment and a network of one's own, loaded in another folder than trained in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zerokara
from tests.public.test_training import NET, TINY_DQN, images
from zerokara.agents import evaluate

SOURCE = """
import gymnasium
import numpy as np
from torch import nn

class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (12, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return np.full((12, 16, 3), LEVEL, np.uint8), {}

    def step(self, action):
        self.age += 1
        return np.full((12, 16, 3), LEVEL, np.uint8), REWARD, self.age == 10, False, {}
"""


def write_source(folder: Path, level: int, reward: float) -> None:
    folder.mkdir()
    (folder / "own.py").write_text((SOURCE + NET).replace("LEVEL", str(level)).replace("REWARD", str(reward)))


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder in which own.py is that of the training, and return another one with a different own.py."""
    write_source(tmp_path / "first", 100, 1.0)
    write_source(tmp_path / "second", 0, -5.0)
    monkeypatch.chdir(tmp_path / "first")
    return tmp_path / "second"


@pytest.mark.parametrize("which", ["best", "last"])
def test_an_agent(other: Path, which: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**TINY_DQN, "total_steps": 200, "eval_every_steps": 200}
    agent = zerokara.train_dqn(env="own.py:Env", backbone="own.py:Net", name="a", **settings)
    frame = np.full((12, 16, 3), 100, np.uint8)
    expected = agent.q_values(frame)
    monkeypatch.chdir(other)
    loaded = zerokara.load_agent("../first/runs/a", which=which, threads=1)
    np.testing.assert_array_equal(loaded.q_values(frame), expected)
    assert loaded.evaluate(2).returns == (10.0, 10.0)  # rewards of the environment of the training
    assert zerokara.load_agent("../first/runs/a/agent-best.safetensors", threads=1).evaluate(1).returns == (10.0,)
    evaluate.main(["../first/runs/a", "--episodes", "2", "--threads", "1"])
    assert "10.0" in capsys.readouterr().out


def test_a_classifier(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cats", "dogs"):
        images(Path("pictures") / name, 10)
    classifier = zerokara.train_classifier(
        data="pictures", backbone="own.py:Net", validation_images=2, epochs=1, batch_size=4, test=False, tta_views=1,
        quiet=True, device="cpu", precision="float32", compile="off", threads=1, name="c",
    )  # fmt: skip
    expected = classifier.predict(np.zeros((28, 28), np.uint8))
    monkeypatch.chdir(other)
    Path("own.py").unlink()
    assert zerokara.load_classifier("../first/runs/c", threads=1).predict(np.zeros((28, 28), np.uint8)) == expected
