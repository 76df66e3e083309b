"""Versions, git commit and machine of a run, as plain values for config.json."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import torch


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that influence results; None for a package not installed."""
    packages = {
        "zerokara": "zerokara",
        "torch": "torch",
        "numpy": "numpy",
        "gymnasium": "gymnasium",
        "ale_py": "ale-py",
        "opencv": "opencv-python",
    }
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for key, package in packages.items():
        try:
            versions[key] = version(package)
        except PackageNotFoundError:
            versions[key] = None
    return versions


def git_commit() -> str | None:
    """Return the git commit of the checkout with this file, with "-dirty" if it has changes; None if not a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package may be inside the checkout of another project
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def describe_machine() -> dict[str, Any]:
    """Return system, CPU model and class, logical cores, cores usable by this process, memory in bytes, GPUs."""
    import torch

    return {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "processor": processor_class(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def processor_class() -> str:
    """Return the class of the processor: "Intel Xeon, AMX"."""
    import torch

    model = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@.*|\d+-Core", "", _cpu_model())
    capabilities = torch.cpu.get_capabilities()
    units = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "BF16", "avx512_f": "AVX512", "avx2": "AVX2"}
    unit = next((name for key, name in units.items() if capabilities.get(key)), "no vector unit known")
    return f"{' '.join(model.split())}, {unit}"


def has_bfloat16(device: torch.device) -> bool:
    """Return False if the device has no instructions for bfloat16: emulating them takes many times as long as float32.

    True for a device that cannot be asked (MPS).
    """
    import torch

    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= 8
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    # amx and avx512: Intel and AMD; avx10_2: their successor; bf16 and sve_bf16: ARM.
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16"))


def usable_cores() -> int:
    """Return the number of cores that this process may use; on macOS, which does not report it, all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
