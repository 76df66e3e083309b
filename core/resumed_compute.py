"""Hardware settings of a resumed run: those of its start, where this machine has them and the command line keeps them.

The same settings give the same results bit for bit, so they change only where they must or where the user asks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from zerokara.core.compute import Compute, compiler_missing, find_device
from zerokara.core.config import UserError, flag, format_count, from_dict
from zerokara.core.distributed import World
from zerokara.core.machine import has_bfloat16, usable_cores
from zerokara.core.run_folder import read_config
from zerokara.core.run_options import HARDWARE_FIELDS


def options_on_resume(config: Any, given: Collection[str], saved: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return values for the hardware fields of a resumed config that are not on the command line.

    They are those with which the run was last trained, if the config says otherwise or if another of them changes, and
    "auto" where this machine does not have them.

    Args:
        config: that of the run, with the changes of the command line.
        given: names of the fields on the command line.
        saved: the `Compute` of the run as in config.json; None: it was stopped before its hardware was chosen.

    Raises:
        UserError: a device on the command line is not available.
    """
    if not hasattr(config, "device"):
        return {}
    if "device" in given:
        find_device(config.device)
    if saved is None:
        return {} if is_available(config.device) else {"device": "auto"}
    last = Compute(**saved)
    missing = obstacles(last, config, processes=1, processes_before=1)
    # On another device, settings that are "auto" are chosen anew; otherwise they stay when another setting changes.
    moves = "device" in missing or ("device" in given and find_device(config.device) != last.device)
    changes = not moves and any(getattr(config, f) != option(last, f) for f in HARDWARE_FIELDS if f in given)
    result: dict[str, Any] = {}
    for field in {"precision", "compile", "threads"} - set(given):
        asked = getattr(config, field, None)
        if asked is None:
            continue
        is_auto = asked in ("auto", 0)
        if field in missing:
            result |= {} if is_auto else {field: "auto"}
        elif asked != option(last, field) and (not is_auto or (changes and field != "threads")):
            result[field] = option(last, field)
    if "device" in missing and not is_available(config.device):
        result["device"] = "auto"
    if moves and "compile" not in given and getattr(config, "compile", "") == "on":
        device = find_device(result.get("device", config.device))
        result |= {"compile": "auto"} if compiler_missing(torch.device(device)) else {}
    elif not moves and (not is_available(config.device) or find_device(config.device) != last.device):
        # "auto" may be another device here, and the process group of torchrun is made for the device of the config.
        result["device"] = last.device
    return result


def adapt_compute(
    saved: dict[str, Any],
    local_size: int | None,
    config: Any,
    folder: Path,
    world: World,
    choose: Callable[[], Compute],
) -> tuple[dict[str, Any], str]:
    """Adapt the hardware settings in config.json to this machine and the command line, in every process of a run.

    Args:
        saved: the `Compute` as in config.json.
        local_size: processes per machine for which it was chosen; None: unknown, in runs of earlier releases.
        config: config of the resumed run.
        folder: folder of the run.
        world: processes that train together; every process must call this function.
        choose: as for `compute_on_resume`; called in the main process.

    Returns:
        settings to use, and a message about the change; without a change it is empty.
    """
    compute, message = Compute(**saved), ""
    if world.is_main:
        started = from_dict(type(config), read_config(folder)["config"], str(folder / "config.json"))
        processes = world.local_size
        compute, reasons = compute_on_resume(compute, config, started, processes, choose, local_size or processes)
        if reasons:
            message = (
                f"hardware settings changed ({'; '.join(reasons)}): from here on, the results are not bit-identical to "
                f"those of an uninterrupted run."
            )
    adapted, message = world.broadcast_value((compute.to_dict(), message))
    return adapted, message


def compute_on_resume(
    saved: Compute,
    config: Any,
    started: Any,
    processes: int,
    choose: Callable[[], Compute],
    processes_before: int,
) -> tuple[Compute, list[str]]:
    """Return the hardware settings of a resumed run, and the reasons if they are not `saved`.

    Args:
        saved: settings with which the run was last trained.
        config: config of the resumed run.
        started: config with which the run was started.
        processes: number of processes on this machine, among which the cores are divided.
        choose: chooses settings for `config`; called if it is not enough to switch compilation off or set the threads.
        processes_before: those among which the cores were divided when `saved` was chosen.
    """
    missing = obstacles(saved, config, processes, processes_before)
    reasons = dict(missing)
    for field in HARDWARE_FIELDS:
        asked = getattr(config, field, None)
        if field in missing or asked is None:
            continue
        was_asked = asked != getattr(started, field)
        if asked != option(saved, field) and (was_asked or asked not in ("auto", 0)):
            reasons[field] = f"{flag(field)} {asked} was given"
    if not reasons:
        return saved, []
    stays_compiled = "compile" in reasons and "compile" not in missing and config.compile != "off"
    if stays_compiled or not {"device", "precision"}.isdisjoint(reasons):
        new = choose()
    else:
        threads = getattr(config, "threads", 0) or _cores(processes)
        new = dataclasses.replace(
            saved,
            compile=saved.compile and "compile" not in reasons,
            threads=threads if "threads" in reasons else saved.threads,
        )
        new = dataclasses.replace(new, reason=f"{new.settings} on {format_count(new.threads, 'thread')}")
    same = dataclasses.replace(new, reason=saved.reason) == saved
    return (saved, []) if same else (new, list(reasons.values()))


def obstacles(saved: Compute, config: Any, processes: int, processes_before: int) -> dict[str, str]:
    """Return the fields of saved settings that do not fit this machine or the number of processes, with the reason.

    Precision and threads count only if they were chosen automatically: both can be used anywhere, but slowly.
    """
    if not is_available(saved.device):
        return {"device": f"{saved.device} is not available here"}
    found = {}
    if (
        saved.precision == "bfloat16"
        and getattr(config, "precision", "") == "auto"
        and not has_bfloat16(saved.torch_device)
    ):
        found["precision"] = "the processor only emulates bfloat16"
    if saved.compile and (reason := compiler_missing(saved.torch_device)):
        found["compile"] = reason
    cores = _cores(processes)
    is_other_number = processes != processes_before and saved.threads != cores
    if getattr(config, "threads", 1) == 0 and (saved.threads > cores or is_other_number):
        used = format_count(saved.threads, "thread")
        found["threads"] = f"each process had {used}, and has {format_count(cores, 'core')} now"
    return found


def option(compute: Compute, field: str) -> Any:
    """Return the value of a hardware field of a config that requests the setting in `compute`."""
    value = getattr(compute, field)
    return ("on" if value else "off") if field == "compile" else value


def is_available(device: str) -> bool:
    """Return True if this machine has the device."""
    try:
        find_device(device)
    except UserError:
        return False
    return True


def _cores(processes: int) -> int:
    return max(1, usable_cores() // processes)
