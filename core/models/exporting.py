"""Check of an exported network against the original one, and the way its files get to their place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError, error_summary

Function = Callable[..., np.ndarray]


def compare(
    exported: Function, original: Function, inputs: Tensor | Sequence[Tensor], max_difference: float, quantity: str
) -> tuple[float, int]:
    """Compare two networks on the same inputs, in one batch and a single one.

    Args:
        exported: function from inputs (N, ...) to outputs (N, K) or (N, K, ...).
        original: likewise.
        inputs: (N, ...), or several of these.
        max_difference: largest allowed difference of an output.
        quantity: what an output is, for the message, such as "probability".

    Returns:
        The largest difference of an output, and for how many inputs (or places of maps) the largest of the K outputs is
        another one.

    Raises:
        UserError: an output differs by more than `max_difference`.
    """
    largest, changed = 0.0, 0
    every = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for part in (every, tuple(tensor[:1] for tensor in every)):
        expected, actual = original(*part), exported(*part)
        largest = float(np.maximum(largest, np.abs(expected - actual).max()))  # np.maximum propagates NaN, max does not
        changed = max(changed, int((expected.argmax(1) != actual.argmax(1)).sum()))
    if not largest <= max_difference:
        raise UserError(
            f"A {quantity} of the exported network differs by {largest:.2g} from the original, more than the allowed "
            f"{max_difference:.2g}: nothing was written; please report it with the config.json of the run."
        )
    return largest, changed


def put_in_place(written: Path, path: Path) -> None:
    """Copy a checked file to its place, atomically.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written.open("rb") as content:
            write_atomically(path, lambda file: shutil.copyfileobj(content, file))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error_summary(error)}): name another folder with --out.") from None
