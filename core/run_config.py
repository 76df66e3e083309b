"""Settings of a run: from the command line for a new run, checked against config.json for a resumed one."""

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
    """Read the config of a new run from the command line or, with --resume, that of the run.

    Args:
        config_class: has the fields preset, name, resume and quiet, optionally device.
        kind: kind of the run, as in config.json.
        default_name: name of the run folder if --name is not given.
        changeable: fields that may change on resume; a change of any other field would make it another run.
        layers: as in `core.command_line.parse`; the config of a resumed run already contains them.

    Raises:
        UserError: as in `core.command_line.parse`; a device that is not available, before the run folder is created;
            a flag that would change a setting of the resumed run.
    """
    config = parse(config_class, presets, argv, description, layers=layers)
    config = replace(config, name=config.name or default_name(config))
    if not config.resume:
        if hasattr(config, "device"):
            find_device(config.device)
        return config
    folder = Path("runs") / config.name
    saved = from_dict(config_class, Run.read_config(folder, kind)["config"], f"{folder}/config.json")
    requested = parse(config_class, presets, argv, description, saved=replace(saved, resume=True, quiet=False))
    requested = replace(requested, name=config.name)
    for field, value in to_dict(requested).items():
        began = getattr(saved, field)
        if field not in changeable and value != (list(began) if isinstance(began, tuple) else began):
            raise UserError(
                f"{folder} was started with {flag(field)} {began} and cannot be resumed with {value}: "
                f"leave the flag out, or start a new run with another --name."
            )
    return requested


def stem(data: str) -> str:
    """Return the last part of `data`, a name or a path, for the name of a run."""
    return Path(data).stem.replace(" ", "_")
