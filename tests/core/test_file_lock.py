"""Locks of files, and systems without fcntl or without signals in this thread: Windows, threads."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.programs import start_with_torch
from zerokara.core import checkpoint, file_lock
from zerokara.core.config import UserError
from zerokara.core.run import Run


@dataclass(frozen=True)
class Config:
    resume: bool = False


def in_thread(function: Callable[[], Any]) -> Any:
    """Call a function in another thread; return its result or raise its exception."""
    results: list[Any] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001
            results.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


class Msvcrt(SimpleNamespace):
    """Windows' locks of bytes at the position of a descriptor, as far as they are used."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__(locked={}, positions=[])

    def locking(self, descriptor: int, mode: int, number: int) -> None:
        assert (mode, number) == (self.LK_NBLCK, 1)
        self.positions.append(os.lseek(descriptor, 0, os.SEEK_CUR))
        inode = os.fstat(descriptor).st_ino
        if self.locked.setdefault(inode, descriptor) != descriptor:
            raise PermissionError(13, "Permission denied")


def test_a_locked_file_is_locked_for_others_until_it_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        assert file_lock.lock(first)
        assert not file_lock.lock(second)
        first.close()
        assert file_lock.lock(second)


def test_on_windows_a_byte_beyond_the_content_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "fcntl")
    msvcrt = Msvcrt()
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    path = tmp_path / "lock"
    path.write_text("content")
    with path.open("r+b") as first, path.open("r+b") as second:
        first.seek(3)
        assert file_lock.lock(first)
        assert first.tell() == 3
        assert os.lseek(first.fileno(), 0, os.SEEK_CUR) < 2**30
        assert not file_lock.lock(second)
    assert min(msvcrt.positions) > 2**30


def test_waiting_for_a_lock_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "fcntl")
    msvcrt = Msvcrt()
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        assert file_lock.lock(first)
        monkeypatch.setattr(time, "sleep", lambda seconds: msvcrt.locked.clear())
        assert file_lock.lock(second, wait=True)
    assert len(msvcrt.positions) == 3


def test_a_run_on_a_system_without_fcntl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On Windows there is no fcntl, no os.register_at_fork, and a folder cannot be opened."""
    hide(monkeypatch, "fcntl", "msvcrt")
    monkeypatch.delattr(os, "register_at_fork")
    monkeypatch.delattr(os, "O_DIRECTORY")
    with Run(Config(), kind="dqn", name="a", resume=False, quiet=True, root=tmp_path) as run:
        run.save(run.checkpoint_path, {"step": 3})
    assert "no file locks" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "a" / "checkpoint-0.pt", "dqn")["step"] == 3
    with pytest.raises(UserError, match="already holds a run"):
        Run(Config(), kind="dqn", name="a", resume=False, quiet=True, root=tmp_path)


def test_no_module_needs_fcntl_or_posix_signals_to_be_imported(tmp_path: Path) -> None:
    names = ["core.run", "core.data.download", "agents.sweeping.trial", "core.scheduling.cluster", "envs.pools"]
    code = (
        "import sys, os, signal, torch, gymnasium\n"  # which are other libraries on Windows
        "sys.modules['fcntl'] = None\ndel os.register_at_fork, signal.SIGHUP, signal.SIGKILL\n"
        + "".join(f"import zerokara.{name}\n" for name in names)
        + "from zerokara.core.scheduling.pool import ProcessPool\n"
        "from zerokara.core.config import run_main\n"
        "run_main(lambda: ProcessPool(1, {}, lambda *ended: None))\n"
    )
    process = start_with_torch(tmp_path, "-c", code)
    error = "error: python -c needs Linux or macOS, whose signals stop its runs.\n"
    assert (process.communicate(), process.returncode) == (("", error), 2)


def test_signals_are_handled_in_the_main_thread_only(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def train() -> Any:
        with Run(Config(), kind="dqn", name="a", resume=False, quiet=True, root=tmp_path) as run, run.signals():
            return signal.getsignal(signal.SIGINT)

    assert in_thread(train) is before
    with Run(Config(), kind="dqn", name="b", resume=False, quiet=True, root=tmp_path) as run, run.signals():
        assert signal.getsignal(signal.SIGINT) is not before
