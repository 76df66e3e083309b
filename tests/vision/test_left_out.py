"""A damaged image is left out of a run and named, and the closing line stays that of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zerokara.core.media import png_bytes
from zerokara.vision import classify

pytestmark = pytest.mark.usefixtures("blank_figures")

OPTIONS = (
    *("--width-multiplier", "0.25", "--epochs", "1", "--batch-size", "10", "--validation-images", "4"),
    *("--device", "cpu", "--threads", "1", "--precision", "float32", "--compile", "off", "--name", "run"),
)


def test_damaged_images_of_both_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = Path("set") / split / label
            folder.mkdir(parents=True)
            for index in range(12):
                (folder / f"{index}.png").write_bytes(png_bytes(rng.integers(256, size=(28, 28), dtype=np.uint8)))
        (Path("set") / split / "a" / "5.png").write_bytes(b"")
    classify.main(["--data", "set", *OPTIONS])
    lines = capsys.readouterr().out.strip().splitlines()
    assert "1 left out: train/a/5.png in set is empty: replace it with an undamaged copy, or remove it." in lines
    assert next(line for line in lines if "test/a/5.png in set" in line).startswith("test images: 1 left out: ")
    assert lines[-1].startswith("set: validation error ")
    assert ", test error " in lines[-1]
