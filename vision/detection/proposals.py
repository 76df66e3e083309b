"""Proposals of a set of pictures, found once and kept: a file for each picture, named by its pixels and the settings.

Whoever is killed loses the picture at hand; two programs may share a folder, for files are whole or absent.

Shapes: N pictures, P proposals, n true boxes, H, W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import time
import zipfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError, error_summary
from zerokara.core.data.boxes import BoxSet
from zerokara.vision.detection.selective_search import SearchSettings, best_overlaps, propose

VERSION = 1  # of selective search: a change of what it finds makes the files of before useless
_MIN_FOR_PROCESSES = 8  # so few pictures are not worth other processes


@dataclass(frozen=True)
class Proposals:
    """The proposals of one picture."""

    boxes: Tensor
    """(P, 4) float32, the most promising first."""
    seconds: float
    """What finding them took, when they were found."""


@dataclass(frozen=True)
class Coverage:
    """How well proposals cover what there is: `recall` at overlaps of .5 and .7, mean best overlap, mean number."""

    recall_50: float
    recall_70: float
    overlap: float
    number: float

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.number:,.0f} proposals a picture cover {self.recall_50:.1%} of the boxes at an overlap of .5, "
            f"{self.recall_70:.1%} at .7; mean best overlap {self.overlap:.2f}"
        )


def default_folder() -> Path:
    """Where proposals are kept if nobody says otherwise."""
    return Path.home() / ".cache" / "zerokara" / "proposals"


def find_all(
    boxes: BoxSet,
    settings: SearchSettings,
    most: int,
    folder: Path,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Proposals]:
    """The proposals of every picture, from the folder or found now.

    Args:
        boxes: pictures; what is marked in them is not looked at.
        settings: of the search.
        most: P at most; the files keep all.
        folder: of the files, made if need be.
        processes: that search side by side.
        progress: told how many pictures are done and of how many; what it raises ends the search.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = folder / f"{VERSION}-{settings.key()}"
    pictures = [boxes.picture(index) for index in range(len(boxes))]
    files = [folder / f"{picture_key(picture)}.npz" for picture in pictures]
    found = [read(file) for file in files]
    missing = [index for index, each in enumerate(found) if each is None]
    done = len(found) - len(missing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_search(pictures, missing, settings, processes)) as results:
            for index, (raw, seconds) in results:
                write(files[index], raw, seconds)
                found[index] = Proposals(torch.from_numpy(raw).float(), seconds)
                done += 1
                if progress is not None:
                    progress(done, len(found))
    except OSError as error:
        raise UserError(
            f"Proposals cannot be kept in {folder} ({error_summary(error)}): name a folder that can be written with "
            f"--proposal-cache."
        ) from None
    return [Proposals(each.boxes[:most], each.seconds) for each in found if each is not None]


def _search(
    pictures: Sequence[np.ndarray], missing: Sequence[int], settings: SearchSettings, processes: int
) -> Generator[tuple[int, tuple[np.ndarray, float]]]:
    """Places with what was found there, in order, as it comes."""
    if processes < 2 or len(missing) < _MIN_FOR_PROCESSES:
        for index in missing:
            yield index, timed_search(pictures[index], settings)
        return
    # Processes that are forked while torch has threads may hang, so they begin afresh.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        jobs = [(index, pool.submit(timed_search, pictures[index], settings)) for index in missing]
        for index, job in jobs:
            yield index, job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """The processes are as many as there are cores; Ctrl-C is for the one that started them."""
    import signal

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def timed_search(picture_HWC: np.ndarray, settings: SearchSettings) -> tuple[np.ndarray, float]:
    """Proposals (P, 4), and the seconds that they took."""
    start = time.perf_counter()
    return propose(picture_HWC, settings), time.perf_counter() - start


def picture_key(picture_HWC: np.ndarray) -> str:
    """A name that no other picture has."""
    return hashlib.sha256(repr(picture_HWC.shape).encode() + picture_HWC.tobytes()).hexdigest()[:32]


def read(file: Path) -> Proposals | None:
    """What a file holds; None where it is not there, or damaged, which is then found again."""
    try:
        # Out of memory, because NumPy leaves a damaged file open.
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            return Proposals(torch.from_numpy(content["boxes"]).float(), float(content["seconds"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(file: Path, boxes_P4: np.ndarray, seconds: float) -> None:
    """Keep proposals; two programs that write the same file at once do not meet."""
    content = io.BytesIO()
    np.savez_compressed(content, boxes=boxes_P4.astype(np.int32), seconds=np.float64(seconds))
    mine = file.with_name(f"{file.stem}.{os.getpid()}.npz")
    write_atomically(mine, lambda opened: opened.write(content.getvalue()))
    mine.replace(file)


def coverage(boxes: BoxSet, proposals: Sequence[Proposals]) -> Coverage:
    """How well the proposals cover what is marked."""
    best = [
        best_overlaps(each.boxes.numpy(), truth.numpy()) for each, truth in zip(proposals, boxes.boxes, strict=True)
    ]
    best_N = np.concatenate(best) if best else np.zeros(0)
    number = float(np.mean([len(each.boxes) for each in proposals]))
    if not len(best_N):
        return Coverage(float("nan"), float("nan"), float("nan"), number)
    return Coverage(float((best_N >= 0.5).mean()), float((best_N >= 0.7).mean()), float(best_N.mean()), number)
