"""The picture of what each augmentation does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from zerokara.core import data
from zerokara.core.config import UserError
from zerokara.vision import augmentations


def test_each_kind_has_its_row() -> None:
    images = augmentations.one_of_each(data.load("glyphs", "train"), torch.Generator().manual_seed(1))
    assert images.labels.tolist() == list(range(10))
    shown = list(augmentations.rows(images, "fast", seed=1))
    names = [name for name, _, _ in shown]
    assert names[0] == "as it is"
    assert {"rotation 25 degrees", "crop 4 pixels", "flip", "cutmix 1"} < set(names)
    assert names[-1] == "preset fast"
    assert all(x.shape == (10, 1, 28, 28) for _, x, _ in shown)
    assert all(not torch.equal(x, shown[0][1]) for _, x, _ in shown[1:])
    words = dict(zip(names, (words for _, _, words in shown), strict=True))
    assert words["as it is"] == list("0123456789")
    assert len(words["mixup 1"]) == 10
    assert words["flip"] == []


def test_mixed_labels_in_words() -> None:
    assert augmentations.in_words(torch.tensor([0.0, 0.3, 0.7]), ("a", "b", "c")) == "70% c, 30% b"
    assert augmentations.in_words(torch.tensor([0.0, 1.0, 0.0]), ("a", "b", "c")) == "100% b"


def test_the_command_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    augmentations.main(["--out", str(tmp_path / "all.png")])
    with Image.open(tmp_path / "all.png") as picture:
        assert min(picture.size) > 500
    assert "12 kinds" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean fast"):
        augmentations.main(["--preset", "fst"])
