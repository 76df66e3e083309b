"""Check of an LMDB database in another process, which a damaged page may end with SIGBUS or SIGSEGV.

A database of many gigabytes takes minutes. It is checked by the first process that opens it, while others wait, and
a small file in the cache records the size and the time of the last change of a database without damage.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from zerokara.core.config import UserError
from zerokara.core.data.types import Progress
from zerokara.core.file_lock import lock

FILE = "data.mdb"
# Visits every key, and the first and last page of every value. A damaged page may repeat entries without end.
VISIT = """
import sys, time, lmdb
shown = 0.0
with lmdb.open(sys.argv[1], readonly=True, lock=False, readahead=False) as database:
    with database.begin(buffers=True) as view, view.cursor() as cursor:
        entries = view.stat()["entries"]
        for number, (key, value) in enumerate(cursor, 1):
            if number > entries:
                sys.exit("it has more entries than it states")
            if len(value):
                value[0], value[-1]
            if time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                print(number, entries, flush=True)
        if cursor.last() and number < entries:
            sys.exit("it has fewer entries than it states")
"""
CRASHES = tuple(-getattr(signal, name) for name in ("SIGBUS", "SIGSEGV") if hasattr(signal, name))
DAMAGE = ("it has ", "lmdb.")  # beginnings of the last line: of the texts above, and of LMDB's exceptions
_checked: set[str] = set()  # databases without damage, by `_key`, for systems whose cache cannot be written


def cache_folder() -> Path:
    """Return the folder of the records."""
    return Path.home() / ".cache" / "zerokara" / "lmdb"


def check_pages(folder: Path, progress: Progress | None) -> None:
    """Visit all entries of a database, unless this has been done since its file was changed.

    Args:
        folder: of the database.
        progress: callback.

    Raises:
        UserError: a page is damaged.
    """
    key = _key(folder / FILE)
    if key in _checked:
        return
    with _opened_record(key) as record:
        if record is None or not record.read():
            _visit(folder, progress)
            if record is not None:
                with contextlib.suppress(OSError):
                    record.write(f"{(folder / FILE).resolve()} has no damage\n".encode())
    _checked.add(key)


def _key(file: Path) -> str:
    """Return a hash of the path, the size and the time of the last change of a file."""
    state = file.stat()
    return hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:32]


@contextlib.contextmanager
def _opened_record(key: str) -> Iterator[IO[bytes] | None]:
    """Open and lock the record of a database, which is empty if it was not checked; None without a writable cache."""
    with contextlib.ExitStack() as stack:
        record = None
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
            cache_folder().mkdir(parents=True, exist_ok=True)
            record = stack.enter_context((cache_folder() / key).open("a+b", buffering=0))  # no error at its end
            lock(record, wait=True)
            record.seek(0)
        yield record


def _visit(folder: Path, progress: Progress | None) -> None:
    """Visit all entries in another process, which ends if this one is interrupted.

    Raises:
        UserError: a page is damaged.
    """
    command = [sys.executable, "-c", VISIT, str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if progress is not None:
                    number, entries = map(int, line.split())
                    progress(f"entries checked in {folder}", number, entries)
            lines = process.stderr.read().strip().splitlines()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        reason = lines[-1] if lines else f"reading it ended with code {process.returncode}"
        if process.returncode in CRASHES or reason.startswith(DAMAGE):
            raise UserError(f"{folder / FILE} is damaged inside ({reason}): replace it with an undamaged copy.")
        raise UserError(f"The check of {folder / FILE} ended early ({reason}): type the same command again.")
