"""Compute proposals for a set of images and cache them: one file per image, named by its pixels and the settings.

A program that is killed loses only the images in progress. Several programs may share a cache folder, because files are
written atomically.

Shapes: N images, P proposals, n true boxes, H, W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import Stopped, UserError, error_summary
from zerokara.core.data.boxes import BoxSet
from zerokara.core.distributed import World
from zerokara.vision.detection.selective_search import SearchSettings, best_overlaps, propose

VERSION = 1  # of selective search; increment it when the proposals change, so that older files are not used
SENT_AT_ONCE = 16  # images whose proposals a process sends to the others at once
_MIN_FOR_PROCESSES = 8  # images; for fewer, starting processes takes longer than it saves


@dataclass(frozen=True)
class Proposals:
    """Proposals of one image."""

    boxes: Tensor
    """(P, 4) float32, most likely objects first."""
    seconds: float
    """Time that selective search took."""


@dataclass(frozen=True)
class Coverage:
    """Quality of proposals: recall at IoU 0.5 and 0.7, mean best overlap (MABO), mean number per image."""

    recall_50: float
    recall_70: float
    overlap: float
    number: float

    def __str__(self) -> str:
        """Format as a sentence."""
        if math.isnan(self.overlap):
            return f"{self.number:,.0f} proposals per image; there are no true boxes"
        return (
            f"{self.number:,.0f} proposals per image cover {self.recall_50:.1%} of the true boxes at IoU 0.5, "
            f"{self.recall_70:.1%} at IoU 0.7; mean best overlap {self.overlap:.2f}"
        )


def default_folder() -> Path:
    """Return the default cache folder."""
    return Path.home() / ".cache" / "zerokara" / "proposals"


def find_all(
    boxes: BoxSet,
    settings: SearchSettings,
    max_proposals: int,
    folder: Path,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
    world: World = World(),  # noqa: B008  (frozen)
) -> list[Proposals]:
    """Return the proposals of every image: read from the cache, or computed and written to it.

    The processes that train together divide the images that none of them has, and exchange proposals as they go, so
    that none waits for long. Machines need not share the cache folder: each gets the proposals of the others.

    Args:
        boxes: images; the true boxes are not used.
        settings: settings of selective search.
        max_proposals: maximum number of proposals per image; the files contain all.
        folder: cache folder, created if missing.
        processes: number of processes that this process starts for the search.
        progress: called with the number of finished images and of all images; an exception in it ends the search.
        world: processes that train together; each must call this function.

    Raises:
        UserError: the cache folder cannot be written.
        Stopped: a signal stopped the search in a process.
    """
    folder = folder / f"{VERSION}-{settings.key()}"
    images = [boxes.picture(index) for index in range(len(boxes))]
    files = [folder / f"{image_key(image)}.npz" for image in images]
    found = [read(file, image.shape[:2]) for file, image in zip(files, images, strict=True)]
    cached = world.gather({index for index, each in enumerate(found) if each is not None})  # by process
    missing = sorted(set(range(len(found))).difference(*cached))
    own = [index for index in sorted(cached[world.rank]) if _is_sent(index, cached, world.rank)]
    rounds = max(
        sum(_is_sent(index, cached, rank) for index in cached[rank]) + len(missing[rank :: world.size])
        for rank in range(world.size)
    )
    done = len(cached[world.rank])
    stops: tuple[bool, ...] = ()
    received: dict[int, tuple[np.ndarray, float]] = {}
    with contextlib.closing(_search(images, missing[world.rank :: world.size], settings, processes)) as results:
        sent = itertools.chain(((index, _raw(found[index])) for index in own), results)
        for _ in range(0, rounds, SENT_AT_ONCE):
            part: dict[int, tuple[np.ndarray, float]] = {}
            stopped = False
            with world.raising_together():
                _save_received(received, folder, files, world)
                try:
                    for index, (raw, seconds) in itertools.islice(sent, SENT_AT_ONCE):
                        part[index] = raw, seconds
                        if found[index] is None:
                            _save(folder, files[index], raw, seconds)
                            found[index] = Proposals(torch.from_numpy(raw).float(), seconds)
                            done += 1
                            if progress is not None:
                                progress(done, len(found))
                except Stopped:
                    stopped = True
            parts, stops = zip(*world.gather((part, stopped)), strict=True)
            received = {index: each for other in parts for index, each in other.items() if index not in part}
            for index, (raw, seconds) in received.items():
                done += index not in cached[world.rank]
                found[index] = Proposals(torch.from_numpy(raw).float(), seconds)
            if any(stops):
                break
    with world.raising_together():
        _save_received(received, folder, files, world)
    if any(stops):
        raise Stopped
    return [Proposals(each.boxes[:max_proposals], each.seconds) for each in found if each is not None]


def _save_received(
    received: Mapping[int, tuple[np.ndarray, float]], folder: Path, files: Sequence[Path], world: World
) -> None:
    """Write what other processes have sent, once on each machine, unless the machines share the folder.

    Raises:
        UserError: the folder cannot be written.
    """
    for index, (raw, seconds) in received.items() if world.local_rank == 0 else ():
        if not files[index].exists():
            _save(folder, files[index], raw, seconds)


def _is_sent(index: int, cached: Sequence[Collection[int]], rank: int) -> bool:
    """Return True if a process sends the cached proposals of an image, because others lack them and no earlier has."""
    having = [number for number, indices in enumerate(cached) if index in indices]
    return len(having) < len(cached) and having[0] == rank


def _raw(found: Proposals | None) -> tuple[np.ndarray, float]:
    assert found is not None
    return found.boxes.numpy(), found.seconds


def _save(folder: Path, file: Path, raw: np.ndarray, seconds: float) -> None:
    """Write the proposals of an image.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(file, raw, seconds)
    except OSError as error:
        raise UserError(
            f"Proposals cannot be written to {folder} ({error_summary(error)}): give a writable folder with "
            f"--proposal-cache."
        ) from None


