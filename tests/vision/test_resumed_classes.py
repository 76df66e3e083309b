"""Tests that vision.classify and vision.binary resume with their classes, in folders of StyleGAN's tool."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.media import write_png
from zerokara.vision import binary, classify

pytestmark = pytest.mark.usefixtures("blank_figures")

WORDS = ("--data", "set", "--epochs", "1", "--batch-size", "8", "--validation-images", "4", "--quiet", "--name", "run")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write images in two folders that are not their classes."""
    monkeypatch.chdir(tmp_path)
    for program in (binary, classify):
        monkeypatch.setattr(program, "choose_compute", lambda *_: Compute(device="cpu", threads=1))
    random = np.random.default_rng(0)
    labels = []
    for index in range(40):
        path = f"{index // 20:05}/img{index:08}.png"
        Path("set", path).parent.mkdir(parents=True, exist_ok=True)
        write_png(Path("set", path), random.integers(0, 256, (28, 28), np.uint8))
        labels.append([path, index % 3])
    Path("set/dataset.json").write_text(json.dumps({"labels": labels}))


@pytest.mark.parametrize("program", [classify, binary])
def test_a_run_that_took_the_folders_for_its_classes_keeps_them_or_stops(program: ModuleType) -> None:
    table = Path("set/dataset.json").rename("elsewhere.json")
    program.main(WORDS)
    path = Path("runs/run/config.json")
    content = json.loads(path.read_text())
    assert content["extra"].pop("classes") == ["00000", "00001"]
    path.write_text(json.dumps(content))  # as an older release wrote it, for which dataset.json meant nothing
    table.rename("set/dataset.json")
    with pytest.raises(UserError, match=r"with the classes 00000, 00001, but .* has 0, 1, 2 .*move dataset\.json"):
        program.main(["--name", "run", "--resume", "--quiet"])
    Path("set/dataset.json").unlink()
    program.main(["--name", "run", "--resume", "--quiet"])
