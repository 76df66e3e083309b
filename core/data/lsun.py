"""LSUN (Yu et al. 2015): one LMDB of WebP images per category and split, for example `church_outdoor_train_lmdb`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zerokara.core.config import UserError, error_summary
from zerokara.core.data.lmdb_check import FILE, check_pages
from zerokara.core.data.types import Progress, Split

MAGIC = 0xBEEFC0DE
META = struct.Struct("<16x II 16x I 92x QQ")  # magic, version, bytes of a page, last page, transaction
SUFFIX: dict[Split, str] = {"train": "_train_lmdb", "test": "_val_lmdb"}


def is_lmdb(folder: Path) -> bool:
    """Return True if the folder is an LMDB database."""
    return (folder / FILE).is_file()


def databases(path: Path) -> dict[str, dict[Split, Path]]:
    """Find databases: category -> split -> path. `path` is a database or a folder of databases.

    The database of the other split is found by its name. A database with another name, or without a second split, is
    listed under "train" only.
    """
    if not is_lmdb(path):
        inside = sorted(path.iterdir()) if path.is_dir() else []
        found = [folder for folder in inside if is_lmdb(folder) and not folder.name.endswith(SUFFIX["test"])]
        return {category: splits for folder in found for category, splits in databases(folder).items()}
    category = path.name.removesuffix(SUFFIX["train"])
    sibling = path.with_name(category + SUFFIX["test"])
    if category != path.name and is_lmdb(sibling):
        return {category: {"train": path, "test": sibling}}
    return {category.removesuffix("_lmdb"): {"train": path}}


@contextmanager
def opened(folder: Path, progress: Progress | None = None) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Open a database; yields its keys in order and a function that reads the value of a key.

    Args:
        folder: of the database.
        progress: callback for the check of its pages.

    Raises:
        UserError: the database is damaged or truncated.
    """
    import lmdb

    try:
        _check_length(folder / FILE)
    except OSError as error:
        raise _invalid(folder, error) from None
    check_pages(folder, progress)
    try:
        # No lock, because the folder may be read-only; no read-ahead, because the file may be larger than memory.
        with lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as database, database.begin() as view:
            with view.cursor() as cursor:
                keys = [key.decode("latin1") for key in cursor.iternext(values=False)]
            yield keys, lambda key: bytes(view.get(key.encode("latin1")) or b"")
    except lmdb.Error as error:
        raise _invalid(folder, error) from None


def _invalid(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder} is not a valid LMDB database ({error_summary(error)}): replace it with an undamaged copy."
    )


def _check_length(file: Path) -> None:
    """Check that a database has all its pages: LMDB maps it into memory, and a missing page would end the process.

    The first two pages describe the database (`MDB_meta` in LMDB's mdb.c); the one with the larger transaction counts.

    Raises:
        UserError: the file is truncated or not of LMDB.
    """
    size = file.stat().st_size
    with file.open("rb") as opened_file:
        head = opened_file.read(META.size)
        page_bytes = META.unpack(head)[2] if len(head) == META.size else 0
        opened_file.seek(page_bytes)
        metas = [META.unpack(each) for each in (head, opened_file.read(META.size)) if len(each) == META.size]
    sound = [meta for meta in metas if meta[:2] == (MAGIC, 1) and meta[2] == page_bytes and page_bytes]
    last_page = max(sound, key=lambda meta: meta[4])[3] if len(sound) == 2 else -1
    if len(sound) < 2 or size < (last_page + 1) * page_bytes:
        raise UserError(
            f"{file} is not a complete LMDB database of version 1 ({size:,} bytes): replace it with an undamaged copy."
        )
