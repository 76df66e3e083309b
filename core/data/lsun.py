"""LSUN (Yu et al. 2015): one LMDB of WebP photographs for each category and split, `church_outdoor_train_lmdb`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zerokara.core.config import UserError, error_summary
from zerokara.core.data.types import Split

SUFFIX: dict[Split, str] = {"train": "_train_lmdb", "test": "_val_lmdb"}


def is_lmdb(folder: Path) -> bool:
    """Whether the folder is an LMDB database."""
    return (folder / "data.mdb").is_file()


def databases(path: Path) -> dict[str, dict[Split, Path]]:
    """Category: its databases by split, of one database (with its sibling of the other split) or a folder of them.

    A database that is named otherwise, or has no sibling, stands alone under "train".
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
def opened(folder: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The keys of a database in their order, and a function that reads one value.

    Raises:
        UserError: the database is damaged.
    """
    import lmdb

    try:
        # No lock: nothing writes, and the folder may be read-only. No read-ahead: it may be larger than memory.
        with lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as database, database.begin() as view:
            with view.cursor() as cursor:
                keys = [key.decode("latin1") for key in cursor.iternext(values=False)]
            yield keys, lambda key: bytes(view.get(key.encode("latin1")) or b"")
    except lmdb.Error as error:
        raise UserError(
            f"{folder} is no sound LMDB database ({error_summary(error)}): put a sound copy in its place."
        ) from None
