"""Acting with a loaded agent: frames of a Gymnasium environment, one observation, and batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from zerokara.agents.training.evaluation import evaluate
from zerokara.agents.viewing.loading import Agent, evaluation_seed, load_agent
from zerokara.core import config as config_module
from zerokara.core.config import UserError


def catch() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("zerokara/Catch-v0", max_episode_steps=20)


@pytest.fixture
def agent(catch_run: Path) -> Agent:
    return load_agent(catch_run, threads=1)


def test_frames_of_a_loop_give_the_actions_of_the_training_environment(agent: Agent) -> None:
    frames: list[tuple[bool, np.ndarray]] = []

    class Recording(gymnasium.Wrapper[Any, Any, Any, Any]):
        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            obs, info = super().reset(**options)
            frames.append((True, obs))
            return obs, info

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            result = super().step(action)
            frames.append((False, result[0]))
            return result

    env = load_agent("runs/catch", env=lambda: Recording(catch()), threads=1).make_env(1)
    frames.clear()
    obs = env.reset(0)
    expected = []
    for _ in range(60):
        q_A = agent.policy.values(obs)[0].numpy()
        expected.append(q_A)
        step = env.step(np.array([int(q_A.argmax())]))
        if step.terminal[0] | step.truncated[0]:
            expected.append(agent.policy.values(step.last_obs)[0].numpy())
        obs = step.obs
    assert sum(first for first, _ in frames) >= 3
    for (first, frame), q_A in zip(frames, expected, strict=False):
        if first:
            agent.reset()
        assert agent.act(frame) == q_A.argmax()
        np.testing.assert_array_equal(agent.q_values(), q_A)


def test_one_observation_and_a_batch(agent: Agent) -> None:
    obs = np.random.default_rng(0).integers(256, size=(5, 4, 84, 84), dtype=np.uint8)
    q_NA = agent.policy.values(obs).numpy()
    actions = agent.act(obs)
    assert isinstance(actions, np.ndarray)
    assert actions.tolist() == q_NA.argmax(axis=1).tolist()
    np.testing.assert_array_equal(agent.q_values(obs), q_NA)
    np.testing.assert_array_equal(agent.q_values(obs.transpose(0, 2, 3, 1)), q_NA)
    action = agent.act(obs[2])
    assert type(action) is int
    np.testing.assert_allclose(agent.q_values(obs[2]), q_NA[2], rtol=1e-4, atol=1e-6)
    assert agent.q_values(obs[2].transpose(1, 2, 0)).shape == (3,)


def test_random_actions_with_probability_epsilon(agent: Agent) -> None:
    obs = np.zeros((600, 4, 84, 84), np.uint8)
    greedy = agent.act(obs[0])
    assert np.unique(agent.act(obs)).tolist() == [greedy]
    assert np.bincount(agent.act(obs, epsilon=1.0), minlength=3).min() > 150
    assert 20 < np.count_nonzero(agent.act(obs, epsilon=0.2) != greedy) < 150


def test_q_values_need_an_observation(agent: Agent) -> None:
    with pytest.raises(UserError, match="no observation yet"):
        agent.q_values()


def test_evaluation_is_that_of_the_program(agent: Agent) -> None:
    scores = agent.evaluate(4, seed=1)
    env = agent.make_env(4)
    expected = evaluate(
        agent.policy,
        env,
        episodes_per_env=1,
        epsilon=agent.config.eval_epsilon,
        max_steps=agent.config.eval_max_steps,
        seed=evaluation_seed(1),
    )
    assert scores == expected
    assert len(agent.evaluate(3).returns) == 3
    with pytest.raises(UserError, match="episodes must be at least 1, got 0"):
        agent.evaluate(0)


def test_frames_of_atari_and_repeated_actions_are_explained_once(
    catch_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "_printed", set())
    frame = np.zeros((210, 160, 3), np.uint8)
    content = json.loads((catch_run / "config.json").read_text())
    for changes, message in (
        ({}, ""),
        ({"env": "ALE/Pong-v5"}, "AtariPreprocessing(gymnasium.make('ALE/Pong-v5', frameskip=1), frame_skip=4, "),
        ({"frame_skip": 2}, "each action was repeated for 2 frames"),
    ):
        changed = {**content, "config": {**content["config"], **changes}}
        (catch_run / "config.json").write_text(json.dumps(changed))
        agent = load_agent(catch_run, threads=1)
        agent.act(np.zeros((84, 84), np.uint8))
        assert capsys.readouterr().err == ""
        agent.act(frame)
        agent.act(frame)
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == bool(message)
