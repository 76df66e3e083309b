"""Tests of vision.export: exported files are compared with the original network before they are moved."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.classifiers import DIGITS
from tests.markers import needs_onnx
from zerokara.core.config import UserError
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.vision import export


def save_run(folder: Path, metadata: ClassifierMetadata = DIGITS) -> Path:
    torch.manual_seed(0)
    classifier = metadata.build()
    for p in classifier.parameters():  # an untrained network has nearly the same output for all images
        p.data.mul_(1.7)
    folder.mkdir()
    metadata.save(folder / "model.safetensors", classifier.state_dict())
    return folder


@needs_onnx
@pytest.mark.usefixtures("onnx_operators")
def test_onnx_file_gives_the_same_probabilities_for_any_batch_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    folder = save_run(tmp_path / "small")
    export.main([str(folder), "--images", "32"])
    printed = capsys.readouterr().out
    assert "0 of 32 predictions differ" in printed
    path = folder / "export" / "small.onnx"
    assert f"{path}: " in printed
    onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(DIGITS.classes)
    classifier, metadata = ClassifierMetadata.load(folder / "export" / "small.safetensors")
    for batch in (1, 3, 50):
        pixels = torch.rand(batch, 1, 28, 28)
        with torch.no_grad():
            expected = classifier(metadata.normalize(pixels)).softmax(1).numpy()
        np.testing.assert_allclose(session.run(None, {"pixels": pixels.numpy()})[0], expected, atol=1e-5)


def test_float16_file_is_half_as_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_run(tmp_path / "small")
    export.main([str(folder), "--no-onnx", "--half", "--images", "20", "--out", str(tmp_path / "out")])
    half = tmp_path / "out" / "small.safetensors"
    assert half.stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    assert "largest difference" in capsys.readouterr().out
    assert [path.name for path in half.parent.iterdir()] == ["small.safetensors"]


def test_a_file_with_other_outputs_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_run(tmp_path / "small")
    read = ClassifierMetadata.load

    def load_damaged(path: Path) -> tuple[nn.Module, ClassifierMetadata]:
        classifier, metadata = read(path)
        if path.parent != folder:  # the written file, not the original
            next(classifier.parameters()).data.fill_(float("nan"))
        return classifier, metadata

    monkeypatch.setattr(ClassifierMetadata, "load", load_damaged)
    with pytest.raises(UserError, match="differs by"):
        export.main([str(folder), "--no-onnx"])
    assert not (folder / "export").exists()


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_run(tmp_path / "small")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError, match="onnxscript, which is not installed: pip install onnx onnxscript onnxruntime"):
        export.main([str(folder)])


def test_images_must_fit_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No classifier was given"):
        export.main([])
    wide = save_run(tmp_path / "wide", dataclasses.replace(DIGITS, image_size=(28, 32)))
    with pytest.raises(UserError, match="the network takes"):
        export.main([str(wide), "--no-onnx"])
    folder = save_run(tmp_path / "small")
    with pytest.raises(UserError, match="is the file to be exported"):
        export.main([str(folder / "model.safetensors"), "--no-onnx", "--out", str(folder)])
