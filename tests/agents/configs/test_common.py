"""Settings of environments in the configs of agents."""

from __future__ import annotations

import pytest

from zerokara.agents.configs.common import parse_env_kwargs
from zerokara.agents.configs.dqn import Config, read_config
from zerokara.core.config import UserError


def test_arguments_of_an_environment_are_literals_or_texts() -> None:
    words = ["size=5", "continuous=False", "map=[1, 2]", "name=lava gap", "rate=1e-3", "text='5'"]
    assert parse_env_kwargs(words) == {
        "size": 5,
        "continuous": False,
        "map": [1, 2],
        "name": "lava gap",
        "rate": 1e-3,
        "text": "5",
    }
    for word in ("continuous", "=3", "a b=3"):
        with pytest.raises(UserError, match=r"--env-kwargs cannot be .*: write name=value"):
            parse_env_kwargs([word])


def test_settings_reach_envs_make() -> None:
    words = ["--env-kwargs", "size=5", "--obs-key", "image", "--obs-range", "-1", "1", "--env-errors", "restart"]
    settings = read_config([*words, "--env", "my_env.py:Grid"], "").env_settings()
    expected = {"env_kwargs": {"size": 5}, "obs_key": "image", "obs_range": (-1.0, 1.0), "restart_on_error": True}
    assert {name: settings[name] for name in expected} == expected
    assert not expected.keys() & Config().env_settings().keys()
    with pytest.raises(UserError, match="write name=value"):
        read_config(["--env-kwargs", "size"], "")
