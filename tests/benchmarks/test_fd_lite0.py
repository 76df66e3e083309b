"""Tests of benchmarks/fd_lite0.py: alterations by hand, the rows of the table, accuracy, refused arguments."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import fd_lite0
from tests.markers import needs_lite0
from tests.random_lite0 import use_random_weights
from zerokara.core import data
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet, glyphs
from zerokara.core.models import lite0
from zerokara.generative.scoring.lite0 import Lite0


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["fd_lite0.py", *words])
    fd_lite0.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_alterations_by_hand() -> None:
    corner = torch.zeros(1, 1, 4, 6, dtype=torch.uint8)
    corner[0, 0, 0, 0] = 200
    assert fd_lite0.swap_halves(corner).nonzero().tolist() == [[0, 0, 2, 3]]
    two = torch.tensor([10, 21], dtype=torch.uint8).view(2, 1, 1, 1)
    assert fd_lite0.mix(two).flatten().tolist() == [16, 16]
    flat = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(fd_lite0.blur(flat, 1), flat)
    point = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    point[0, 0, 4, 4] = 255
    blurred = fd_lite0.blur(point, 1)
    assert blurred[0, 0, 4, 4] == round(255 / (2 * torch.pi))
    noisy = fd_lite0.add_noise(torch.full((4, 3, 32, 32), 128, dtype=torch.uint8), 10).double()
    assert float(noisy.std()) == pytest.approx(10, rel=0.05)
    random = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    errors = [(fd_lite0.compress(random, quality).double() - random).abs().mean() for quality in (95, 10)]
    assert 0 < errors[0] < errors[1]
    assert fd_lite0.compress(flat[:, :1], 75).shape == (2, 1, 16, 16)


def test_baselines_are_compared_with_the_same_test_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_random_weights(monkeypatch)
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 400, "test": 100})
    result = call(monkeypatch, capsys, "baselines", "--data", "glyphs", "--images", "60")
    rows = {row["images"]: row for row in result["rows"]}
    assert next(iter(rows)) == "training images (floor)"
    assert len(rows) == 1 + len(fd_lite0.ALTERATIONS) + 1 + 1
    assert {row["number"] for name, row in rows.items() if "class" not in name} == {60}
    assert rows["memorized, 10 images repeated"]["lite0_recall"] == 0
    network = Lite0("--lite0", channels=1)
    real = fd_lite0.choose(data.load("glyphs", "test"), 60).images
    chosen = fd_lite0.choose(data.load("glyphs", "train"), 60).images
    for name, images in (("training images (floor)", chosen), ("halves swapped", fd_lite0.swap_halves(chosen))):
        expected = network.compare(network.extract(real), network.extract(images))
        assert {key: rows[name][key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert result["protocol"]["weights"] == lite0.SHA256[:16]
    assert result["protocol"]["real"].startswith("60 of ")


def test_refused_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--images must be at least 20"):
        call(monkeypatch, capsys, "baselines", "--images", "5")
    use_random_weights(monkeypatch)
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 20, "test": 20})
    with pytest.raises(UserError, match="has a class 0: give Imagenette"):
        call(monkeypatch, capsys, "accuracy", "--data", "glyphs")
    with pytest.raises(UserError, match="--images must be at least 1, or 0 for all, got -1"):
        call(monkeypatch, capsys, "accuracy", "--images", "-1")
    monkeypatch.undo()
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    for command in ("accuracy", "baselines"):
        with pytest.raises(UserError, match=r"benchmarks\.fd_lite0 needs the package no-such-package-of-weights"):
            call(monkeypatch, capsys, command)


def test_accuracy_counts_classes_in_imagenets_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that answers with the class whose index is the brightness of the image."""

    class Brightness(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            index_N = (x[:, 0, 0, 0] * 128 + 127).round().long()
            return torch.nn.functional.one_hot(index_N, 1000).float()

    monkeypatch.setattr(lite0, "load", lambda option: Brightness())
    images = torch.tensor([0, 217, 5, 0], dtype=torch.uint8).view(4, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    classes = ("english_springer", "tench")
    photographs = ImageSet(images, torch.tensor([1, 0, 1, 0]), classes, "four images")
    monkeypatch.setattr(data, "load", lambda name, split, **options: photographs)
    result = call(monkeypatch, capsys, "accuracy")
    assert result["accuracy_of_1000_classes"] == 0.5
    # The third image has no class of the two; the first of equals is English springer.
    assert result["accuracy_of_10_classes"] == 0.5
    assert call(monkeypatch, capsys, "accuracy", "--images", "1")["protocol"]["images"].startswith("1 of four images")


@needs_lite0
def test_accuracy_on_imagenette(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    words = ("accuracy", "--data-dir", str(data_dir), "--images", "100")
    result = call(monkeypatch, capsys, *words)
    assert result["accuracy_of_1000_classes"] > 0.35
    assert result["accuracy_of_10_classes"] > 0.8
