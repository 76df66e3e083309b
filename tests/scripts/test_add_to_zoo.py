"""Tests of scripts/add_to_zoo.py: rounding, evaluation, size limit and metadata."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts import add_to_zoo
from zerokara.core.config import UserError, to_dict
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.zoo import registry as zoo
from zerokara.vision.classification.config import Config

METADATA = ClassifierMetadata(
    backbone="deep_cnn",
    head="paper",
    classes=tuple("0123456789"),
    channels=1,
    image_size=(28, 28),
    mean=(0.13,),
    std=(0.3,),
    options={"width": 0.25},
    command="python -m vision.classify --width-multiplier 0.25",
    data="glyphs, files in /home/somebody",
    figures={"validation_error": 0.9, "test_error": 0.91},
)


def save_run(folder: Path, metadata: ClassifierMetadata = METADATA) -> Path:
    folder.mkdir()
    config = to_dict(Config(validation_images=100, width_multiplier=0.25))
    (folder / "config.json").write_text(json.dumps({"kind": "classify", "config": config, "extra": {}}))
    metadata.save(folder / "model.safetensors", metadata.build().state_dict())
    return folder


def test_a_run_is_added_to_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = save_run(tmp_path / "run"), tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.setattr(zoo, "FOLDER", folder)
    zoo.files.cache_clear()
    add_to_zoo.main([str(run), "small-digits", "--threads", "1"])
    assert "command: python -m vision.classify --width-multiplier 0.25" in capsys.readouterr().out
    classifier, metadata = zoo.load("small-digits")
    original, _ = ClassifierMetadata.load(run / "model.safetensors")
    for rounded, exact in zip(classifier.parameters(), original.parameters(), strict=True):
        assert torch.equal(rounded, exact.half().float())
    assert metadata.data == "glyphs"
    assert set(metadata.figures) == {"validation_error", "test_error", "validation_error_float16"}
    assert 0.5 < metadata.figures["validation_error_float16"] <= 1, "an untrained network has a high error"
    with pytest.raises(UserError, match="already has small-digits"):
        add_to_zoo.main([str(run), "small-digits"])
    zoo.files.cache_clear()


def test_error_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run")
    for words, message in (
        ([str(run)], "a name for the zoo"),
        ([str(run), "Digits!"], "cannot be 'Digits!'"),
        ([str(tmp_path / "none"), "digits"], "There is no run"),
        ([str(run), "digits", "--folder", str(tmp_path / "nowhere")], "There is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            add_to_zoo.main([*words, "--folder", str(tmp_path)] if "--folder" not in words else words)
    unfinished = save_run(tmp_path / "unfinished", dataclasses.replace(METADATA, figures={}))
    with pytest.raises(UserError, match="is not finished"):
        add_to_zoo.main([str(unfinished), "digits", "--folder", str(tmp_path)])
    monkeypatch.setattr(zoo, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"limit of the zoo is 0\.001 MB"):
        add_to_zoo.main([str(run), "digits", "--folder", str(tmp_path)])
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_network_that_is_worse_in_float16_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run")
    before_and_after = iter([SimpleNamespace(error=error) for error in (0.01, 0.03, 0.01, 0.02)])
    monkeypatch.setattr(add_to_zoo, "score", lambda *args, **options: next(before_and_after))
    with pytest.raises(UserError, match="Rounded to float16"):
        add_to_zoo.main([str(run), "digits", "--folder", str(tmp_path)])
    assert not list(tmp_path.glob("*.safetensors"))
    add_to_zoo.main([str(run), "digits", "--folder", str(tmp_path)])  # an increase by one image is allowed
    assert list(tmp_path.glob("*.safetensors"))
