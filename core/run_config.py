"""Settings of a run: from the command line for a new run, checked against config.json for a resumed one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from zerokara.core.command_line import format_arguments, given_fields, parse
from zerokara.core.config import UserError, class_mapping, field_types, flag, from_dict, to_dict
from zerokara.core.programs import restarting_since
from zerokara.core.run_folder import read_config
from zerokara.core.run_options import HARDWARE_FIELDS
from zerokara.core.tracking import check as check_tracking

ConfigT = TypeVar("ConfigT", bound=Any)


def configure(
    config_class: type[ConfigT],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None = None,
    description: str = "",
    *,
    kind: str,
    name_fields: Sequence[str],
    layers: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType({}),
    adjust: Callable[[ConfigT, Collection[str]], ConfigT] | None = None,
) -> ConfigT:
    """Read the config of a new run from the command line or, with --resume, that of the run.

    A process that `torchrun --max-restarts` has started again resumes without --resume the run that it began.

    A config class has these class attributes, optional. CHANGEABLE: the fields that may change on resume, besides those
    of every program; a change of any other field would make it another run. CHOSEN_AT_START: the fields whose value a
    program chooses when a run starts, with the value that asks for this. On resume a flag with that value counts as not
    given.

    Args:
        config_class: has the fields preset, name, resume and quiet, optionally device.
        kind: kind of the run, as in config.json.
        name_fields: fields that make the default name of the run folder, as in `default_name`.
        layers: as in `core.command_line.parse`; the config of a resumed run already contains them.
        adjust: as in `core.command_line.parse`.

    Raises:
        UserError: as in `core.command_line.parse`; a device or tracking service that is not available, before the run
            folder is created; a flag that would change a setting of the resumed run.
    """
    config = parse(config_class, presets, argv, description, layers=layers, adjust=adjust)
    config = replace(config, name=config.name or default_name(kind, config, name_fields))
    folder = Path("runs") / config.name
    if not config.resume and _is_restarted(folder):
        config = replace(config, resume=True)
    if not config.resume:
        if getattr(config, "device", "auto") not in ("auto", "cpu"):
            from zerokara.core.compute import find_device  # imports PyTorch

            find_device(config.device)
        check_tracking(getattr(config, "track", "off"), resume=False)
        return config
    content = read_config(folder, kind)
    saved = from_dict(config_class, content["config"], f"{folder}/config.json")
    requested = parse(config_class, presets, argv, description, saved=replace(saved, resume=True, quiet=False))
    chosen = {
        name: getattr(saved, name)
        for name, automatic in class_mapping(config_class, "CHOSEN_AT_START").items()
        if getattr(requested, name) == automatic
    }
    requested = replace(requested, name=config.name, **chosen)
    # The folder may have been renamed or copied, and a run may be tracked from here on, or no longer.
    may_differ = {*changeable_fields(config_class), *HARDWARE_FIELDS, "name", "resume", "quiet"}
    for field, value in to_dict(requested).items():
        began = getattr(saved, field)
        if field not in may_differ and value != (list(began) if isinstance(began, tuple) else began):
            raise UserError(
                f"{folder} was started with {flag(field)} {began} and cannot be resumed with {value}: "
                f"leave the flag out, or start a new run with another --name."
            )
    check_tracking(getattr(requested, "track", "off"), resume=True)
    from zerokara.core.resumed_compute import options_on_resume  # imports PyTorch

    given = given_fields(config_class, argv, saved)
    return replace(requested, **options_on_resume(requested, given, content["extra"].get("compute")))


def changeable_fields(config_class: type[Any]) -> frozenset[str]:
    """Return the fields that may change on resume and that a run does not save: all CHANGEABLE, and the tracking."""
    return frozenset({"track"}.union(*(vars(owner).get("CHANGEABLE", ()) for owner in config_class.__mro__)))


def resume_command(program: str, config: Any, folder: Path) -> str:
    """Return the command that resumes a run as it is trained now.

    It has the options that were changed when this run was resumed, because config.json keeps those of its start.
    Hardware settings are left out, which a run saves, and those of the class attribute ONCE, which belong to one start.

    Args:
        program: command that starts the program.
        config: of the run, as `configure` returned it.
        folder: of the run.

    Raises:
        UserError: config.json is damaged.
    """
    config_class = type(config)
    saved = from_dict(config_class, read_config(folder)["config"], f"{folder}/config.json")
    # The length of a run that was limited in time replaces a measured one, which is not in its config.
    replaced = {"updates"} if getattr(saved, "minutes", 0) and not config.minutes else set()
    named = changeable_fields(config_class) - getattr(config_class, "ONCE", frozenset())
    options = {
        field: getattr(config, field)
        for field in field_types(config_class)
        if field in named and (field in replaced or getattr(config, field) != getattr(saved, field))
    }
    return f"{program} {shlex.join(['--name', folder.name, '--resume', *format_arguments(config_class, options)])}"


def refuse_two_lengths(config: Any, given: Collection[str], field: str) -> None:
    """Refuse --minutes together with the option that sets the length of a run.

    Args:
        config: has the field minutes.
        given: names of the fields that the command line sets.
        field: "epochs" or "updates".

    Raises:
        UserError: both are given.
    """
    if config.minutes and field in given:
        raise UserError(f"--minutes chooses the number of {field}: leave out --minutes or {flag(field)}.")


def refuse_whitening(config: ConfigT, given: Collection[str]) -> ConfigT:
    """Refuse airbench without pretrained weights, as `adjust` of a program that does not whiten its first layer.

    Args:
        config: has the fields backbone, pretrained_backbone and resume, perhaps weights.
        given: not used.

    Raises:
        UserError: the backbone is airbench, and nothing gives its weights.
    """
    if config.backbone == "airbench" and not (
        config.resume or config.pretrained_backbone or getattr(config, "weights", "")
    ):
        raise UserError(
            "The first layer of the backbone airbench would be random and frozen, because only vision.classify whitens "
            "it with the training images: give such a run by --pretrained-backbone, or choose another --backbone."
        )
    return config


def _is_restarted(folder: Path) -> bool:
    """Return True if this torchrun has created the run, and has now restarted its processes after a failure.

    A run that is older than torchrun is another one: it must not be resumed without --resume. A run is created when all
    processes have read their configs, so that no process sees it at its first start.
    """
    since = restarting_since()
    if since is None or not (folder / "config.json").exists():
        return False
    return datetime.fromisoformat(read_config(folder)["created"]) >= since


def default_name(kind: str, config: Any, fields: Sequence[str]) -> str:
    """Return the default name of a run folder: the kind and the values of fields, like classify-mnist-deep_cnn-fast-1.

    Args:
        kind: kind of the run.
        config: has the fields.
        fields: names of fields: a number, a text, or texts.
    """
    values = [getattr(config, field) for field in fields]
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return "-".join([kind, *(stem(str(part)) for part in parts)])


def stem(data: str) -> str:
    """Return the last part of a name or path without its suffix, with only characters that a run's name may have."""
    return re.sub(r"[^\w.+=-]+", "_", Path(data.replace(":", "-")).stem)
