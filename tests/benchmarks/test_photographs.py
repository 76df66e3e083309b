"""Tests of benchmarks/photographs.py: each network is trained once for the same time and tested once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import photographs, seeds
from zerokara.core import data, time_limit
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data import glyphs
from zerokara.vision import classify

pytestmark = pytest.mark.usefixtures("blank_figures")

TINY = (
    *(
        "--data",
        "glyphs",
        "--train-images",
        "200",
        "--validation-images",
        "100",
        "--batch-size",
        "50",
        "--width-multiplier",
    ),
    *("0.25", "--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1", "--quiet"),
)


def test_networks_are_trained_once_and_tested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []
    whole = data.load

    def load(name: str, split: Any, **options: Any) -> Any:
        events.append(split)
        return whole(name, split, **options)

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        extra_args = command[3:]
        events.append(f"minutes {extra_args[extra_args.index('--minutes') + 1]}")
        classify.main(extra_args)
        return subprocess.CompletedProcess(command, 0)

    def call(*extra_args: str) -> dict[str, Any]:
        events.clear()
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["photographs.py", "imagenette", *TINY, "--minutes", "0.001", *extra_args])
        photographs.main()
        out, err = capsys.readouterr()
        assert ("not read" in err) == ("--test" not in extra_args), "the table shows the test error only with --test"
        result: dict[str, Any] = json.loads(out[out.index("{\n") :])
        return result

    networks = {"alexnet": ("--dropout", "0.0"), "vgg": ("--dropout", "0.5")}
    monkeypatch.setattr(photographs, "NETWORKS", {"imagenette": networks})
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 400, "test": 100})
    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(seeds, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(classify, "choose_compute", lambda *_: Compute(threads=1))
    monkeypatch.setattr(time_limit, "MEASURE_SECONDS", 0.1)
    monkeypatch.setattr(classify, "log_misread", lambda *args, **options: None)
    monkeypatch.chdir(tmp_path)

    first = call()
    assert events.count("minutes 0.001") == 2
    assert "test" not in events
    assert first["of"] == ["photographs-imagenette-alexnet-1", "photographs-imagenette-vgg-1"]
    minimum = min(first["runs"], key=lambda one: float(one["validation_error"]))
    assert first["least_validation_error"] == minimum["run"]
    tested = call("--test")
    assert "minutes 0.001" not in events, "a finished network was trained again"
    assert "test" in events
    assert all(0 <= one["test_error"] <= 1 for one in tested["runs"])
    assert call("--test") == tested
    assert "test" not in events, "the test set was read again"
    with pytest.raises(UserError, match="--networks cannot be resnet: choose from alexnet, vgg"):
        call("--networks", "resnet")
    with pytest.raises(UserError, match="--minutes 0 must be greater than 0"):
        call("--minutes", "0")
