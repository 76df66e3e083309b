"""Compile C sources to a shared library when it is first needed, and keep the library in the user's cache folder.

The folder is `$XDG_CACHE_HOME/zerokara/compiled`, by default `~/.cache/zerokara/compiled`. A library is found by a hash
of its sources, of the compiler and its flags, and of the kind of machine, so nothing has to be invalidated. Its name
also contains a hash of its contents, because loading a damaged library can end the process. It gets its name when it is
complete, so processes that compile at the same time do not disturb each other. Folder and library must not be writable
by other users, whose code would be executed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# Not for the processor at hand (-march=native): home folders are shared between machines.
FLAGS = ("-O3", "-std=c99", "-fwrapv", "-fPIC", "-shared")
TIMEOUT = 120.0  # seconds


class BuildError(Exception):
    """A library could not be compiled or loaded."""


def find_compiler() -> list[str] | None:
    """Return the command of the C compiler: `$CC`, cc, gcc or clang. None if there is none, and on Windows."""
    if os.name == "nt" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = command.split()
        if words and (path := shutil.which(words[0])):
            return [str(Path(path).absolute()), *words[1:]]  # a link is kept: its name decides what ccache does
    return None


def cache_folder() -> Path:
    """Return the folder of the libraries, which may not exist yet."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "zerokara" / "compiled"


def load(name: str, sources: Mapping[str, str], compiler: list[str]) -> ctypes.CDLL:
    """Return the library of some C sources, compiled if it is not in the cache.

    Args:
        name: the file `name`.c among the sources is compiled; the library is named after it.
        sources: file name -> text.
        compiler: command of the compiler.

    Raises:
        BuildError: the compiler failed, the cache folder cannot be written, or the library cannot be loaded.
    """
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        _check_owner(folder)
        name_and_key = f"{name}-{_key(sources, compiler)}"
        for path in sorted(folder.glob(f"{name_and_key}-*.so")):
            if (code := _load_if_intact(path)) is not None:
                return code
        return ctypes.CDLL(str(_compile(name, sources, compiler, folder, name_and_key)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        raise BuildError(str(error)) from error


def _check_owner(path: Path) -> None:
    """Raise BuildError if another user can modify a folder or a library."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise BuildError(f"{path} belongs to another user: set XDG_CACHE_HOME to a folder of your own")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"{path} is writable by other users: type chmod go-w {shlex.quote(str(path))}")


def _load_if_intact(path: Path) -> ctypes.CDLL | None:
    """Load a library. Returns None if its file is damaged, as after a full disk, or is for another system."""
    try:
        _check_owner(path)
        return ctypes.CDLL(str(path)) if path.stem.endswith(f"-{_hash(path.read_bytes())}") else None
    except OSError:
        return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def _key(sources: Mapping[str, str], compiler: list[str]) -> str:
    """Return the hash of everything that the library depends on. Does not start the compiler, which takes time."""
    program = Path(compiler[0]).resolve()
    status = program.stat()
    parts = [sys.platform, platform.machine(), *FLAGS, *compiler, str(program), status.st_size, status.st_mtime_ns]
    parts += [text for file in sorted(sources.items()) for text in file]
    return _hash(repr(parts).encode())


def _compile(name: str, sources: Mapping[str, str], compiler: list[str], folder: Path, name_and_key: str) -> Path:
    """Compile `name`.c to a library in `folder`, where it appears when it is complete. Returns its path."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for file, text in sources.items():
            (Path(temporary) / file).write_text(text, "utf-8")
        built = Path(temporary) / f"{name}.so"
        command = [*compiler, *FLAGS, f"{name}.c", "-o", built.name]
        done = subprocess.run(
            command, cwd=temporary, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if "error" in line] or ["no message"]
            raise BuildError(f"{shlex.join(compiler)}: exit code {done.returncode}: {lines[0][:200]}")
        built.chmod(0o700)
        with built.open("rb") as library:
            os.fsync(library.fileno())
            path = folder / f"{name_and_key}-{_hash(library.read())}.so"
        return built.replace(path)
