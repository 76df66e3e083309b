"""Lengths that fit a short run: schedules, intervals and the replay buffer of a preset have at most a part of it.

A preset is made for its own number of steps: `fast` takes 5,000 random steps before the first update and evaluates
every 200,000, so 3,000 steps of it would neither learn nor be scored. The rule: a length that neither the command line
nor a protocol sets is at most the total number of steps divided by the number below. The lengths of all presets and
games fit the number of steps for which they are made, so such runs are not changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from zerokara.agents.configs.common import Settings
from zerokara.core.config import class_mapping, flag

ConfigT = TypeVar("ConfigT", bound=Settings)

# Field -> the total number of steps divided by this is its maximum.
DIVISORS: Mapping[str, int] = {
    "learning_starts": 10,
    "epsilon_decay_steps": 2,
    "epsilon_off_after_steps": 2,
    "learning_rate_decay_steps": 1,
    "target_update_steps": 20,
    "per_beta_steps": 1,
    "replay_capacity": 1,
    "eval_every_steps": 5,
    "log_every_steps": 20,
    "checkpoint_every_steps": 5,
}
MIN_EVAL_STEPS = 10_000  # an evaluation may take as long as this many steps; there is one at the end in any case


def fit_lengths(config: ConfigT, given: Collection[str]) -> ConfigT:
    """Return the config with lengths that fit its total number of steps.

    Args:
        config: config of a new run.
        given: fields that are not changed.
    """
    requires = class_mapping(type(config), "REQUIRES")
    changes: dict[str, Any] = {}
    for name, divisor in DIVISORS.items():
        maximum = max(minimum(config, name), config.total_steps // divisor)
        if name == "per_beta_steps" and getattr(config, "per_beta_begins", "start") == "learning_starts":
            maximum -= changes.get("learning_starts", getattr(config, "learning_starts", 0))
        has_effect = name not in requires or requires[name][0](config)
        if name not in given and has_effect and (getattr(config, name, None) or 0) > maximum:
            changes[name] = maximum
    return replace(config, **changes)


def minimum(config: Settings, name: str) -> int:
    """Return the number below which a length is not reduced."""
    if name == "eval_every_steps":
        return MIN_EVAL_STEPS
    if name == "replay_capacity":  # frame stack and return of each environment, as `Replay` requires
        n_step: int = max(getattr(config, "n_step", 1), getattr(config, "n_step_start", None) or 1)
        return config.total_envs * (config.frame_stack + n_step + 1)
    return 1


def describe_lengths(config: Settings, defaults: Mapping[str, Any]) -> str:
    """Describe the lengths that were reduced for a short run: "--learning-starts 300 instead of 5,000, ...".

    Args:
        config: config of the run.
        defaults: lengths of its preset and game.
    """
    unfitted = replace(config, **{name: defaults[name] for name in DIVISORS if name in defaults})
    fitted = fit_lengths(unfitted, ())
    changed = [
        f"{flag(field.name)} {getattr(config, field.name):,} instead of {getattr(unfitted, field.name):,}"
        for field in fields(config)
        if getattr(config, field.name) == getattr(fitted, field.name) != getattr(unfitted, field.name)
    ]
    return ", ".join(changed)
