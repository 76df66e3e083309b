"""A run on pictures of one's own, of several sizes: the image size is chosen, saved, and kept when it is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.generative.finished_run import HERE, TINY
from zerokara.core.config import UserError
from zerokara.generative import dcgan, metrics
from zerokara.generative.gan.sampler import Sampler

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_a_run_on_pictures_of_several_sizes_is_resumed_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(240):  # the test images, every tenth, have one size
        size = (32, 32) if index % 10 == 0 else (30 + index % 7, 36)
        pixels = random.integers(256, size=size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index:03}.png")
    Image.new("LA", (36, 31), (255, 0)).save(tmp_path / "photos" / "002.png")  # nothing is visible
    white = Image.new("LA", (36, 31), (255, 0))
    white.putpixel((5, 5), (255, 255))
    white.save(tmp_path / "photos" / "001.png")
    words = ["--name", "own", "--eval-every-updates", "4", "--no-quiet"]
    dcgan.main([*TINY, "--data", "photos", "--held-out-images", "8", *words])
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "photos: the images have 7 sizes, from 36x30 to 36x36 pixels; they are resized to cover 32x32 pixels" in said
    assert "208 training images are few: in 4 updates" in said
    saved = json.loads(Path("runs/own/config.json").read_text())["config"]
    assert saved["image_size"] == [32]
    assert saved["background"] == "black"
    assert saved["diffaugment"] == ["color", "translation", "cutout"]
    (tmp_path / "photos" / "001.png").unlink()  # the picture by which the background was chosen
    dcgan.main(["--name", "own", "--resume", "--updates", "6", "--quiet"])
    assert Sampler.load("runs/own", "last", threads=1).config.background == "black"
    assert Sampler.load("runs/own", "last", threads=1).update == 6
    metrics.main(["runs/own", "--images", "100", "--split", "test", "--json", *HERE])
    assert '"run": "own"' in capsys.readouterr().out


def test_too_few_pictures_create_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(20):
        Image.new("L", (300, 300), index).save(tmp_path / "photos" / f"{index:03}.png")
    with pytest.raises(UserError, match="18 images, too few for training: at least 79 are needed"):
        dcgan.main(["--data", "photos", "--quiet"])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
