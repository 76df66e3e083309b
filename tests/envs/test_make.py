"""Tests of envs.make: protocols, active settings, and error messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from zerokara import envs
from zerokara.core.config import UserError
from zerokara.envs.arcade.base import ArcadeEnv
from zerokara.envs.atari import AtariVectorEnv
from zerokara.envs.gymnasium import GymnasiumVectorEnv


def test_protocols_and_overrides() -> None:
    nature = envs.make("ALE/Pong-v5", 1).settings
    assert {
        key: nature[key]
        for key in (
            "repeat_action_probability",
            "noop_max",
            "frame_skip",
            "max_episode_frames",
            "fire_reset",
            "fire_after_life_loss",
        )
    } == {
        "repeat_action_probability": 0.0,
        "noop_max": 30,
        "frame_skip": 4,
        "max_episode_frames": 108_000,
        "fire_reset": False,
        "fire_after_life_loss": False,
    }
    assert (nature["protocol"], nature["frame_stack"], nature["size"], nature["grayscale"]) == ("nature", 4, 84, True)
    machado = envs.make("ALE/Pong-v5", 1, protocol="machado", noop_max=None, frame_stack=2, frame_skip=5).settings
    assert (
        machado["repeat_action_probability"],
        machado["noop_max"],
        machado["frame_stack"],
        machado["frame_skip"],
    ) == (0.25, 0, 2, 5)
    assert (machado["protocol"], machado["max_episode_frames"]) == ("machado", 108_000)
    assert json.loads(json.dumps(machado)) == machado


def test_type_of_environment_by_id() -> None:
    assert isinstance(envs.make("ALE/Pong-v5", 1), AtariVectorEnv)
    assert isinstance(envs.make("ALE/Pong-v5", 1, render=True), GymnasiumVectorEnv)
    assert isinstance(envs.make("PongNoFrameskip-v4", 1), GymnasiumVectorEnv)
    catch = envs.make("zerokara/Catch-v0", 3, frame_stack=2, grayscale=False, size=84, protocol="machado")
    assert isinstance(catch, ArcadeEnv)
    assert catch.reset(0).shape == (3, 6, 84, 84)
    assert isinstance(envs.make("gymnasium.envs:PongNoFrameskip-v4", 1), GymnasiumVectorEnv)


@pytest.mark.parametrize(
    ("id", "settings", "message"),
    [
        ("ALE/Pong-v5", {"protocol": "natural"}, "expected one of nature, 100k, machado"),
        (
            "ALE/Pong-v5",
            {"repeat_action_probabilty": 0.1},
            "'repeat_action_probabilty'; did you mean repeat_action_probability",
        ),
        ("ALE/Pong-v5", {"colour": "blue"}, "unknown environment setting 'colour'"),
        (
            "ALE/Pong-v5",
            {"repeat_action_probability": 1.5},
            "repeat_action_probability must be between 0 and 1, got 1.5",
        ),
        (
            "ALE/Pong-v5",
            {"repeat_action_probability": float("nan")},
            "repeat_action_probability must be between 0 and 1",
        ),
        ("ALE/Pong-v5", {"noop_max": -1}, "noop_max must be between 0 and"),
        ("ALE/Pong-v5", {"noop_max": 2.0}, "noop_max must be an integer, got 2.0"),
        ("ALE/Pong-v5", {"frame_skip": 0}, "frame_skip must be between 1 and"),
        ("ALE/Pong-v5", {"frame_skip": True}, "frame_skip must be an integer, got True"),
        ("ALE/Pong-v5", {"grayscale": 1}, "grayscale must be True or False, got 1"),
        ("ALE/Pong-v5", {"max_episode_frames": 3}, "at least frame_skip, which is 4, got 3"),
        ("ALE/Pong-v5", {"max_episode_frames": 0}, "at least frame_skip"),
        ("ALE/Pong-v5", {"frame_stack": 0}, "frame_stack must be between 1 and 32"),
        ("ALE/Pong-v5", {"num_threads": -1}, "num_threads must be between 0 and"),
        (
            "zerokara/Catch-v0",
            {"repeat_action_probability": 0.25},
            "repeat_action_probability is a setting of Atari games",
        ),
        ("zerokara/Catch-v0", {"size": 64}, "size of zerokara/Catch-v0 is always 84 and cannot be 64"),
        ("PongNoFrameskip-v4", {"noop_max": 3}, "noop_max is a setting of Atari games"),
        ("PongNoFrameskip-v4", {"frame_skip": 4, "max_episode_frames": 2}, "at least frame_skip"),
        ("pong", {}, "did you mean ALE/Pong-v5?"),
        ("ALE/Brekout-v5", {}, "did you mean ALE/Breakout-v5"),
        ("Catch", {}, "did you mean zerokara/Catch-v0?"),
        ("CartPole", {}, "did you mean CartPole-v1?"),
        ("ALE/Pong-v4", {}, "did you mean ALE/Pong-v5?"),
        ("%%%", {}, "unknown environment '%%%'"),
        ("no_such_module:Game-v0", {}, "no_such_module .* cannot be imported"),
    ],
)
def test_error_messages(id: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        envs.make(id, 1, **settings)
    assert "\n" not in str(error.value)


def test_num_envs_must_be_positive() -> None:
    with pytest.raises(UserError, match="num_envs must be between 1 and"):
        envs.make("ALE/Pong-v5", 0)


def test_import_registers_the_arcade_games_and_does_not_import_ale() -> None:
    code = """
import sys, gymnasium
import zerokara.envs
assert "ale_py" not in sys.modules and "cv2" not in sys.modules
import zerokara.envs.pools, zerokara.envs.gymnasium  # as in worker processes
assert "torch" not in sys.modules
print(gymnasium.make("zerokara/Catch-v0").reset(seed=0)[0].shape)
"""
    root = Path(envs.__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("(84, 84, 1)\n", 0), result.stderr
    assert "zerokara/Catch-v0" in gymnasium.registry


def test_all_types_have_the_same_interface() -> None:
    for id in ("ALE/Pong-v5", "zerokara/Catch-v0", "PongNoFrameskip-v4"):
        env = envs.make(id, 2)
        assert (env.id, env.num_envs, env.obs_shape, env.frame_channels) == (id, 2, (4, 84, 84), 1)
        assert len(env.action_names) == env.num_actions
        obs = env.reset(0)
        step = env.step(np.array([0, 1]))
        assert obs.shape == step.obs.shape == step.last_obs.shape == (2, 4, 84, 84)
        assert [array.dtype for array in step] == [np.uint8, np.float32, bool, bool, bool, np.uint8]
        assert np.array_equal(step.obs[:, 2], obs[:, 3])
        assert not obs[:, :3].any()
        env.close()
