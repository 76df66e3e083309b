"""Tests of vision.precision: int8 against hand-computed values and float32, files and errors."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from zerokara.core.config import UserError
from zerokara.core.models import onnx_file
from zerokara.vision import precision
from zerokara.vision.studies import int8
from zerokara.vision.studies.finished_run import load_trained

QUICK = ("--rounds", "2", "--batch-size", "20", "--device", "cpu", "--threads", "1")
INT8 = ("--calibration", "200")


class SmallNetwork(nn.Module):
    """Convolution whose output ranges are easy to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -0.5]).view(2, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        map_BCHW: Tensor = self.conv(x)
        return map_BCHW.flatten(1)


def test_int8_against_hand_computed_values(tmp_path: Path) -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 2.55]).view(1, 1, 2, 2)
    onnx_file.write(
        SmallNetwork().eval(), {int8.IMAGES: torch.zeros(2, 1, 2, 2)}, int8.LOGITS, tmp_path / "float32.onnx", {}
    )
    exact = int8.open_session(tmp_path / "float32.onnx", threads=1)(x.numpy())
    np.testing.assert_allclose(exact, [[0, 1, 2, 2.55, 0, -0.5, -1, -1.275]], rtol=1e-6)

    int8.quantize(tmp_path / "float32.onnx", [x], tmp_path / "int8.onnx")
    session = int8.open_session(tmp_path / "int8.onnx", threads=1)
    # Inputs have the range 0 to 2.55 and a step of 0.01, outputs the range -1.275 to 2.55 and a step of 0.015.
    np.testing.assert_allclose(session(x.numpy()), exact, atol=0.0075 + 0.005)
    step = 3.825 / 255
    outputs = session(torch.tensor([0.3, 0.77, 1.234, 2.2]).view(1, 1, 2, 2).numpy()) / step
    np.testing.assert_allclose(outputs, outputs.round(), atol=1e-3)
    # Values outside of the calibrated range are clipped.
    np.testing.assert_allclose(session(x.numpy() * 10)[0, :4], [0, 2.55, 2.55, 2.55], atol=0.0075)
    assert int8.count_operations(tmp_path / "int8.onnx")["QLinearConv"] == 1
    assert int8.count_operations(tmp_path / "float32.onnx")["QLinearConv"] == 0


def test_table_figure_json_and_int8_network(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precision.main([str(tiny_run), *QUICK, *INT8])
    printed = capsys.readouterr().out
    content = json.loads((tiny_run / "precision-validation.json").read_text())
    results = {(row["precision"], row["by"]): row for row in content["results"]}
    assert list(results) == [
        *(("float32", "PyTorch"), ("bfloat16", "PyTorch"), ("float16", "PyTorch")),
        *(("float32", "ONNX Runtime"), ("int8", "ONNX Runtime")),
    ]
    trained = load_trained(tiny_run, threads=1)
    images = trained.images("validation")
    first = results["float32", "PyTorch"]
    assert first["error"] == trained.score(images).error
    assert first["agrees"] == 1.0
    assert results["float32", "ONNX Runtime"]["agrees"] == 1.0
    for row in results.values():
        assert row["agrees"] >= 0.97
        assert abs(row["error"] - first["error"]) <= 1 - row["agrees"] + 1e-9
        assert 0 < row["slowest"] <= row["images_per_s"] <= row["quickest"]
        assert f"{row['error']:.2%}" in printed
    # 123,552 weights of 4, 2, and 1 bytes, plus headers.
    assert 494_208 < first["size_bytes"] < 497_000
    assert 247_104 < results["float16", "PyTorch"]["size_bytes"] < 250_000
    assert 247_104 < results["bfloat16", "PyTorch"]["size_bytes"] < 250_000
    assert 123_552 < results["int8", "ONNX Runtime"]["size_bytes"] < 170_000
    assert "in int8: 6 of 6 convolutions, 2 of 2 fully connected layers" in printed

    session = int8.open_session(tiny_run / "model-int8.onnx", threads=1)
    logits = session(trained.metadata.normalize_uint8(images.images).numpy())
    error = float((logits.argmax(1) != images.labels.numpy()).mean())
    assert error == pytest.approx(results["int8", "ONNX Runtime"]["error"])
    with Image.open(tiny_run / "precision-validation.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_onnxruntime_is_not_needed_without_int8(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    words = "int8 needs onnxruntime, which is not installed: pip install .*, or leave int8 out with --no-int8"
    with pytest.raises(UserError, match=words):
        precision.main([str(tiny_run), *QUICK, *INT8])
    precision.main([str(tiny_run), "--no-int8", "--out", "out", *QUICK])
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "precision-validation.json",
        "precision-validation.png",
    ]


def test_the_faster_layout_is_reported(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_trained(tiny_run, threads=1)
    images = trained.images("validation").take(slice(0, 40))
    seconds = [[2.0, 3.0, 1.0], [0.5, 1.0, 0.25], [4.0, 4.0, 4.0], [5.0, 5.0, 5.0]]
    monkeypatch.setattr(precision, "median_seconds", lambda work, rounds, **_: dict(enumerate(seconds)))
    candidates = precision.torch_candidates(trained)[:4]
    assert [c.layout for c in candidates] == ["contiguous", "channels_last"] * 2
    results = precision.compare(candidates, trained, images, precision.Options(batch_size=20))
    assert [(r.precision, r.layout) for r in results] == [("float32", "channels_last"), ("bfloat16", "contiguous")]
    assert (results[0].images_per_s, results[0].slowest, results[0].quickest) == (40.0, 20.0, 80.0)
    assert results[1].images_per_s == 5.0


def test_float16_and_bfloat16_have_their_rounding_errors(tiny_run: Path) -> None:
    trained = load_trained(tiny_run, threads=1)
    x = trained.metadata.normalize_uint8(trained.images("validation").images[:50])
    with torch.no_grad():
        logits = {c.precision: c.run(x) for c in precision.torch_candidates(trained)}
    assert {out.dtype for out in logits.values()} == {torch.float32}
    errors = {name: float((out - logits["float32"]).abs().max()) for name, out in logits.items()}
    assert 10 * errors["float32"] < errors["float16"] < errors["bfloat16"]  # 24, 11 and 8 bits of mantissa
    assert dataclasses.asdict(trained.metadata) == dataclasses.asdict(load_trained(tiny_run, threads=1).metadata)


def test_error_messages(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="No run was given"):
        precision.main([])
    with pytest.raises(UserError, match="--rounds cannot be 0"):
        precision.main([str(tiny_run), "--rounds", "0"])
