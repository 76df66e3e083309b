"""Tests of benchmarks/backbone_starts.py: the planned length, equal settings of both sides, metrics of their runs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import backbone_starts as starts
from tests.vision import drawn_boxes, noise_captions
from tests.vision.shapes import write_shapes
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.models import lite0

pytestmark = pytest.mark.usefixtures("blank_figures")

TINY = {
    "segment": (
        *("--data", "shapes", "--data-dir", ".", "--network", "fcn8s", "--decoder-channels", "8"),
        *("--batch-size", "6", "--warmup-epochs", "0"),
    ),
    "detect": (
        *("--data", "boxes", "--data-dir", ".", "--proposal-cache", "cache", "--image-side", "96", "--proposals", "40"),
        *("--search-color-spaces", "rgb", "--search-scales", "50", "--bins", "4"),
        *("--hidden-units", "16", "--regions-per-update", "16"),
    ),
    "caption": (
        *("--data", "few.zip", "--image-size", "64", "--validation-images", "4", "--test-images", "4"),
        *("--batch-size", "4", "--min-word-count", "1", "--embedding-dim", "8", "--hidden-units", "8"),
    ),
}
HARDWARE = ("--device", "cpu", "--precision", "float32", "--threads", "1", "--quiet")
OF_A_BACKBONE = {"backbone", "pretrained_backbone", "stem", "width_multiplier", "published_normalization", "name"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write data of all programs, and random weights in place of the published ones of lite0."""
    monkeypatch.chdir(tmp_path)
    write_shapes(tmp_path)
    drawn_boxes.write(tmp_path / "boxes", 12)
    noise_captions.write(Path("few.zip"))
    backbone = make_backbone(lite0.BACKBONE, 3, 32)
    torch.save({backbone.published_name(name): x for name, x in backbone.state_dict().items()}, "weights.pth")
    monkeypatch.setattr(lite0, "find_weights", lambda option: tmp_path / "weights.pth")


@pytest.mark.parametrize("name", starts.TASKS)
@pytest.mark.usefixtures("data")
def test_both_backbones_are_compared_on_tiny_data(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An epoch or update of 3 seconds is the planned length for .05 minutes."""
    program = importlib.import_module(f"zerokara.vision.{name}")
    trained: list[str] = []

    def run(module: str, folder: str, words: Sequence[str]) -> Path:
        assert module == f"vision.{name}"
        trained.append(folder)
        program.main([*words, "--name", folder])
        return Path("runs") / folder

    def call() -> dict[str, Any]:
        capsys.readouterr()
        starts.main([name, "--minutes", "0.05", "--seeds", "3", *TINY[name], *HARDWARE])
        out = capsys.readouterr().out
        result: dict[str, Any] = json.loads(out[out.index("{\n") :])
        return result

    monkeypatch.setattr(starts, "run", run)
    monkeypatch.setattr(starts, "measure_speed", lambda *_: starts.Speed(each=3.0, start=0.0))
    monkeypatch.setattr(program, "choose_compute", lambda *_: Compute(device="cpu", threads=1))
    result = call()
    (found,) = result["seeds"]
    configs = {}
    metric = "_".join(starts.TASKS[name].metric)
    for folder, start in zip(trained, ("photographs", "lite0"), strict=True):
        content = json.loads(Path("runs", folder, "config.json").read_text())
        configs[start] = content["config"]
        assert content["config"]["pretrained_backbone"] == start
        assert content["config"]["seed"] == found["seed"] == 3
        length = "updates" if name == "detect" else "epochs"
        assert content["config"][length] == found[start][length] == 1
        figures = json.loads(Path("runs", folder, "result.json").read_text())["figures"]
        assert found[start][metric] == (figures["nic"]["bleu4"] if name == "caption" else figures[metric])
        assert metric in {"test_mean_iou", "test_map_50", "nic_bleu4"}
        assert found[start]["fraction_of_budget"] == found[start]["seconds"] / 3 > 0
    assert configs["lite0"]["backbone"] == "efficientnet_lite0"
    differing = {key for key, value in configs["lite0"].items() if value != configs["photographs"][key]}
    assert {"pretrained_backbone", "name"} <= differing <= OF_A_BACKBONE
    difference = found["lite0"][metric] - found["photographs"][metric]
    assert result["lite0_minus_photographs"] == {"each": [difference], "median": difference}
    assert call()["seeds"] == [found]
    assert len(trained) == 2, "finished runs are not trained again"


def test_the_length_is_planned_from_two_short_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs took 70 s and four 130 s, so one takes 30 s and the start 10 s: 40 of them in 20 minutes."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    seconds = {"p-speed-2": 70.0, "p-speed-4": 130.0, "q-speed-2": 70.0, "q-speed-4": 69.0}
    trained: list[str] = []

    def run(module: str, folder: str, words: Sequence[str]) -> Path:
        assert list(words) == ["--threads", "1", "--no-test", "--epochs", folder[-1]]
        trained.append(folder)
        return Path("runs") / folder

    monkeypatch.setattr(starts, "run", run)
    monkeypatch.setattr(starts, "read_seconds", lambda task, folder: seconds[folder.name])
    task = starts.TASKS["segment"]
    speed = starts.measure_speed(task, "p", ["--threads", "1"])
    assert speed == starts.Speed(each=30.0, start=10.0)
    assert starts.measure_speed(task, "p", ["--threads", "1"]) == speed
    assert trained == ["p-speed-2", "p-speed-4"], "the second time it is read"
    assert speed.length(20) == 40
    with pytest.raises(UserError, match=r"^--minutes 0\.4 is too short for one epoch or update, which takes 40 s"):
        speed.length(0.4)
    with pytest.raises(UserError, match=r"^runs/q-speed-4 was not slower than a run of half its length"):
        starts.measure_speed(task, "q", ["--threads", "1"])


def test_mistakes_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "run", pytest.fail)
    monkeypatch.setattr(lite0, "find_weights", lambda option: tmp_path)
    with pytest.raises(UserError, match=r"^--minutes must be above 0, got 0"):
        starts.main(["segment", "--minutes", "0"])
    with pytest.raises(UserError, match="--no-such-option"):
        starts.main(["segment", "--no-such-option", "1"])
    monkeypatch.undo()
    monkeypatch.setattr(starts, "run", pytest.fail)
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(UserError, match=r"^benchmarks\.backbone_starts needs the package no-such-package-of-weights"):
        starts.main(["caption"])


def test_a_metric_that_was_not_measured_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"figures": {"test_map_50": null}}')
    with pytest.raises(UserError, match="has no test_map_50: there are no true boxes in its test images"):
        starts.read_test_metric(starts.TASKS["detect"], tmp_path)
