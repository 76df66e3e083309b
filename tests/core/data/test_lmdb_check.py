"""Tests of the check of LMDB databases: done once, remembered, with progress, ended when it is interrupted."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import lmdb
import pytest

from zerokara.core.config import UserError
from zerokara.core.data import lmdb_check
from zerokara.core.data.lmdb_check import check_pages
from zerokara.core.data.types import Progress

Visits = list[Path]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a database, and use a cache of the test."""
    monkeypatch.setattr(lmdb_check, "cache_folder", lambda: tmp_path / "cache" / "lmdb")
    folder = tmp_path / "x_train_lmdb"
    write(folder, 50)
    return folder


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> Visits:
    """Return the databases whose entries are visited, in order; a visit takes a moment."""
    visited: Visits = []
    original = lmdb_check._visit

    def visit(folder: Path, progress: Progress | None) -> None:
        visited.append(folder)
        original(folder, progress)
        time.sleep(0.1)

    monkeypatch.setattr(lmdb_check, "_visit", visit)
    return visited


def write(folder: Path, entries: int) -> None:
    with lmdb.open(str(folder), map_size=2**22) as opened, opened.begin(write=True) as view:
        for index in range(entries):
            view.put(f"{index:08}".encode(), b"x" * 100)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process has checked, as another process does not know it."""
    monkeypatch.setattr(lmdb_check, "_checked", set())


def test_an_unchanged_database_is_checked_once(
    database: Path, visits: Visits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(3):
        forget(monkeypatch)
        check_pages(database, None)
    assert visits == [database]
    assert [path.name for path in database.iterdir() if "lock" not in path.name] == ["data.mdb"], "not in its folder"
    (record,) = (tmp_path / "cache" / "lmdb").iterdir()
    assert str(database) in record.read_text()
    write(database, 60)
    check_pages(database, None)
    assert visits == [database, database]


def test_processes_that_start_together_check_it_once(
    database: Path, visits: Visits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for the lock of the record. Threads open files of their own, as processes do."""
    forget(monkeypatch)
    threads = [threading.Thread(target=check_pages, args=(database, None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert visits == [database]


def test_a_damaged_database_is_not_recorded(database: Path, visits: Visits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_check, "VISIT", "import sys\nsys.exit('it has more entries than it states')")
    for _ in range(2):
        with pytest.raises(UserError, match=r"data\.mdb is damaged inside \(it has more entries than it states\)"):
            check_pages(database, None)
    assert len(visits) == 2


def test_a_check_that_is_killed_says_nothing_about_the_database(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "import lmdb_of_nobody"):
        monkeypatch.setattr(lmdb_check, "VISIT", program)
        with pytest.raises(UserError, match=r"check of .*data\.mdb ended early \(.*\): type the same command again"):
            check_pages(database, None)


def test_without_a_cache_that_can_be_written_this_process_remembers(
    database: Path, visits: Visits, tmp_path: Path
) -> None:
    (tmp_path / "cache").touch()
    for _ in range(2):
        check_pages(database, None)
    assert visits == [database]


def test_progress_is_reported_and_an_interruption_ends_the_check(
    database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[subprocess.Popen[str]] = []

    class Popen(subprocess.Popen[str]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    slow = lmdb_check.VISIT.replace(
        "            if len(value):\n", "            time.sleep(0.3)\n            if len(value):\n"
    )
    assert slow != lmdb_check.VISIT
    monkeypatch.setattr(lmdb_check, "VISIT", slow)
    reported: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        reported.append((what, done, total))
        if len(reported) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_pages(database, progress)
    assert reported == [(f"entries checked in {database}", number, 50) for number in (1, 2)]
    (process,) = started
    assert process.returncode is not None, "it still runs"
    assert [record.read_text() for record in (tmp_path / "cache" / "lmdb").iterdir()] == [""]
