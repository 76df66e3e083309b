"""Checkpoints of tensors and plain values: written whole or not at all, and checked byte for byte when read.

    save(run.path("checkpoint.pt"), {"model": model.state_dict(), "step": step, "rng": rng_state()}, "dqn")
    state = load(run.path("checkpoint.pt"), "dqn")

A file is a torch zip archive, read with weights_only=True: nothing in it can run code.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from zerokara.core.config import DISK_FULL, UserError, error_summary

FORMAT, VERSION = "zerokara", 1
HEADER = ("format", "version", "kind")


def save(path: Path, state: dict[str, Any], kind: str) -> None:
    """Write `state` to `path`, so that at any moment the file there is the old one or the new one, whole.

    Args:
        path: parent folder must exist; the temporary file lies beside it.
        state: str or int keys; tensors, numbers, strings, bytes, None, and dicts, lists, tuples of them.
        kind: what wrote it ("dqn"), asked for again by `load`.

    Raises:
        TypeError: something else is in `state`; says where.
        UserError: the disk is full or refuses; the old file is as it was.
    """
    if taken := set(HEADER) & set(state):
        raise TypeError(f"state must not have keys of the file's header: {', '.join(sorted(taken))}")
    content = _checked({"format": FORMAT, "version": VERSION, "kind": kind, **state}, "state")
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error_summary(error)}), and the checkpoint before it is untouched: "
            f"{'free some space' if error.errno in DISK_FULL else 'see to that'} and go on with --resume."
        ) from error


def load(path: Path, kind: str) -> dict[str, Any]:
    """The state that `save` wrote, tensors on the CPU; the caller moves them.

    Raises:
        UserError: the file is missing, truncated, damaged anywhere, not ours, or of another kind or version.
    """
    afresh = "put a sound copy in its place, or start afresh with another --name"
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}: check the name, or leave out --resume to start the run.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # reads everything and compares the CRC-32s
    except OSError as error:
        raise UserError(f"{path} could not be read ({error_summary(error)}): {afresh}.") from None
    except Exception:  # noqa: BLE001  (zipfile raises a dozen types on bytes that make no sense)
        damaged = "its directory"
    if damaged is not None:
        raise UserError(f"{path} is damaged, truncated or no checkpoint (first seen at {damaged}): {afresh}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (a sound zip of something else; torch too raises many types)
        raise UserError(f"{path} is no checkpoint of zerokara ({error_summary(error)}): {afresh}.") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of zerokara (it lacks the header): {afresh}.")
    if state.get("version") != VERSION:
        raise UserError(
            f"{path} has format version {state.get('version')} and this program reads {VERSION}: "
            f"go on with the version of zerokara that wrote it, or start afresh with another --name."
        )
    if state.get("kind") != kind:
        raise UserError(f"{path} was written by {state.get('kind')!r}, not {kind!r}: give the folder of a {kind} run.")
    return {key: value for key, value in state.items() if key not in HEADER}


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, make it durable, and put it in `path`'s place.

    Raises:
        OSError: it could not be written; the temporary file is gone and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is overwritten
    try:
        with _File(temporary) as file:
            try:
                write(file)
            except Exception:
                if file.error is not None:  # torch turns a failed write into a RuntimeError about its position
                    raise file.error from None
                raise
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself
        finally:
            os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's global, and torch's CPU and CUDA generators."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002  (the global one is state too)
    key = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": key, "pos": int(numpy_state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Go on from `rng_state()`. CUDA's generators are set where there are as many GPUs as there were."""
    random.setstate(state["python"])
    key = np.asarray(state["numpy"]["state"]["key"], np.uint32)
    numpy_state = {**state["numpy"], "state": {"key": key, "pos": state["numpy"]["state"]["pos"]}}
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


class _File(io.FileIO):
    """A new file that writes all it is given and remembers the error if it could not."""

    error: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        total = left.nbytes
        try:
            while left.nbytes:  # an unbuffered write may take less than it is given, first of all on a full disk
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
            raise
        return total


def _checked(value: Any, where: str) -> Any:
    """`value` with tensors as small as they look; refuses what weights_only=True would not read back."""
    kind = type(value)  # exactly: numpy.float64 is a float, and is pickled as a class
    if kind in (torch.Tensor, torch.nn.Parameter):
        tensor: torch.Tensor = value.detach()
        # A view would take its whole storage along: a batch cut from a replay, all of the replay.
        return tensor if tensor.untyped_storage().nbytes() <= tensor.nbytes else tensor.clone()
    if kind in (dict, OrderedDict):
        if wrong := [key for key in value if type(key) not in (str, int)]:
            raise TypeError(f"{where} has the key {wrong[0]!r}; checkpoints take str and int keys")
        return {key: _checked(item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind in (list, tuple):
        return kind(_checked(item, f"{where}[{index}]") for index, item in enumerate(value))
    if kind in (int, float, bool, str, bytes, types.NoneType):
        return value
    raise TypeError(f"{where} is a {kind.__module__}.{kind.__qualname__}; checkpoints take tensors and plain values")
