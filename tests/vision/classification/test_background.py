"""Test that a run of transparent images has one background, which is printed, saved, and used for predictions."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zerokara.core import data
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet
from zerokara.core.data.backgrounds import with_background
from zerokara.core.data.sources import training_lumas
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.vision import classify
from zerokara.vision.classification.config import Config

TINY = (
    *("--validation-images", "4", "--epochs", "1", "--batch-size", "8", "--width-multiplier", "0.25"),
    *("--device", "cpu", "--precision", "float32", "--compile", "off", "--threads", "1"),
)


@pytest.fixture
def icons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write two classes of icons with transparency, one of them nearly white; the others are neither."""
    monkeypatch.chdir(tmp_path)
    for name, level in (("a", 240), ("b", 128)):
        (tmp_path / "icons" / name).mkdir(parents=True)
        for index in range(20):
            icon = Image.new("LA", (28, 28), (0, 0))
            icon.paste((level, 255), (8 + index % 5, 8, 20, 20))
            icon.save(tmp_path / "icons" / name / f"{index:02}.png")
    return "icons"


@pytest.mark.usefixtures("blank_figures")
def test_one_background_is_chosen_printed_saved_and_kept(
    icons: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corners: list[set[int]] = []
    load = data.load

    def recording(*words: Any, **options: Any) -> ImageSet:
        images = load(*words, **options)
        corners.append(set(images.images[:, 0, 0, 0].tolist()))
        return images

    monkeypatch.setattr(data, "load", recording)
    line = "icons: 36 images with transparency, all placed on black (18 cannot be told from white, 0 from black); "
    classify.main(["--data", icons, "--name", "run", *TINY])
    assert line in capsys.readouterr().out
    assert json.loads(Path("runs/run/config.json").read_text())["config"]["background"] == "black"
    metadata = ClassifierMetadata.read_metadata(Path("runs/run"))
    assert metadata is not None
    assert metadata.background == "black"
    classify.main(["--data", icons, "--name", "run", "--background", "auto", "--resume"])  # the default, stated
    assert line not in capsys.readouterr().out
    assert corners == [{0}, {0}, {0}], "training and test images, and those of the resumed run"
    with pytest.raises(UserError, match="started with --background black and cannot be resumed with white"):
        classify.main(["--name", "run", "--background", "white", "--resume"])


def test_a_background_that_was_given_or_saved_is_kept(icons: str) -> None:
    """A run of an older release is resumed with a contrasting background for each image."""
    config = Config(data=icons, quiet=True)
    assert with_background(config, partial(training_lumas, config.data))[0].background == "black"
    for kept in (Config(data=icons, background="white"), Config(data=icons, resume=True), Config(data="glyphs")):
        assert with_background(kept, partial(training_lumas, kept.data)) == (kept, [])
