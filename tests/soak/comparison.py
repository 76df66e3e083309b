"""Comparison of two finished run folders, bit for bit: checkpoints, weights, metrics, replay buffer, pictures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.programs import metrics
from zerokara.core import checkpoint

# Of a checkpoint: hours of training, and the length of metrics.jsonl, which has lines with speeds.
CLOCKS = frozenset({"hours", "run"})


def differences(expected: Path, actual: Path) -> list[str]:
    """Return descriptions of the differences between two run folders; values that depend on the clock are ignored."""
    found = []
    ours, theirs = (compared_files(folder) for folder in (expected, actual))
    found += [f"{name} is only in {folder}" for folder, name in _unpaired(expected, ours, actual, theirs)]
    kind = json.loads((expected / "config.json").read_text(encoding="utf-8"))["kind"]
    for name in sorted(ours & theirs):
        one_path, other_path = expected / name, actual / name
        if name == "metrics.jsonl":
            one, other = (metrics(folder) for folder in (expected, actual))
            if one != other:
                pairs = itertools.zip_longest(one, other)
                line = next(number for number, (a, b) in enumerate(pairs, 1) if a != b)
                found.append(f"{name}: {len(one)} and {len(other)} lines, the first difference is in line {line}")
        elif name.endswith(".pt"):
            found += state_differences(checkpoint.load(one_path, kind), checkpoint.load(other_path, kind), name)
        elif name.endswith(".safetensors"):
            found += state_differences(load_file(one_path), load_file(other_path), name)
        elif one_path.read_bytes() != other_path.read_bytes():
            found.append(f"{name} has other content")
    return found


def compared_files(folder: Path) -> set[str]:
    """Return the files of a run folder that must be equal.

    Those left out depend on the clock or on the folder: settings, event files, results with hours, curves of speeds.
    """
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {
        name
        for name in names
        if name not in ("config.json", "lock", "result.json")
        and not name.startswith(("events.", "media/curves"))
        and not name.endswith(".mp4")
    }


def state_differences(one: Any, other: Any, where: str) -> list[str]:
    """Return the addresses in a nested state at which two states differ, apart from the clocks."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where} has other keys: {sorted(map(str, one.keys() ^ other.keys()))}"]
        parts = [(one[key], other[key], f"{where}/{key}") for key in one if key not in CLOCKS]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        parts = [(a, b, f"{where}/{index}") for index, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [f"{where} has other values"]
    else:
        return [] if one == other else [f"{where} is {other!r} instead of {one!r}"[:200]]
    return [difference for a, b, place in parts for difference in state_differences(a, b, place)]


def _unpaired(expected: Path, ours: set[str], actual: Path, theirs: set[str]) -> list[tuple[Path, str]]:
    return [(expected, name) for name in sorted(ours - theirs)] + [(actual, name) for name in sorted(theirs - ours)]
