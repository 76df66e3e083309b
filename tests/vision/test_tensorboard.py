"""Tests of TensorBoard's pages of a finished run of vision.classify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tensorboard_pages import curve_groups, hparams_metrics


def test_time_series_open_on_curves(finished_run: Path) -> None:
    groups = curve_groups(finished_run)
    assert list(groups) == ["speed", "train", "val", "z_final"]
    assert min(points for group, points in groups.items() if group != "z_final") > 1


def test_hparams_have_the_final_metrics(finished_run: Path) -> None:
    results = json.loads((finished_run / "result.json").read_text())["figures"]
    expected = {f"final/{name}": value for name, value in results.items()}
    assert hparams_metrics(finished_run.parent)["tiny"] == pytest.approx(expected)
