"""Folder of a run: its lock, and its config.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from zerokara.core.config import UserError, error_summary, flag, suggest, to_saved
from zerokara.core.file_lock import lock as lock_file
from zerokara.core.machine import describe_machine, describe_versions, git_commit
from zerokara.core.programs import command
from zerokara.core.run_options import HARDWARE_FIELDS

MAX_LISTED = 12  # runs in a message
MAX_NAME_BYTES = 255  # of a folder on common file systems
READING_RULES = 2  # version of the rules of reading data sets, see `core.data.reading_rules`
EXTRA_MAPPINGS = ("compute", "environment", "backbone", "normalization")  # parts of "extra" that are mappings
# Files that a run leaves behind which was killed before config.json was written. The folder is free then.
UNFINISHED = frozenset({"lock", ".config.json.tmp"})
OPTIONS_OF_A_MACHINE = ("device", "threads", "data_dir", "quiet")  # may differ between the machines of a run


def check_name(name: str) -> None:
    """Check that the name of a run can be the name of a folder.

    Raises:
        UserError: it cannot.
    """
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise UserError(f"--name cannot be {name!r}: use only letters, digits and . _ + = - for the folder's name.")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(f"--name has {len(name.encode())} bytes: use at most {MAX_NAME_BYTES}.")


def check_same_options(configs: Sequence[Mapping[str, Any]], resumes: Sequence[bool]) -> None:
    """Check that all processes of a run have the same options; some may depend on the machine.

    Args:
        configs: options of a process by name, by rank.
        resumes: True if a process resumes the run, by rank.

    Raises:
        UserError: they do not. They would train different networks, or wait for each other forever.
    """
    if any(resumes) and not all(resumes):
        raise UserError(
            f"Some processes resume this run (such as process {resumes.index(True)}) and others start a new one (such "
            f"as process {resumes.index(False)}): give --resume on every machine, or on none. If torchrun has "
            f"restarted the processes of some machines only, give it on every machine."
        )
    # A resumed run keeps the hardware settings that a machine has.
    own = {*OPTIONS_OF_A_MACHINE, *(HARDWARE_FIELDS if all(resumes) else ())}
    names = sorted((name for name in configs[0] if name not in own), key=lambda name: name == "name")
    for name in names:  # the name of the run last, because the other options make its default
        values = [config.get(name) for config in configs]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise UserError(
                f"The processes of this run have different options: {flag(name)} is {values[0]} in process 0 and "
                f"{values[other]} in process {other}. Type the same command on every machine."
            )


def lock_folder(folder: Path, *, resume: bool, remedy: str) -> IO[str]:
    """Create the folder if it does not exist, and lock it. Returns the locked file; closing it unlocks the folder.

    Args:
        folder: folder of the run.
        resume: the folder may hold a run.
        remedy: what to do if it holds a run and must not, for the message.

    Raises:
        UserError: the folder holds a run, is locked by another process, or cannot be created or written.
    """
    taken = UserError(f"{folder} already holds a run: {remedy}, or choose another --name.")
    path = folder / "lock"
    try:
        if not resume and folder.exists() and not path.exists() and (folder.is_file() or _is_used(folder)):
            raise taken
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        where = error.filename or folder
        raise UserError(
            f"{folder} cannot be used as the folder of a run ({where}: {error_summary(error)}): remove what is in the "
            f"way, allow writing there, or choose another --name."
        ) from None
    if hasattr(os, "register_at_fork"):  # not on Windows, where processes are not forked
        # A forked child inherits the lock and would hold it when this process dies; closing its copy does not unlock.
        os.register_at_fork(after_in_child=lock.close)
    if not lock_file(lock):
        lock.close()
        raise UserError(
            f"{folder} is being written by another process: wait for it, stop it, or choose another --name."
        )
    if not resume and _is_used(folder):
        lock.close()
        raise taken
    return lock


def _is_used(folder: Path) -> bool:
    return any(path.name not in UNFINISHED for path in folder.iterdir())


def first_config(config: Any, kind: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json of a new run: its settings, and on what it runs."""
    return {
        "kind": kind,
        "config": to_saved(config),
        "extra": dict(extra),
        "reading_rules": READING_RULES,
        "versions": describe_versions(),
        "git_commit": git_commit(),
        "machine": describe_machine(),
        "command": command(),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def existing_runs(folder: Path) -> list[Path]:
    """Return the folders of the runs in a folder."""
    return sorted(config.parent for config in folder.glob("*/config.json"))


def format_existing(runs: Sequence[object]) -> str:
    """Return the end of a message that lists runs; "" if there are none, or too many for a message."""
    return f"; existing runs: {', '.join(map(str, runs))}" if 0 < len(runs) <= MAX_LISTED else ""


def read_config(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read config.json of a run folder: a dict with the keys kind, config, extra, versions, machine, ...

    Raises:
        UserError: the run does not exist, the file is damaged or not of zerokara, or (with `kind`) the run is of
            another kind.
    """
    path = folder / "config.json"
    if not path.is_file():
        runs = [run.name for run in existing_runs(folder.parent)]
        raise UserError(
            f"There is no run in {folder}{suggest(folder.name, runs)}{format_existing(runs)}; name an existing run."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged or cannot be read ({error_summary(error)}): name another run, or start a new one."
        ) from None
    required = {"kind": str, "config": dict, "extra": dict}
    if not isinstance(content, dict) or any(not isinstance(content.get(key), t) for key, t in required.items()):
        raise UserError(
            f"{path} was not written by zerokara (it needs the keys {', '.join(required)}): name the folder of a run."
        )
    if wrong := [key for key in EXTRA_MAPPINGS if not isinstance(content["extra"].get(key, {}), dict)]:
        raise UserError(
            f"{path} is damaged (its extra {wrong[0]} is no mapping): name another run, or start a new one."
        )
    if kind is not None and content["kind"] != kind:
        raise UserError(f"{folder} holds a run of {content['kind']}, not of {kind}: name the folder of a {kind} run.")
    return content
