"""Test which settings of a run are not those of its preset."""

from __future__ import annotations

import pytest

from zerokara.agents.configs import dqn, pqn
from zerokara.agents.configs.defaults import format_changes, preset_changes


@pytest.mark.parametrize("preset", dqn.PRESETS)
@pytest.mark.parametrize("env", ["ALE/Pong-v5", "zerokara/Catch-v0"])
@pytest.mark.parametrize("more", [(), ("--total-steps", "2000"), ("--protocol", "machado")])
def test_a_new_run_has_the_settings_of_its_preset(preset: str, env: str, more: tuple[str, ...]) -> None:
    config = dqn.read_config(["--preset", preset, "--env", env, *more])
    games = {"final_learning_rate"} if preset == "fast" and "Catch" in env else set()
    assert preset_changes(config).keys() == games


def test_changed_settings_are_named() -> None:
    config = dqn.read_config(["--preset", "double", "--no-double", "--learning-starts", "60000", "--gamma", "0.9"])
    assert preset_changes(config) == {"double": (False, True), "learning_starts": (60_000, 50_000)}
    assert format_changes(preset_changes(config)) == (
        "--double False instead of True, --learning-starts 60000 instead of 50000"
    )
    padded = dqn.read_config(["--preset", "dopamine", "--backbone", "impala"])
    assert preset_changes(padded).keys() == {"backbone"}, "padding is an option of other backbones"
    assert preset_changes(pqn.read_config(["--no-fire-reset"])) == {"fire_reset": (False, True)}
