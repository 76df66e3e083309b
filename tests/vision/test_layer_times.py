"""Tests of vision.layer_times: files, compilation and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.models.classifier import make_classifier
from zerokara.vision import layer_times

TINY = (
    *("--backbone", "deep_cnn", "--image-size", "16", "--channels", "1", "--classes", "10", "--batch-size", "2"),
    *("--rounds", "2", "--no-compiled", "--device", "cpu", "--threads", "1"),
)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tables_figure_and_json(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer_times.main(TINY)
    printed = capsys.readouterr().out
    content = json.loads((empty_folder / "runs/layer-times/deep_cnn-cpu.json").read_text())
    names = [layer["name"] for layer in content["layers"] if layer["kind"] in {"convolution", "fully connected"}]
    assert names == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc7", "fc8"]
    assert all(layer[key] > 0 for layer in content["layers"] for key in ("float32", "bfloat16"))
    for precision in ("float32", "bfloat16"):
        seconds = dict.fromkeys(("convolution", "fully connected"), 0.0)
        for layer in content["layers"]:
            seconds[layer["kind"]] = seconds.get(layer["kind"], 0.0) + layer[precision]
        total, fractions = sum(seconds.values()), content["shares"][precision]
        assert fractions["convolution"] == pytest.approx(seconds["convolution"] / total)
        assert fractions["both"] == pytest.approx((seconds["convolution"] + seconds["fully connected"]) / total)
        assert fractions["convolution_without_connected"] == pytest.approx(
            seconds["convolution"] / (total - seconds["fully connected"])
        )
        assert f"{fractions['both']:.1%}" in printed
    assert list(content["whole"]) == ["float32", "float32 channels_last", "bfloat16", "bfloat16 channels_last"]
    assert all(0 < times["least"] <= times["median"] <= times["most"] for times in content["whole"].values())
    assert "runs/layer-times/deep_cnn-cpu.png" in printed
    with Image.open(empty_folder / "runs/layer-times/deep_cnn-cpu.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_tables_are_not_truncated_in_a_pipe(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)
    layer_times.main([word for word in TINY if word != "--no-compiled"])
    printed = capsys.readouterr().out
    assert "bfloat16 channels_last compiled" in printed
    assert "…" not in printed


def test_compiled_settings() -> None:
    base = Compute()
    assert [name for name, c in layer_times.candidates(base, compiled=False).items() if c.compile] == []
    compiled = {name: c for name, c in layer_times.candidates(base, compiled=True).items() if c.compile}
    assert list(compiled) == ["float32 compiled", "bfloat16 channels_last compiled"]
    assert compiled["bfloat16 channels_last compiled"].channels_last
    assert compiled["bfloat16 channels_last compiled"].precision == "bfloat16"


def test_convert_does_not_change_the_network() -> None:
    network = make_classifier("deep_cnn", 1, 16, 10)
    copied = layer_times.convert(network, Compute(precision="bfloat16", channels_last=True))
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not copied.training


def test_a_failing_compiler_gives_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("internal compiler error\nwith details")

    monkeypatch.setattr(torch, "compile", lambda network: Broken())
    network = make_classifier("deep_cnn", 1, 16, 10)
    computes = {"float32": Compute(), "float32 compiled": Compute(compile=True)}
    whole, remarks = layer_times.time_whole(network, torch.zeros(1, 1, 16, 16), computes, rounds=1)
    assert list(whole) == ["float32"]
    assert remarks == ["float32 compiled failed: internal compiler error"]


def test_each_layer_is_compiled_with_its_own_code_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a shared code object the compiler would fall back to eager mode after a few layers."""
    codes = []

    def compiled(run: Any, dynamic: bool) -> Any:
        codes.append(run.__code__)
        return run

    monkeypatch.setattr(torch, "compile", compiled)
    network = make_classifier("deep_cnn", 1, 16, 10)
    layers, remarks = layer_times.time_layers(network, torch.zeros(1, 1, 16, 16), Compute(), 1, compiled=True)
    assert remarks == []
    assert len(set(codes)) == len(layers)
    assert all(layer.compiled is not None and layer.compiled > 0 for layer in layers)
    assert list(layer_times.times_by_setting(layers)) == ["float32", "bfloat16", "bfloat16 compiled"]
    assert [column.header for column in layer_times.layer_table(layers).columns][-2] == "bfloat16 compiled ms"


def test_a_layer_that_cannot_be_compiled_gives_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(torch, "compile", lambda run, dynamic: broken)
    network = make_classifier("deep_cnn", 1, 16, 10)
    layers, remarks = layer_times.time_layers(network, torch.zeros(1, 1, 16, 16), Compute(), 1, compiled=True)
    assert remarks == [f"compilation of {layers[0].name} failed: no such kernel"]
    assert {layer.compiled for layer in layers} == {None}


def test_only_the_slowest_layers_are_plotted() -> None:
    layers = [layer_times.Layer(f"conv{n}", "convolution", 1e-3 * n, 1e-3) for n in range(1, 60)]
    figure = layer_times.draw(layers, {"float32": {"median": 1.0, "least": 0.9, "most": 1.1}}, "many")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"conv{n}" for n in range(60 - layer_times.MAX_BARS, 60)]
    assert f"without the {59 - layer_times.MAX_BARS} fastest" in figure.axes[0].get_title(loc="left")


def test_error_messages(empty_folder: Path) -> None:
    with pytest.raises(UserError, match=r"There is no backbone 'alexnett' \(did you mean alexnet\?\)"):
        layer_times.main(["--backbone", "alexnett", "--no-compiled", "--device", "cpu"])
    with pytest.raises(UserError, match="--batch-size cannot be 0"):
        layer_times.main(["--batch-size", "0"])
    assert list(empty_folder.iterdir()) == []
