"""The config of a run that starts, and of one that goes on: what is typed, checked against what the run began with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from zerokara.core.command_line import parse
from zerokara.core.compute import find_device
from zerokara.core.config import UserError, flag, from_dict, to_dict
from zerokara.core.run import Run

ConfigT = TypeVar("ConfigT", bound=Any)


def configure(
    config_class: type[ConfigT],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    description: str,
    *,
    kind: str,
    default_name: Callable[[ConfigT], str],
    changeable: Collection[str],
    layers: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType({}),
) -> ConfigT:
    """The config of the command line; with --resume, the run's own, which the command line must not contradict.

    Args:
        config_class: with the fields preset, name, resume and quiet, perhaps device.
        kind: the entry that runs, as in config.json.
        default_name: the run's folder where no --name is given.
        changeable: fields that may differ when a run goes on; everything else would make it another run.
        layers: as `core.config.parse`; a run that goes on has them in its config.

    Raises:
        UserError: as `core.config.parse`, a device that is not there (before the run has a folder), or a field of a
            run that cannot change in the middle.
    """
    config = parse(config_class, presets, argv, description, layers=layers)
    config = replace(config, name=config.name or default_name(config))
    if not config.resume:
        if hasattr(config, "device"):
            find_device(config.device)
        return config
    folder = Path("runs") / config.name
    saved = from_dict(config_class, Run.read_config(folder, kind)["config"], f"{folder}/config.json")
    asked = parse(config_class, presets, argv, description, saved=replace(saved, resume=True, quiet=False))
    asked = replace(asked, name=config.name)
    for field, value in to_dict(asked).items():
        began = getattr(saved, field)
        if field not in changeable and value != (list(began) if isinstance(began, tuple) else began):
            raise UserError(
                f"{folder} began with {flag(field)} {began} and cannot go on with {value}: "
                f"leave the flag out, or start a fresh run under another --name."
            )
    return asked


def stem(data: str) -> str:
    """Data, which may be a path, as part of a run's name."""
    return Path(data).stem.replace(" ", "_")
