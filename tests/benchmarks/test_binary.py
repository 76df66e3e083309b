"""Tests of benchmarks/binary.py: each seed is trained once, and the test set is read once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import binary as benchmark
from benchmarks import seeds
from zerokara.core import data
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data import glyphs
from zerokara.vision import binary

pytestmark = pytest.mark.usefixtures("blank_figures")

TINY = (
    *("--data", "glyphs", "--train-images", "200", "--validation-images", "100", "--batch-size", "50", "--epochs", "1"),
    *("--hidden-units", "64", "--num-hidden-layers", "1", "--device", "cpu", "--precision", "float32", "--quiet"),
)


def test_seeds_are_trained_once_and_tested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []
    whole = data.load

    def load(name: str, split: Any, **options: Any) -> Any:
        events.append(split)
        return whole(name, split, **options)

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        events.append("trained")
        binary.main(command[3:])
        return subprocess.CompletedProcess(command, 0)

    def call(*extra_args: str) -> dict[str, Any]:
        events.clear()
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["binary.py", *TINY, *extra_args])
        benchmark.main()
        out = capsys.readouterr().out
        result: dict[str, Any] = json.loads(out[out.index("{\n") :])
        return result

    monkeypatch.setattr(glyphs, "NUMBER", {"train": 400, "test": 100})
    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(seeds, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(binary, "choose_compute", lambda *_: Compute(threads=1))
    monkeypatch.chdir(tmp_path)

    first = call("--seeds", "1", "2")
    assert events.count("trained") == 2
    assert "test" not in events
    errors = [each["validation_error"] for each in first["runs"]]
    assert first["validation"]["mean"] == pytest.approx(sum(errors) / 2)
    assert "test" not in first
    tested = call("--seeds", "1", "2", "--test")
    assert "trained" not in events
    assert events.count("test") == 2
    assert tested["test"]["mean"] == pytest.approx(sum(each["test_error"] for each in tested["runs"]) / 2)
    assert call("--seeds", "1", "2", "--test") == tested
    assert "test" not in events, "the test set was read again"
    with pytest.raises(UserError, match="started with another --learning-rate"):
        call("--seeds", "1", "--learning-rate", "1e-3")
