"""Files of a replay buffer: their sizes and allocation, and copies of ring buffers between processes.

Shapes: S slots of a ring buffer that are copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
import torch

from zerokara.core.config import UserError

Layout = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]  # name of an array -> its shape and type


def array_layout(total: int, frame_shape: tuple[int, int, int], frame_dtype: type[np.generic]) -> Layout:
    """Return the shapes and types of the arrays of `total` slots with frames (F, H, W).

    There is one additional frame, never written: the zeros before the start of an episode.
    """
    return {
        "frame": ((total + 1, *frame_shape), frame_dtype),
        "action": ((total,), np.int32),
        "reward": ((total,), np.float32),
        "flag": ((total,), np.uint8),
    }


def allocate_arrays(layout: Layout) -> dict[str, np.ndarray]:
    """Allocate arrays of zeros in memory."""
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}


def open_files(folder: Path, layout: Layout, lost: list[str]) -> dict[str, np.ndarray]:
    """Open memory-mapped files, existing ones with their content.

    All blocks of new files are allocated at once, so that no later write can fail.

    Args:
        folder: folder of the files.
        layout: see `array_layout`.
        lost: gets the names of the files that did not exist or were too short.

    Raises:
        UserError: an existing file has the size of another buffer, or the disk is full; new files are then deleted
            again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: _num_bytes(*of_array) for name, of_array in layout.items()}
    paths = {name: folder / f"{name}.bin" for name in layout}
    new = [name for name, path in paths.items() if not path.exists()]
    lost.extend(paths[name].name for name in new)
    there = {name: paths[name].stat().st_size for name in sizes if name not in new}
    different = [name for name, size in there.items() if size != sizes[name]]
    for name in different:
        # A copy that was interrupted leaves a short file; other settings change the size of all of them.
        if len(different) == len(there) or there[name] > sizes[name]:
            raise UserError(
                f"{paths[name]} has {there[name]:,} bytes, but this configuration needs {sizes[name]:,}: resume with "
                f"the settings with which the run was started, or choose another --name."
            )
        lost.append(paths[name].name)
    try:
        for name, path in paths.items():
            with path.open("ab") as file:
                allocate(file, sizes[name])
    except OSError as error:
        for name in new:
            paths[name].unlink(missing_ok=True)
        raise UserError(
            f"The files of the replay buffer, {sum(sizes.values()) / 1e9:.2f} GB, could not be created in {folder} "
            f"({error.strerror}): free some disk space, lower --replay-capacity, or pass --no-save-replay."
        ) from error
    return {name: np.memmap(paths[name], dtype, "r+", shape=shape) for name, (shape, dtype) in layout.items()}


def _num_bytes(shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def allocate(file: BinaryIO, size: int) -> None:
    """Extend a file to `size` bytes with all blocks allocated on disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    piece = bytes(1 << 20)  # macOS has no posix_fallocate: write zeros
    file.writelines(piece[: size - start] for start in range(file.seek(0, os.SEEK_END), size, len(piece)))


def check_size_fits(size: int, device: torch.device, folder: Path | None) -> None:
    """Check that memory and disk are large enough, before anything is allocated.

    Raises:
        UserError: the message names the size needed and the size available.
    """
    room = {}
    if device.type == "cuda":
        room["cuda"] = torch.cuda.mem_get_info(device)[0]
    if device.type != "cuda" or folder is None:
        room["main"] = (
            psutil.virtual_memory().available
        )  # a buffer on another device has a copy in main memory or in files
    for name, free in room.items():
        if size > free:
            raise UserError(
                f"The replay buffer needs {size / 1e9:.2f} GB of {name} memory, and {free / 1e9:.2f} GB are free: "
                f"lower --replay-capacity."
            )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        there = sum(file.stat().st_size for file in folder.glob("*.bin"))
        free = shutil.disk_usage(folder).free + there
        if size > free:
            raise UserError(
                f"The replay buffer needs {size / 1e9:.2f} GB of disk space in {folder}, and {free / 1e9:.2f} GB are "
                f"free: lower --replay-capacity, free some disk space, or pass --no-save-replay to store it in memory "
                f"only."
            )


@dataclass(frozen=True)
class RingCopy:
    """Ring buffer to be copied from the files of a process that saved, and where it belongs in those of another."""

    ring: int  # index of the environment in this process
    row_S: np.ndarray  # rows of this process
    arrays: Mapping[str, np.ndarray]  # of the process that saved
    saved_row_S: np.ndarray  # rows of that process
    state: Mapping[str, Any]  # of its replay buffer
    saved_ring: int  # index of the environment in that process

    def write(self, arrays: Mapping[str, np.ndarray], rows: int = 4096) -> None:
        """Copy the slots into the arrays of this process, not more than `rows` at once."""
        for start in range(0, len(self.row_S), rows):
            part = slice(start, start + rows)
            for name, array in arrays.items():
                array[self.row_S[part]] = self.arrays[name][self.saved_row_S[part]]


def ring_copies(
    states: Mapping[int, Mapping[str, Any]],
    folder: Path | None,
    rank: int,
    *,
    num_envs: int,
    window: int,
    slots: int,
    frame_shape: tuple[int, int, int],
    frame_dtype: type[np.generic],
    print_line: Callable[[str], object],
) -> Iterator[RingCopy]:
    """Yield the ring buffers that a process takes over, those of its environments, if their files are there.

    Environments are numbered over all processes: each process has consecutive ones.

    Args:
        states: `Replay.state_dict` of the processes that saved, by rank.
        folder: folder of this process's files, beside those of the others; None: nothing was saved.
        rank: rank of this process.
        num_envs: ring buffers of this process.
        window: slots per ring buffer that are sampled.
        slots: slots per ring buffer of this process. Those that saved can have more or fewer, by rounding.
        frame_shape: (F, H, W).
        frame_dtype: type of the frames.
        print_line: called with a line for each process whose files are lost.
    """
    if folder is None:
        return
    opened = {}
    for saved_rank, state in states.items():
        saved_folder = folder.with_name(state.get("folder") or f"replay-{saved_rank}")
        layout = array_layout(len(state["head"]) * state["slots"], frame_shape, frame_dtype)
        opened[saved_rank] = _open_saved(saved_folder, layout)
        if opened[saved_rank] is None:
            print_line(
                f"replay buffer: a file in {saved_folder} is missing or has another size; the transitions of process "
                f"{saved_rank} are lost"
            )
    for ring in range(num_envs):
        saved_rank, saved_ring = divmod(rank * num_envs + ring, len(states[0]["head"]))
        arrays = opened.get(saved_rank)
        if arrays is None:
            continue
        state = states[saved_rank]
        head = int(state["head"][saved_ring])
        slot_S = np.arange(max(0, head - window), head)
        row_S = ring * slots + slot_S % slots
        saved_row_S = saved_ring * state["slots"] + slot_S % state["slots"]
        if head:
            yield RingCopy(ring, row_S, arrays, saved_row_S, state, saved_ring)


def _open_saved(folder: Path, layout: Layout) -> dict[str, np.ndarray] | None:
    """Open the files of another process for reading. None if one is missing or has another size."""
    paths = {name: folder / f"{name}.bin" for name in layout}
    for name, path in paths.items():
        if not path.is_file() or path.stat().st_size != _num_bytes(*layout[name]):
            return None
    return {name: np.memmap(paths[name], dtype, "r", shape=shape) for name, (shape, dtype) in layout.items()}
