"""Exclusive locks of open files, by fcntl on Linux and macOS and by msvcrt on Windows.

The operating system unlocks a file when it is closed, also when its process is killed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from zerokara.core.config import note

_WINDOWS_OFFSET = 2**40  # of the byte that msvcrt locks; beyond the content, which would become unreadable for others
_POLL_SECONDS = 0.2


def lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock a file. Returns False if another process has locked it.

    On a system without file locks, a note is printed, and the file counts as locked.

    Args:
        file: open file; closing it unlocks it.
        wait: wait until it can be locked.
    """
    if (fcntl := _find("fcntl")) is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if wait:
                raise
            return False
        return True
    if (msvcrt := _find("msvcrt")) is not None:
        while not _lock_on_windows(msvcrt, file):
            if not wait:
                return False
            time.sleep(_POLL_SECONDS)
        return True
    note("this system has no file locks (neither fcntl nor msvcrt): write to a run folder with one process at a time.")
    return True


def _find(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _lock_on_windows(msvcrt: Any, file: IO[Any]) -> bool:
    with _at(file, _WINDOWS_OFFSET):  # msvcrt locks at the current position
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _at(file: IO[Any], position: int) -> Iterator[None]:
    """Set the position of the file's descriptor, and restore it at the end."""
    before = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    os.lseek(file.fileno(), position, os.SEEK_SET)
    try:
        yield
    finally:
        os.lseek(file.fileno(), before, os.SEEK_SET)


def is_locked(path: Path) -> bool:
    """Return True if another process has locked the file at a path; False if there is no such file."""
    try:
        with path.open("rb") as file:
            return not lock(file)
    except FileNotFoundError:
        return False
