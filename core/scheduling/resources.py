"""Resources of this machine that the runs of a pool share: devices, memory, cores."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from zerokara.core.compute import Compute


def available_devices(device: str) -> list[str]:
    """Return the devices for the option --device: with auto every GPU, if there is one; else the device itself.

    Raises:
        UserError: the device does not exist.
    """
    chosen = Compute.choose(device=device, precision="float32", compile="off", threads=1, train_step=None).device
    if device != "auto" or not chosen.startswith("cuda"):
        return [device]
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def free_memory(devices: Sequence[str]) -> dict[str, int]:
    """Return the free bytes of "main" memory and of those devices that are GPUs."""
    free = {name: torch.cuda.mem_get_info(name)[0] for name in devices if name.startswith("cuda")}
    return {"main": psutil.virtual_memory().available, **free}


def divide_cores(cores: int, runs: int, jobs: int, threads: int) -> tuple[int, int]:
    """Return the number of runs at the same time, and the threads of each run.

    By default as many runs as cores, with one thread each: this is the most efficient division, because threads of one
    run wait for each other. If there are fewer runs than cores, each run gets several threads.

    Args:
        jobs: value of --jobs; 0: choose.
        threads: value of --threads; 0: choose.
    """
    jobs = min(runs, jobs or max(1, cores // max(1, threads)))
    return jobs, threads or max(1, cores // jobs)