def _search(
    images: Sequence[np.ndarray], missing: Sequence[int], settings: SearchSettings, processes: int
) -> Generator[tuple[int, tuple[np.ndarray, float]]]:
    """Yield the index of each missing image with its proposals and seconds, in order."""
    if processes < 2 or len(missing) < _MIN_FOR_PROCESSES:
        for index in missing:
            yield index, timed_search(images[index], settings)
        return
    # Spawn: processes that are forked while torch has threads may deadlock.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        jobs = [(index, pool.submit(timed_search, images[index], settings)) for index in missing]
        for index, job in jobs:
            yield index, job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """Use one OpenCV thread per process, and leave Ctrl-C to the parent process."""
    import signal

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def timed_search(image_HWC: np.ndarray, settings: SearchSettings) -> tuple[np.ndarray, float]:
    """Return proposals (P, 4) and the seconds that the search took."""
    start = time.perf_counter()
    return propose(image_HWC, settings), time.perf_counter() - start


def image_key(image_HWC: np.ndarray) -> str:
    """Return a hash of the pixels and shape of an image."""
    return hashlib.sha256(repr(image_HWC.shape).encode() + image_HWC.tobytes()).hexdigest()[:32]


def read(file: Path, size: tuple[int, ...]) -> Proposals | None:
    """Read the cache file of an image; return None if it is missing or damaged: its proposals are computed again.

    Args:
        file: of the cache.
        size: (H, W) of the image. A box outside of it, or one without area, makes the file a damaged one.
    """
    try:
        # Read through memory, because NumPy does not close a damaged file.
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            boxes_P4, seconds = content["boxes"], float(content["seconds"])
    except Exception:  # noqa: BLE001  (zipfile, zlib and NumPy raise many types on damaged bytes)
        return None
    if boxes_P4.ndim != 2 or boxes_P4.shape[1] != 4 or boxes_P4.dtype != np.int32 or not np.isfinite(seconds):
        return None
    height, width = size
    x1, y1, x2, y2 = boxes_P4.T
    if not ((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all():
        return None
    return Proposals(torch.from_numpy(boxes_P4).float(), seconds)


def write(file: Path, boxes_P4: np.ndarray, seconds: float) -> None:
    """Write a cache file; safe if two programs write the same file at the same time."""
    content = io.BytesIO()
    np.savez_compressed(content, boxes=boxes_P4.astype(np.int32), seconds=np.float64(seconds))
    temporary = file.with_name(f"{file.stem}.{os.getpid()}.npz")
    write_atomically(temporary, lambda opened: opened.write(content.getvalue()))
    temporary.replace(file)


def coverage(boxes: BoxSet, proposals: Sequence[Proposals]) -> Coverage:
    """Compute how well proposals cover the true boxes."""
    best = [
        best_overlaps(each.boxes.numpy(), truth.numpy()) for each, truth in zip(proposals, boxes.boxes, strict=True)
    ]
    best_N = np.concatenate(best) if best else np.zeros(0)
    number = float(np.mean([len(each.boxes) for each in proposals]))
    if not len(best_N):
        return Coverage(float("nan"), float("nan"), float("nan"), number)
    return Coverage(float((best_N >= 0.5).mean()), float((best_N >= 0.7).mean()), float(best_N.mean()), number)
