"""Tests of benchmarks/actors.py: medians of the sides, and ratios to the side without actors."""

from __future__ import annotations

from typing import Any

from benchmarks import actors


def result(steps: float) -> dict[str, Any]:
    values = {"learned_per_s": 2 * steps, "replay_ratio": 0.25, "blocked": 0.1, "staleness": 3.0}
    values |= {"learning": 0.8, "update_ms": 9.0}
    return {"steps_per_s": steps, **values, "compute": {"reason": "float32"}}


def test_medians_and_ratios() -> None:
    sides = actors.summarize({0: [result(100), result(80), result(400)], 2: [result(150), result(10), result(200)]})
    assert list(sides) == ["one process", "2 actors"]
    assert sides["one process"]["median"]["steps_per_s"] == 100
    assert sides["2 actors"]["values"]["learned_per_s"] == [300, 20, 400]
    assert [side["ratio_to_one_process"] for side in sides.values()] == [1.0, 1.5]
    assert "ratio_to_one_process" not in actors.summarize({1: [result(5)]})["1 actors"]
