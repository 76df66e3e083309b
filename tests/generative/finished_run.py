"""A finished run of a few updates, for tests of the programs that use one."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

import pytest

from zerokara.core.data import glyphs
from zerokara.generative import dcgan

FEW = {"train": 700, "test": 400}  # drawing thousands of digits takes seconds
TINY = (
    *(
        "--updates",
        "4",
        "--batch-size",
        "16",
        "--held-out-images",
        "120",
        "--eval-images",
        "100",
        "--preview-images",
        "4",
    ),
    *("--generator-width", "0.125", "--discriminator-width", "0.125", "--video-every-updates", "2", "--quiet"),
    *("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)
HERE = ("--device", "cpu", "--threads", "1")


def make_run(root: Path, name: str, *flags: str) -> Path:
    """Return the folder runs/<name> under `root` of a tiny run. Those that need no other files are trained once."""
    if not {*flags} <= {"--conditional"}:
        return train(root, name, *flags)
    shutil.copytree(trained(name, *flags), root / "runs" / name)
    return root / "runs" / name


@functools.cache
def trained(name: str, *flags: str) -> Path:
    """Train a run in a temporary folder; return its folder. Tests must not write to it."""
    root = Path(tempfile.mkdtemp(prefix="zerokara-tests-"))
    atexit.register(shutil.rmtree, root)
    return train(root, name, *flags)


def train(root: Path, name: str, *flags: str) -> Path:
    """Train a run with the program; return its folder."""
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "NUMBER", FEW)
        patch.setattr("matplotlib.figure.Figure.draw", lambda figure, renderer: None)
        dcgan.main([*TINY, "--name", name, *flags])
    return root / "runs" / name
