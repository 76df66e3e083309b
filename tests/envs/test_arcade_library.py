"""Tests of the compilation of the arcade games: cache of libraries, damaged and foreign files, failing compilers."""

from __future__ import annotations

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zerokara.envs import arcade
from zerokara.envs.arcade import library

COMPILER = library.find_compiler() or []
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler")

ANSWER = {"answer.c": '#include "number.h"\nint answer(void) { return NUMBER; }\n', "number.h": "#define NUMBER 42\n"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "zerokara" / "compiled"


@needs_compiler
def test_a_library_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.load("answer", ANSWER, COMPILER).answer() == 42
    (built,) = cache.iterdir()  # and no temporary file
    assert library.load("answer", {**ANSWER, "number.h": "#define NUMBER 43\n"}, COMPILER).answer() == 43
    assert len(list(cache.iterdir())) == 2
    assert library.load("answer", ANSWER, [*COMPILER, "-DOTHER"]).answer() == 42
    assert len(list(cache.iterdir())) == 3
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        assert library.load("answer", ANSWER, COMPILER).answer() == 42
    assert built.name.startswith("answer-")


@needs_compiler
def test_processes_may_compile_at_the_same_time(cache: Path) -> None:
    def load(_: int) -> int:
        answer: int = library.load("answer", ANSWER, COMPILER).answer()
        return answer

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, range(4))) == [42] * 4
    assert len(list(cache.iterdir())) == 1


@needs_compiler
def test_errors_of_the_library(cache: Path) -> None:
    with pytest.raises(library.BuildError, match=r"exit code 1: answer\.c:1"):
        library.load("answer", {"answer.c": "int answer(void) { return ; } nonsense"}, COMPILER)
    assert list(cache.iterdir()) == []
    cache.rmdir()
    cache.write_text("a file in place of the folder")
    with pytest.raises(library.BuildError, match="zerokara"):
        library.load("answer", ANSWER, COMPILER)


@needs_compiler
@pytest.mark.parametrize("damage", ["half", "all but the end", "one bit", "empty"])
def test_a_damaged_library_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Only the hash tells that half a file is damaged: loading it ends the process by SIGBUS."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "intact"))
    library.load("answer", ANSWER, COMPILER)
    (intact,) = library.cache_folder().iterdir()
    data = intact.read_bytes()
    half = len(data) // 2
    changed = {
        "half": data[:half],
        "all but the end": data[:-1],
        "one bit": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
        "empty": b"",
    }
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "damaged"))
    damaged = library.cache_folder() / intact.name
    damaged.parent.mkdir(0o700, parents=True)
    damaged.write_bytes(changed[damage])
    damaged.chmod(0o700)
    assert library.load("answer", ANSWER, COMPILER).answer() == 42
    assert damaged.read_bytes() == data
    assert list(damaged.parent.iterdir()) == [damaged]


@needs_compiler
def test_a_library_is_complete_on_the_disk_before_it_has_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(any(cache.glob("*.so"))))
    library.load("answer", ANSWER, COMPILER)
    assert synced == [False]


@needs_compiler
def test_a_damaged_library_that_another_process_removes_meanwhile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.load("answer", ANSWER, COMPILER)
    (built,) = cache.iterdir()
    check = library._check_owner

    def remove_and_check(path: Path) -> None:
        if path == built:
            path.unlink(missing_ok=True)
        check(path)

    monkeypatch.setattr(library, "_check_owner", remove_and_check)
    assert library.load("answer", ANSWER, COMPILER).answer() == 42
    assert built.exists()


@needs_compiler
def test_processes_may_replace_a_damaged_library_at_the_same_time(cache: Path) -> None:
    library.load("answer", ANSWER, COMPILER)
    (built,) = cache.iterdir()
    built.unlink()  # a new file: this process has loaded the old one
    built.write_bytes(b"")
    built.chmod(0o700)
    start = threading.Barrier(4)

    def load(_: int) -> int:
        start.wait()
        answer: int = library.load("answer", ANSWER, COMPILER).answer()
        return answer

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, range(4))) == [42] * 4


@needs_compiler
@pytest.mark.parametrize("mode", [0o720, 0o702])
@pytest.mark.parametrize("what", ["folder", "library"])
def test_code_that_others_can_modify_is_not_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch, mode: int, what: str
) -> None:
    library.load("answer", ANSWER, COMPILER)
    (built,) = cache.iterdir()
    path = cache if what == "folder" else built
    path.chmod(mode)
    with pytest.raises(library.BuildError, match=r"is writable by other users: type chmod go-w /"):
        library.load("answer", ANSWER, COMPILER)
    path.chmod(0o700)
    assert library.load("answer", ANSWER, COMPILER).answer() == 42
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(library.BuildError, match=r"belongs to another user: set XDG_CACHE_HOME"):
        library.load("answer", ANSWER, COMPILER)


@needs_compiler
def test_libraries_are_private_whatever_the_umask(cache: Path) -> None:
    before = os.umask(0)
    try:
        for _ in range(2):
            assert library.load("answer", ANSWER, COMPILER).answer() == 42
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (cache, *cache.iterdir())} == {0o700}


# Failing compilers.


def write_compiler(path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Select a compiler and an empty cache. Returns the path of the compiler."""
    compiler = path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(path / "cache"))
    return compiler


def test_a_compiler_that_fails_is_reported_and_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = write_compiler(
        tmp_path, monkeypatch, f"echo x >> '{tmp_path}/started'; echo 'catch.c:1: error: no space' >&2"
    )
    for _ in range(2):
        env = arcade.make("zerokara/Catch-v0", 2)
        assert not env.is_compiled
        (warning,) = env.warnings
        assert warning == (
            f"zerokara/Catch-v0: the C version of the game cannot be used ({compiler}: exit code 3: catch.c:1: error: "
            f"no space): it is stepped in NumPy, with the same results, but more slowly."
        )
        assert env.reset(0).shape == (2, 4, 84, 84)
    assert (tmp_path / "started").read_text() == "x\n"


def test_messages_of_compilers_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_compiler(tmp_path, monkeypatch, r"printf 'error: \374\377\n'")
    (warning,) = arcade.make("zerokara/Catch-v0", 2).warnings
    assert "exit code 3: error: \ufffd\ufffd" in warning
