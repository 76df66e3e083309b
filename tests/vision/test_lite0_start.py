"""Tests of --pretrained-backbone lite0: segmentation, detection and captions start from EfficientNet-Lite0 weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vision import drawn_boxes, noise_captions
from tests.vision.shapes import write_shapes
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.models import lite0
from zerokara.core.models.normalization import published_moments
from zerokara.core.models.weights import read_tensors
from zerokara.core.zoo import provenance
from zerokara.vision import caption, detect, segment

pytestmark = pytest.mark.usefixtures("blank_figures")

FIND_WEIGHTS = lite0.find_weights
START = (
    *("--backbone", "efficientnet_lite0", "--width-multiplier", "0.1", "--pretrained-backbone", "lite0"),
    *("--name", "run"),
)
HARDWARE = ("--device", "cpu", "--precision", "float32", "--threads", "1")
SEGMENT = (
    *("--data", "shapes", "--data-dir", ".", "--network", "fcn4s", "--stem", "small", "--decoder-channels", "8"),
    *("--batch-size", "6", "--epochs", "1", "--warmup-epochs", "0", "--no-test"),
)
DETECT = (
    *("--data", "boxes", "--data-dir", ".", "--proposal-cache", "cache", "--image-side", "96", "--proposals", "40"),
    *("--search-color-spaces", "rgb", "--search-scales", "50", "--stem", "small", "--bins", "4"),
    *("--hidden-units", "16", "--regions-per-update", "16", "--updates", "1", "--no-test"),
)
CAPTION = (
    *("--data", "few.zip", "--image-size", "32", "--stem", "small", "--validation-images", "4", "--test-images", "4"),
    *("--batch-size", "4", "--epochs", "1", "--min-word-count", "1", "--embedding-dim", "8", "--hidden-units", "8"),
)
PROGRAMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "segment": (segment, SEGMENT),
    "detect": (detect, DETECT),
    "caption": (caption, CAPTION),
}


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write data of all programs, and narrow weights with the names of the package in place of the published ones."""
    monkeypatch.chdir(tmp_path)
    for program, _ in PROGRAMS.values():
        monkeypatch.setattr(program, "choose_compute", lambda *_: Compute(device="cpu", threads=1))
    write_shapes(tmp_path)
    drawn_boxes.write(tmp_path / "boxes", 12)
    noise_captions.write(Path("few.zip"), side=32)
    backbone = make_backbone(lite0.BACKBONE, 3, 32, width=0.1)
    path = tmp_path / "package" / "weights.pth"
    path.parent.mkdir()
    torch.save({backbone.published_name(name): x for name, x in backbone.state_dict().items()}, path)
    monkeypatch.setattr(lite0, "find_weights", lambda option: path)
    return path


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_starts_from_these_weights(name: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them are loaded, and images are normalized as they expect."""
    program, words = PROGRAMS[name]
    program.main([*words, *START, *HARDWARE])
    printed = " ".join(capsys.readouterr().out.split())
    number = len(read_tensors(weights))
    assert f"{number} of {number} tensors from {weights}" in printed
    content = json.loads(Path("runs/run/config.json").read_text())
    assert content["config"]["pretrained_backbone"] == "lite0"
    assert content["config"]["published_normalization"] is True
    mean, _ = published_moments(lite0.BACKBONE)
    assert f"normalized by mean {', '.join(f'{value:g}' for value in mean)}" in printed
    assert content["extra"]["origin"] == provenance.trace(weights)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_missing_package_is_one_sentence_and_creates_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, words = PROGRAMS[name]
    monkeypatch.setattr(lite0, "find_weights", FIND_WEIGHTS)
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(UserError, match=r"^--pretrained-backbone lite0 needs the package no-such-package-of-weights"):
        program.main([*words, *START, *HARDWARE])
    assert not Path("runs/run").exists()
