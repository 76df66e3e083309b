"""Settings that new trials keep from the earlier ones, where this version of zerokara would give others.

Presets and defaults may change between two versions. The trials of a study must be comparable, so the command line of
each earlier trial is read again: where its config is another one now, new trials keep the value of the earlier trial.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from zerokara.agents.configs.common import HARDWARE_FIELDS, OUTPUT_FIELDS, Settings
from zerokara.agents.configs.defaults import format_changes
from zerokara.agents.sweeping.search_space import FIXED, AgentProgram
from zerokara.core.command_line import format_arguments
from zerokara.core.config import UserError, class_mapping, from_dict
from zerokara.core.run_folder import read_config

SETTINGS = "settings"  # attribute of a trial: config of its runs
# Fields that may differ between comparable trials.
_NOT_COMPARED = OUTPUT_FIELDS | HARDWARE_FIELDS | {"seed"}

Kept = Mapping[tuple[str, str, Any], Any]
"""Preset, name of a field, and the value that this version gives to it -> the value of the earlier trials."""


def settings_of(trial: FrozenTrial, run: Path, agent: AgentProgram) -> Settings | None:
    """Return the config with which a trial was started; None if it has no run.

    Args:
        run: folder of its first run, from which the config of a trial of an older version is read.

    Raises:
        UserError: the trial was started by a newer version.
    """
    saved = trial.user_attrs.get(SETTINGS)
    if saved is None:
        try:
            saved = read_config(run)["config"]
        except UserError:  # there is no run, or its folder is damaged: the other trials have the same settings
            return None
    config: Settings = from_dict(agent.config_class, saved, str(run.parent.parent))
    return config


def find_kept(
    agent: AgentProgram, earlier: Iterable[tuple[Settings, Sequence[str]]], searched: Collection[str]
) -> Kept:
    """Find the settings that new trials must keep.

    Args:
        agent: program that trains.
        earlier: config of each earlier trial and its command line, the first trial first.
        searched: names of the fields that are searched.
    """
    kept: dict[tuple[str, str, Any], Any] = {}
    seen: list[dict[str, Any]] = []  # reading a command line takes milliseconds, and there may be thousands of trials
    compared = [field.name for field in fields(agent.config_class) if field.name not in {*_NOT_COMPARED, *searched}]
    for before, arguments in earlier:
        shared = {name: getattr(before, name) for name in (*compared, "preset")}
        if shared in seen:
            continue
        seen.append(shared)
        try:
            now = agent.read_config(arguments)
        except UserError:  # this version refuses these settings
            continue
        for name in compared:
            if getattr(before, name) != getattr(now, name):
                kept.setdefault((now.preset, name, getattr(now, name)), getattr(before, name))
    return kept


def keep_in_base(kept: Kept, base: Settings) -> Settings:
    """Return the config `base` with the values of those fields that are equal in all trials, of whatever preset."""
    values = {name: before for (_, name, now), before in kept.items() if name in FIXED and getattr(base, name) == now}
    return replace(base, **values)


def kept_arguments(kept: Kept, agent: AgentProgram, arguments: Sequence[str]) -> list[str]:
    """Return the flags that a new trial needs besides its own ones.

    Args:
        arguments: command line of the trial without them.

    Raises:
        UserError: the settings are incompatible.
    """
    if not kept:
        return []
    config = agent.read_config(arguments)
    keys = {field.name: (config.preset, field.name, getattr(config, field.name)) for field in fields(config)}
    values = {name: kept[key] for name, key in keys.items() if key in kept}
    requires, config = class_mapping(agent.config_class, "REQUIRES"), replace(config, **values)
    # The flag of a field that has no effect would be refused.
    effective = {n: value for n, value in values.items() if n not in requires or requires[n][0](config)}
    return format_arguments(agent.config_class, effective)


def describe_kept(kept: Kept, *, name_presets: bool) -> str:
    """Describe the settings that new trials keep: "--gamma 0.9 instead of 0.99"; empty if there are none.

    Args:
        name_presets: the presets are different.
    """
    texts = [
        format_changes({name: (before, now)}) + f" (preset {preset})" * name_presets
        for (preset, name, now), before in kept.items()
    ]
    return ", ".join(texts)
