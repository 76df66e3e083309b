"""Default values of a run: those of its config class, of its preset and of its game."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zerokara.agents.configs import dqn, pqn, stream
from zerokara.agents.configs.arcade import ARCADE
from zerokara.agents.configs.common import Settings

PRESETS: Mapping[type[Settings], Mapping[str, Mapping[str, Any]]] = {
    dqn.Config: dqn.PRESETS,
    pqn.Config: pqn.PRESETS,
    stream.Config: stream.PRESETS,
}


def preset_values(config: Settings) -> Mapping[str, Any]:
    """Return the values that the class and the preset of a config give to its fields."""
    return {**{field.name: field.default for field in fields(config)}, **PRESETS[type(config)].get(config.preset, {})}


def default_values(config: Settings) -> Mapping[str, Any]:
    """Return the values that the class, the preset and the environment of a config give to its fields."""
    games = ARCADE if isinstance(config, dqn.Config) and config.preset == dqn.Config.preset else {}
    return {**preset_values(config), **games.get(config.env, {})}
