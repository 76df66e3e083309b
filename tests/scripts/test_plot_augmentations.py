"""Tests of scripts/plot_augmentations.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts import plot_augmentations
from zerokara.core import data
from zerokara.core.config import UserError


def test_each_kind_of_augmentation_has_a_row() -> None:
    images = plot_augmentations.one_of_each(data.load("glyphs", "train"), torch.Generator().manual_seed(1))
    assert images.labels.tolist() == list(range(10))
    shown = list(plot_augmentations.rows(images, "fast", seed=1))
    names = [name for name, _, _ in shown]
    assert names[0] == "original"
    assert {"rotation 25 degrees", "crop 4 pixels", "flip", "cutmix 1"} < set(names)
    assert names[-1] == "preset fast"
    assert all(x.shape == (10, 1, 28, 28) for _, x, _ in shown)
    assert all(not torch.equal(x, shown[0][1]) for _, x, _ in shown[1:])
    labels = dict(zip(names, (labels for _, _, labels in shown), strict=True))
    assert labels["original"] == list("0123456789")
    assert len(labels["mixup 1"]) == 10
    assert labels["flip"] == []


def test_format_of_mixed_labels() -> None:
    assert plot_augmentations.format_label(torch.tensor([0.0, 0.3, 0.7]), ("a", "b", "c")) == "70% c, 30% b"
    assert plot_augmentations.format_label(torch.tensor([0.0, 1.0, 0.0]), ("a", "b", "c")) == "100% b"


def test_the_command_line_writes_a_png_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plot_augmentations, "COLUMNS", 6)  # each of 14 rows takes a tenth of a second per column
    plot_augmentations.main(["--out", str(tmp_path / "all.png")])
    with Image.open(tmp_path / "all.png") as picture:
        assert min(picture.size) > 500
    assert "12 kinds" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean fast"):
        plot_augmentations.main(["--preset", "fst"])
