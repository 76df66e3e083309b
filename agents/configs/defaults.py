"""Default values of a run: those of its config class, of its preset and of its game; differences between versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zerokara.agents.configs import dqn, pqn, stream
from zerokara.agents.configs.arcade import ARCADE
from zerokara.agents.configs.common import ATARI_FIELDS, PADDED_BACKBONES, Settings
from zerokara.agents.configs.lengths import DIVISORS
from zerokara.agents.configs.protocols import OVERRIDES
from zerokara.core.config import flag

Changes = Mapping[str, tuple[Any, Any]]
"""Name of a field -> value of a run, and the value that a new run of this version has instead."""

# What --protocol sets: the length of a run and its evaluation.
_PROTOCOL_FIELDS = frozenset({"protocol", *(name for values in OVERRIDES.values() for name in values)})

PRESETS: Mapping[type[Settings], Mapping[str, Mapping[str, Any]]] = {
    dqn.Config: dqn.PRESETS,
    pqn.Config: pqn.PRESETS,
    stream.Config: stream.PRESETS,
}


def preset_values(config: Settings) -> Mapping[str, Any]:
    """Return the values that the class and the preset of a config give to its fields."""
    return {**{field.name: field.default for field in fields(config)}, **_preset(config)}


def default_values(config: Settings) -> Mapping[str, Any]:
    """Return the values that the class, the preset and the environment of a config give to its fields."""
    games = ARCADE if isinstance(config, dqn.Config) and config.preset == dqn.Config.preset else {}
    return {**preset_values(config), **games.get(config.env, {})}


def preset_changes(config: Settings) -> Changes:
    """Return the fields in which a config differs from its preset, apart from its evaluation and number of steps.

    Lengths that a short run reduces are left out, and what the preset sets only for Atari games or for its own backbone
    where it has no effect.
    """
    left_out = {*_PROTOCOL_FIELDS, *(() if config.is_atari else ATARI_FIELDS)}
    if getattr(config, "backbone", "") not in PADDED_BACKBONES:
        left_out.add("same_padding")
    pairs = {name: (getattr(config, name), new) for name, new in _preset(config).items() if name not in left_out}
    return {
        name: (value, new)
        for name, (value, new) in pairs.items()
        if value != new and not (name in DIVISORS and value is not None and value < new)
    }


def format_changes(changes: Changes) -> str:
    """Format changes as text: "--loss mse instead of huber, --gamma 0.9 instead of 0.99"."""
    return ", ".join(f"{flag(name)} {value} instead of {new}" for name, (value, new) in changes.items())


def _preset(config: Settings) -> Mapping[str, Any]:
    return PRESETS[type(config)].get(config.preset, {})
