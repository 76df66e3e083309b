"""Compile C sources to a shared library when it is first needed, and keep the library in the user's cache folder.

The folder is `$XDG_CACHE_HOME/zerokara`, by default `~/.cache/zerokara`. A library is found by a hash of its sources,
of the compiler and its flags, and of the kind of machine, so nothing has to be invalidated. It gets its name when it is
complete, so processes that compile at the same time do not disturb each other.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
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
    return (given if given.is_absolute() else Path.home() / ".cache") / "zerokara"


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
        path = cache_folder() / f"{name}-{_key(sources, compiler)}.so"
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # damaged, as after a full disk
                path.unlink()
        _compile(name, sources, compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        raise BuildError(str(error)) from error


def _key(sources: Mapping[str, str], compiler: list[str]) -> str:
    """Return the hash of everything that the library depends on. Does not start the compiler, which takes time."""
    program = Path(compiler[0]).resolve()
    status = program.stat()
    parts = [sys.platform, platform.machine(), *FLAGS, *compiler, str(program), status.st_size, status.st_mtime_ns]
    parts += [text for file in sorted(sources.items()) for text in file]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _compile(name: str, sources: Mapping[str, str], compiler: list[str], path: Path) -> None:
    """Compile `name`.c to the library `path`, which appears when it is complete."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for file, text in sources.items():
            (Path(folder) / file).write_text(text, "utf-8")
        command = [*compiler, *FLAGS, f"{name}.c", "-o", path.name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if "error" in line] or ["no message"]
            raise BuildError(f"{shlex.join(compiler)}: exit code {done.returncode}: {lines[0][:200]}")
        (Path(folder) / path.name).replace(path)
