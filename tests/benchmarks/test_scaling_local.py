"""Tests that the benchmark of two processes measures both jobs, together and independently."""

from __future__ import annotations

import json

import pytest

from benchmarks import scaling_local

TINY = (
    *("--learn-first", "1", "--steps", "1", "--repeats", "2", "--batch-size", "4", "--image-size", "32"),
    *("--width", "0.125", "--gradient-compression", "bfloat16"),
)


@pytest.mark.parametrize("job", ["classify", "dcgan"])
def test_the_pairs_are_measured_in_turns(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    scaling_local.main(["--jobs", job, *TINY])
    result = json.loads(capsys.readouterr().out)["jobs"][job]
    together, independent = (result["compute"][name] for name in ("together", "independent"))
    assert together == [f"float32 channels_last, process {rank} of 2" for rank in (1, 2)]
    assert independent == ["float32 channels_last, process 1 of 1"] * 2
    assert [len(rates) for rates in result["steps_per_s"].values()] == [2, 2]
    assert result["ratio"] == pytest.approx(result["median"]["together"] / result["median"]["independent"], abs=0.02)
    assert result["images_per_s"]["together"] == pytest.approx(4 * result["median"]["together"], rel=0.01)
