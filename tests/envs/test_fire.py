"""Tests of FIRE at resets and after lost lives, in the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zerokara import envs
from zerokara.core.config import UserError

FIRE: dict[str, Any] = {"noop_max": 0, "fire_reset": True, "fire_after_life_loss": True}
NO_FIRE: dict[str, Any] = {**FIRE, "fire_after_life_loss": False}


def is_same(a_step: envs.Step, b_step: envs.Step) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(a_step, b_step, strict=True))


@pytest.mark.parametrize("render", [False, True])
def test_an_agent_that_never_presses_fire_plays_breakout_to_its_end(render: bool) -> None:
    env = envs.make("ALE/Breakout-v5", 1, render=render, **FIRE)
    env.reset(0)
    assert env.action_names[1] == "FIRE"
    steps = [env.step(np.array([0])) for _ in range(400)]
    end = next(t for t, step in enumerate(steps) if step.terminal[0])
    assert sum(int(step.life_lost[0]) for step in steps[:end]) == 4, "the fifth life ends the game"
    env.close()


@pytest.mark.parametrize("settings", [NO_FIRE, {**NO_FIRE, "fire_reset": False}])
def test_without_the_setting_the_ball_is_not_served_again(settings: dict[str, Any]) -> None:
    env = envs.make("ALE/Breakout-v5", 1, **settings)
    env.reset(0)
    steps = [env.step(np.array([0])) for _ in range(300)]
    assert sum(int(step.life_lost[0]) for step in steps) == int(settings["fire_reset"])
    assert not any(step.terminal[0] for step in steps)
    env.close()


def test_fire_takes_the_place_of_the_action_after_a_lost_life() -> None:
    """The environment does what one without the setting does with the actions that `executed` returns."""
    env, plain = (envs.make("ALE/Breakout-v5", 3, **settings) for settings in (FIRE, NO_FIRE))
    assert np.array_equal(env.reset(1), plain.reset(1))
    rng = np.random.default_rng(0)
    life_lost_N = np.zeros(3, bool)
    deaths = 0
    for _ in range(250):
        selected_N = rng.choice([0, 2, 3], 3)
        executed_N = env.executed(selected_N)
        assert executed_N.dtype == np.int64
        assert np.array_equal(executed_N, np.where(life_lost_N, 1, selected_N))
        step = env.step(selected_N)
        assert is_same(step, plain.step(executed_N))
        life_lost_N = step.life_lost
        deaths += int(life_lost_N.sum())
    assert deaths >= 6
    env.close()
    plain.close()


@pytest.mark.parametrize("render", [False, True])
def test_a_state_saved_between_a_lost_life_and_fire_resumes_exactly(render: bool) -> None:
    env, other = (envs.make("ALE/Breakout-v5", 2, render=render, **FIRE) for _ in range(2))
    env.reset(0)
    rng = np.random.default_rng(1)
    while not env.step(rng.integers(2, 4, 2)).life_lost.any():
        pass
    obs = other.load_state_dict(env.state_dict())
    assert obs.shape == (2, 4, 84, 84)
    for _ in range(60):
        action_N = rng.integers(2, 4, 2)
        assert np.array_equal(env.executed(action_N), other.executed(action_N))
        assert is_same(env.step(action_N), other.step(action_N))
    other.reset(0)
    assert other.executed(np.array([2, 2])).tolist() == [2, 2], "a reset is no lost life"
    env.close()
    other.close()


def test_checkpoints_of_older_versions_have_no_such_setting() -> None:
    env, other = (envs.make("ALE/Breakout-v5", 1, **NO_FIRE) for _ in range(2))
    env.reset(0)
    env.step(np.array([3]))
    state = env.state_dict()
    del state["settings"]["fire_after_life_loss"]
    other.load_state_dict(state)
    assert is_same(env.step(np.array([2])), other.step(np.array([2])))
    with pytest.raises(UserError, match="settings"):
        envs.make("ALE/Breakout-v5", 1, **FIRE).load_state_dict(state)


def test_games_without_fire_and_other_environments() -> None:
    env = envs.make("ALE/MsPacman-v5", 1, **FIRE)
    assert env.fire_action is None
    assert env.settings["fire_after_life_loss"] is True
    assert "life_lost" not in (env.reset(0), env.state_dict())[1]
    env.close()
    with pytest.raises(UserError, match="fire_after_life_loss is a setting of Atari games only"):
        envs.make("zerokara/Catch-v0", 1, fire_after_life_loss=True)
