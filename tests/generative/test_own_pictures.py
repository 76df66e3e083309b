"""A run on pictures of one's own, of several sizes: the image size is chosen, saved, and kept when it is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.generative.finished_run import HERE, TINY
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
    words = ["--name", "own", "--eval-every-updates", "4", "--no-quiet"]
    dcgan.main([*TINY, "--data", "photos", "--held-out-images", "8", *words])
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "photos: the images have 7 sizes, from 36x30 to 36x36 pixels; they are resized to cover 32x32 pixels" in said
    assert "208 training images are few: in 4 updates" in said
    assert json.loads(Path("runs/own/config.json").read_text())["config"]["image_size"] == [32]
    dcgan.main(["--name", "own", "--resume", "--updates", "6", "--quiet"])
    assert Sampler.load("runs/own", "last", threads=1).update == 6
    metrics.main(["runs/own", "--images", "100", "--split", "test", "--json", *HERE])
    assert '"run": "own"' in capsys.readouterr().out
