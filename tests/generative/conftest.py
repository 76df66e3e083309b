"""Fixture of tests that share a folder of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.generative.finished_run import FEW
from zerokara.core.data import glyphs


@pytest.fixture
def at_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to the folder `root` of the module, whose runs were trained with few synthetic digits."""
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.chdir(root)
    return root
