"""Deletion of saved replay buffers, by far the largest part of a run folder and needed only to train further."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from zerokara.core.config import error_summary


def delete_replays(folder: Path, warn: Callable[[str], object]) -> None:
    """Delete the files of the replay buffers of all processes in a run folder.

    Args:
        folder: run folder.
        warn: prints a warning if they cannot be deleted.
    """
    for replay in folder.glob("replay-*"):
        try:
            shutil.rmtree(replay)
        except OSError as error:
            warn(f"{replay} could not be deleted: {error_summary(error)}")
