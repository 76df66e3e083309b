"""Tests of benchmarks/result.py: what every benchmark of speed prints."""

from __future__ import annotations

import json

import pytest

from benchmarks.result import print_result
from zerokara.core.machine import describe_machine


def test_the_machine_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    print_result({"what": "steps/s", "median": {"ours": 1.5}})
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["machine", "what", "median"]
    assert printed["machine"] == describe_machine()
    assert printed["median"] == {"ours": 1.5}
