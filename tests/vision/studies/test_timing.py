"""Tests of layer timing: names of layers, replaying a layer, fractions of the time, interleaved rounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zerokara.core.models.classifier import make_classifier
from zerokara.vision.studies import timing
from zerokara.vision.studies.timing import CONNECTED, CONVOLUTION, median_seconds, record_calls, time_fractions


def test_layers_of_alexnet_are_numbered_as_in_the_paper() -> None:
    network = make_classifier("alexnet", 3, 64, 10, width=0.1).eval()
    calls = record_calls(network, torch.zeros(1, 3, 64, 64))
    names = [call.name for call in calls if call.kind not in {"dropout", "other"}]
    assert names == [
        *("conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3", "conv4", "relu4"),
        *("conv5", "relu5", "pool5", "fc6", "relu6", "fc7", "relu7", "fc8"),
    ]


def test_a_recorded_layer_runs_again_on_its_own_input() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).eval()
    x = torch.randn(2, 1, 8, 8)
    calls = record_calls(network, x)
    assert [call.name for call in calls] == ["conv1", "norm1", "relu1", "pool1", "flatten1"]
    outs = [call.run() for call in calls]
    y = x
    with torch.no_grad():
        for layer, out in zip(network, outs, strict=True):
            y = layer(y)
            assert isinstance(out, torch.Tensor)
            assert torch.equal(out, y)


def test_additions_of_shortcuts_are_of_kind_other() -> None:
    calls = record_calls(make_classifier("resnet8", 3, 32, 10).eval(), torch.zeros(1, 3, 32, 32))
    kinds = [call.kind for call in calls]
    assert kinds.count(CONVOLUTION) >= 7
    assert kinds.count(CONNECTED) == 1
    assert kinds.count("normalization") == kinds.count(CONVOLUTION)
    assert "other" in kinds


def test_time_fractions_against_hand_computed_values() -> None:
    fractions = time_fractions(
        [(CONVOLUTION, 3.0), ("ReLU", 1.0), (CONVOLUTION, 2.0), (CONNECTED, 2.0), ("pooling", 2.0)]
    )
    assert fractions.convolution == pytest.approx(0.5)
    assert fractions.connected == pytest.approx(0.2)
    assert fractions.both == pytest.approx(0.7)
    assert fractions.convolution_without_connected == pytest.approx(5 / 8)
    assert time_fractions([(CONNECTED, 1.0)]).convolution_without_connected == 0.0
    with pytest.raises(ValueError, match="no time"):
        time_fractions([(CONVOLUTION, 0.0)])


def test_functions_are_interleaved_and_warmup_rounds_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0.0)
    order = []

    def work(name: str, *seconds: float) -> None:
        order.append(name)
        clock[0] += seconds[min(order.count(name), len(seconds)) - 1]

    functions = {"a": lambda: work("a", 9.0, 1.0, 3.0, 2.0), "b": lambda: work("b", 0.5)}
    seconds_by_name = median_seconds(functions, rounds=3, warmup_rounds=1, clock=lambda: clock[0])
    assert order == ["a", "b"] * 4
    assert seconds_by_name == {"a": [1.0, 3.0, 2.0], "b": [0.5, 0.5, 0.5]}


def test_short_functions_are_repeated_for_min_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0.0)
    ran: list[None] = []

    def work() -> None:
        ran.append(None)
        clock[0] += 0.125

    seconds_by_name = median_seconds({"a": work}, rounds=2, warmup_rounds=1, min_seconds=0.5, clock=lambda: clock[0])
    assert seconds_by_name == {"a": [0.125, 0.125]}
    assert len(ran) == 1 + 2 * 4
