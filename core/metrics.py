"""Metrics as numbers, and lines of metrics.jsonl: formatting and reading."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zerokara.core.config import UserError

Scalar = float | int | np.floating[Any] | np.integer[Any] | torch.Tensor


def as_numbers(pending: list[tuple[int, dict[str, Scalar]]]) -> list[tuple[int, dict[str, float]]]:
    """Convert tensors to Python numbers, with one transfer per device."""
    by_device: dict[torch.device, list[tuple[dict[str, Any], str]]] = {}
    rows: list[tuple[int, dict[str, Any]]] = [(step, {**row}) for step, row in pending]
    for _, row in rows:
        for key, value in row.items():
            if isinstance(value, torch.Tensor):
                by_device.setdefault(value.device, []).append((row, key))
    for device, cells in by_device.items():
        wide = torch.float32 if device.type == "mps" else torch.float64  # float64 is exact for counters too
        values = torch.stack([row[key].reshape(()).to(wide) for row, key in cells]).tolist()
        for (row, key), value in zip(cells, values, strict=True):
            row[key] = value if row[key].dtype.is_floating_point else int(value)
    whole = (int, np.integer, np.bool_)
    return [(step, {key: int(v) if isinstance(v, whole) else float(v) for key, v in row.items()}) for step, row in rows]


def json_line(step: int, row: Mapping[str, float]) -> str:
    """Format one line of metrics.jsonl; NaN and Inf become null, because JSON cannot represent them."""
    finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
    return json.dumps({"step": step, **finite}, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl. An incomplete last line, left by a killed process, is ignored.

    Raises:
        UserError: there are no metrics, or the file is damaged.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    if not lines:
        raise UserError(f"{path.parent} has no metrics yet: wait until the first ones are logged, or give another run.")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"] += 0
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path} is damaged in line {number}: delete that line, or give another run.") from None
        rows.append(row)
    return rows
