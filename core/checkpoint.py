"""Checkpoints of tensors and plain values, written atomically and verified by checksums when read.

    save(run.path("checkpoint.pt"), {"model": model.state_dict(), "step": step, "rng": rng_state()}, "dqn")
    state = load(run.path("checkpoint.pt"), "dqn")

A training program resumes through `Run.restore` (core/run.py), which calls `load`.

A file is a zip archive of torch.save and is read with weights_only=True, so that it cannot execute code.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import types
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from zerokara.core.config import DISK_FULL, UserError, error_summary

FORMAT, VERSION = "zerokara", 1
HEADER = ("format", "version", "kind")


def save(path: Path, state: dict[str, Any], kind: str) -> None:
    """Write `state` to `path` atomically: at any moment the file is the complete old one or the complete new one.

    Args:
        path: the parent folder must exist; a temporary file is written beside it.
        state: tensors, numbers, strings, bytes, None, and dicts (with str or int keys), lists and tuples of them.
        kind: name of the program that writes ("dqn"); `load` expects the same.

    Raises:
        TypeError: `state` holds something else; the message names the key.
        UserError: the disk is full or cannot be written; the old file is unchanged.
    """
    if reserved := set(HEADER) & set(state):
        raise TypeError(f"state must not have keys of the file's header: {', '.join(sorted(reserved))}")
    content = _checked({"format": FORMAT, "version": VERSION, "kind": kind, **state}, "state")
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error_summary(error)}); the previous checkpoint is unchanged: "
            f"{'free some space' if error.errno in DISK_FULL else 'make it writable'} and continue with --resume."
        ) from error


def load(path: Path, kind: str, *, lazy: bool = False) -> dict[str, Any]:
    """Read a state written by `save`; its tensors are on the CPU.

    Args:
        path: file written by `save`.
        kind: name of the program that wrote it.
        lazy: read a tensor only when it is used, and do not verify checksums.

    Raises:
        UserError: the file is missing, truncated, damaged, not of zerokara, or of another kind or version.
    """
    remedy = "replace it with an intact copy, or start a new run with another --name"
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}: check the name, or leave out --resume to start a new run.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = None if lazy else archive.testzip()  # reads the whole file and compares the CRC-32 checksums
    except OSError as error:
        raise UserError(f"{path} could not be read ({error_summary(error)}): {remedy}.") from None
    except Exception:  # noqa: BLE001  (zipfile raises many exception types on invalid bytes)
        damaged = "the zip directory"
    if damaged is not None:
        raise UserError(f"{path} is damaged, truncated or no checkpoint (first error in {damaged}): {remedy}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except Exception as error:  # noqa: BLE001  (a valid zip with other content; torch raises many exception types)
        raise UserError(f"{path} is no checkpoint of zerokara ({error_summary(error)}): {remedy}.") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of zerokara (it lacks the header): {remedy}.")
    if state.get("version") != VERSION:
        raise UserError(
            f"{path} has format version {state.get('version')} and this program reads {VERSION}: "
            f"resume it with the version of zerokara that wrote it, or start a new run with another --name."
        )
    if state.get("kind") != kind:
        raise UserError(f"{path} was written by {state.get('kind')!r}, not {kind!r}: name the folder of a {kind} run.")
    return {key: value for key, value in state.items() if key not in HEADER}


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file beside `path` with `write`, flush it to disk, and rename it to `path`.

    Raises:
        OSError: the file could not be written; the temporary file is removed and `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # always this name: the file of a killed process is overwritten
    try:
        with _File(temporary) as file:
            try:
                write(file)
            except Exception:
                if file.error is not None:  # torch replaces the error by a RuntimeError about the file position
                    raise file.error from None
                raise
            os.fsync(file.fileno())
        temporary.replace(path)
        if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # makes the rename durable
            finally:
                os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_content(path: Path, content: bytes) -> None:
    """Write bytes by `write_atomically`.

    Raises:
        UserError: the file could not be written; an existing one is unchanged.
    """
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        unchanged = "; the existing file is unchanged" * path.exists()
        raise UserError(
            f"{path} could not be written ({error_summary(error)}){unchanged}. Solve the problem, then continue the "
            f"run with --resume."
        ) from error


def later_seed(seed: int, step: int) -> int:
    """Return the seed of random numbers that begin anew at a step of a run, because their state cannot be restored.

    At step 0 it is the seed itself.
    """
    return seed + 15_485_863 * step


DRAWN_ANEW = "random numbers are drawn anew, so that the results differ from those of an uninterrupted run"


@contextlib.contextmanager
def drawn_anew(generator: torch.Generator, step: Callable[[], int]) -> Iterator[None]:
    """Draw random numbers anew after the block, which restores the state of another process.

    Args:
        generator: that of this process, which has its own seed before the block.
        step: returns the step that was restored.
    """
    seed = generator.initial_seed()
    yield
    generator.manual_seed(later_seed(seed, step()))


def rng_state() -> dict[str, Any]:
    """Return the states of the random generators of Python, NumPy (the global one) and torch (CPU and CUDA)."""
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002  (the global generator is part of the state)
    key = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": key, "pos": int(numpy_state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the generators from `rng_state()`. CUDA generators are restored if the number of GPUs is the same."""
    random.setstate(state["python"])
    key = np.asarray(state["numpy"]["state"]["key"], np.uint32)
    numpy_state = {**state["numpy"], "state": {"key": key, "pos": state["numpy"]["state"]["pos"]}}
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def restore_generator(generator: torch.Generator, state: torch.Tensor) -> None:
    """Restore a random generator from its `get_state()`, or from that of a generator on another kind of device.

    The sequence of another kind of device cannot be continued: the generator is seeded with a number made of the state.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        generator.manual_seed(zlib.crc32(bytes(state.tolist())))


class _File(io.FileIO):
    """New unbuffered file whose `write` writes all bytes, and which keeps the error of a failed write."""

    error: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")

    def write(self, data: Any) -> int:
        remaining = memoryview(data).cast("B")
        total = remaining.nbytes
        try:
            while remaining.nbytes:  # an unbuffered write may be partial, for example on a nearly full disk
                remaining = remaining[super().write(remaining) :]
        except OSError as error:
            self.error = error
            raise
        return total


def _checked(value: Any, where: str) -> Any:
    """Return `value` with views of tensors copied; refuse what weights_only=True cannot read.

    Raises:
        TypeError: a value is neither a tensor nor plain; `where` is its path in the state.
    """
    kind = type(value)  # not isinstance: numpy.float64 is a subclass of float, but is pickled as a class of NumPy
    if kind in (torch.Tensor, torch.nn.Parameter):
        tensor: torch.Tensor = value.detach()
        # torch.save writes the whole storage of a view: for a batch sliced from the replay buffer, the whole buffer.
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
