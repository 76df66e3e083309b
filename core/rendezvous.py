"""Start of processes that train together: before they connect, they meet in a store of torch.distributed.

A process that ends with an error before that, for example because of a wrong option on one of several machines, comes
there, too, so that the others end instead of waiting for it.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from zerokara.core.config import UserError
from zerokara.core.programs import restarts_processes

REPORT_SECONDS = 60.0  # that a process with an error waits for the others


def create_store(rank: int, size: int, timeout: timedelta) -> Any:
    """Return the store in which the processes meet: that of torchrun, or one that the first process creates.

    PyTorch 2.13 keeps one store over all restarts of torchrun. Without a prefix, processes find the addresses of those
    that have ended, and cannot connect or wait forever. The number of the restart is a prefix on one machine; several
    count different numbers, so that they need torchrun without this store.

    Args:
        rank: of this process.
        size: number of processes.
        timeout: of each operation of the store.

    Raises:
        UserError: torchrun is to restart processes of several machines with one store.
    """
    environment, is_of_torchrun = os.environ, _store_is_of_torchrun()
    if is_of_torchrun and restarts_processes() and environment.get("GROUP_WORLD_SIZE") != "1":
        raise UserError(
            "torchrun --max-restarts on several machines needs the environment variable "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each of them, and --rdzv-backend c10d: set it before torchrun, or "
            "leave --max-restarts out, and after a failure type the same command with --resume."
        )
    store = dist.TCPStore(  # type: ignore[attr-defined]
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        size,
        is_master=rank == 0 and not is_of_torchrun,
        timeout=timeout,
        multi_tenant=not is_of_torchrun,
    )
    if not is_of_torchrun:
        return store
    restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"restart-{restart}", store)  # type: ignore[attr-defined]


def meet(store: Any, rank: int, size: int, *, failed: bool = False) -> bool:
    """Wait until all processes have made this call; return True if one of them has failed.

    Args:
        store: of the processes.
        rank: of this process.
        size: number of processes.
        failed: this process has failed.
    """
    if failed:
        store.set("failed", "")
    _count(store, size, "started")
    store.wait(["all started"])
    has_failed = bool(store.check(["failed"]))
    if has_failed:
        _count(store, size, "informed")
        if rank == 0 or (failed and _store_is_of_torchrun()):  # the store may end with this process
            store.wait(["all informed"])
    return has_failed


def _store_is_of_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _count(store: Any, size: int, event: str) -> None:
    """Count a process that has come to an event; the last one sets the key "all" with its name."""
    if store.add(event, 1) == size:
        store.set(f"all {event}", "")


def report_failure() -> None:
    """Tell the other processes of a run that this one has failed, if they may still wait for it to connect."""
    if dist.is_initialized():  # they notice that its connections are closed
        return
    with contextlib.suppress(KeyError, ValueError, RuntimeError, UserError):  # no torchrun, or nobody is there
        rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        meet(create_store(rank, size, timedelta(seconds=REPORT_SECONDS)), rank, size, failed=True)
