"""Tests of the actions that are executed after a lost life: the learners store FIRE, not what the agent selected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agents.resources import resources
from tests.agents.scripted import SIZE, ScriptedEnv
from zerokara import envs
from zerokara.agents import dqn, pqn
from zerokara.agents.configs import dqn as dqn_config
from zerokara.agents.configs import pqn as pqn_config
from zerokara.core.run import Run

FIRE = 1
COMMON: dict[str, Any] = {
    "num_envs": 4, "frame_stack": 2, "image_size": SIZE, "hidden_units": 16, "width_multiplier": 0.25,
    "eval_every_steps": 0, "capture_video": False, "device": "cpu", "threads": 1, "backbone": "der",
}  # fmt: skip


class FireEnv(ScriptedEnv):
    """Scripted environments in which FIRE is executed after every lost life."""

    fire_action = FIRE

    def recv(self) -> envs.Step:
        step = super().recv()
        self._life_lost_N = step.life_lost
        return step


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> FireEnv:
    made = FireEnv(4)
    monkeypatch.setattr(envs, "make", lambda *args, **options: made)
    return made


def test_dqn_stores_the_executed_actions(tmp_path: Path, env: FireEnv) -> None:
    config = dqn_config.Config(**COMMON, total_steps=120, learning_starts=200, replay_capacity=400, save_replay=False)
    with Run(config, kind="dqn", name="run", resume=False, quiet=True, root=tmp_path) as run:
        training = dqn.Training(config, run, resources(config))
        training.start()
        lost = []
        for _ in range(12):
            training.iterate()
            lost.append(training.env._life_lost_N)
    check_fire(env.actions, lost)
    stored = training.replay._host["action"]
    for i in range(4):
        rows = stored[i * training.replay.slots :]
        executed = [actions[i] for actions in env.actions[:3]]  # before the first ending, which may use a slot
        assert rows[:3].tolist() == executed


def test_pqn_stores_the_executed_actions(tmp_path: Path, env: FireEnv) -> None:
    config = pqn_config.Config(**COMMON, total_steps=48, rollout_steps=12, num_minibatches=4)
    with Run(config, kind="pqn", name="run", resume=False, quiet=True, root=tmp_path) as run:
        training = pqn.Training(config, run, resources(config))
        training.start()
        training.iterate()
    np.testing.assert_array_equal(training.action_TN.numpy(), np.stack(env.actions))
    lost = np.stack([np.array([False] * 4)] * 12)
    probe = FireEnv(4)
    probe.reset(0)
    for t in range(12):
        lost[t] = probe.step(np.zeros(4, np.int64)).life_lost
    check_fire(env.actions, list(lost))


def check_fire(actions: list[np.ndarray], lost: list[Any]) -> None:
    """Check that FIRE follows every lost life, and that other actions occur."""
    after = [action for before, following in zip(lost, actions[1:], strict=False) for action in following[before]]
    assert len(after) >= 8
    assert set(after) == {FIRE}
    assert len({int(action) for step in actions for action in step}) > 1


def test_executed_actions_are_the_selected_ones_without_the_setting() -> None:
    env = ScriptedEnv(2)
    action_N = np.array([2, 3])
    assert env.executed(action_N) is action_N
    fire = FireEnv(2)
    assert fire.executed(action_N) is action_N, "before the first step"
    fire.reset(0)
    fire.step(action_N)
    assert fire.step(action_N).life_lost.all()
    assert fire.executed(action_N).tolist() == [FIRE, FIRE]
    with pytest.raises(ValueError, match="must be between"):
        fire.send(np.array([7, 0]))
