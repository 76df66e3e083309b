"""Time by layer: names, what is run again, shares by hand, turns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zerokara.core.models.classifier import make_classifier
from zerokara.vision.studies import timing
from zerokara.vision.studies.timing import CONNECTED, CONVOLUTION, calls_of, median_seconds, shares


def test_alexnets_layers_are_numbered_as_in_the_paper() -> None:
    network = make_classifier("alexnet", 3, 64, 10, width=0.1).eval()
    calls = calls_of(network, torch.zeros(1, 3, 64, 64))
    names = [call.name for call in calls if call.kind not in {"dropout", "other"}]
    assert names == [
        *("conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3", "conv4", "relu4"),
        *("conv5", "relu5", "pool5", "fc6", "relu6", "fc7", "relu7", "fc8"),
    ]


def test_a_layer_is_run_again_on_its_own_input() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).eval()
    x = torch.randn(2, 1, 8, 8)
    calls = calls_of(network, x)
    assert [call.name for call in calls] == ["conv1", "norm1", "relu1", "pool1", "flatten1"]
    outs = [call.run() for call in calls]
    y = x
    with torch.no_grad():
        for layer, out in zip(network, outs, strict=True):
            y = layer(y)
            assert isinstance(out, torch.Tensor)
            assert torch.equal(out, y)


def test_sums_of_shortcuts_are_other_work() -> None:
    calls = calls_of(make_classifier("resnet8", 3, 32, 10).eval(), torch.zeros(1, 3, 32, 32))
    kinds = [call.kind for call in calls]
    assert kinds.count(CONVOLUTION) >= 7
    assert kinds.count(CONNECTED) == 1
    assert kinds.count("normalisation") == kinds.count(CONVOLUTION)
    assert "other" in kinds


def test_shares_by_hand() -> None:
    found = shares([(CONVOLUTION, 3.0), ("ReLU", 1.0), (CONVOLUTION, 2.0), (CONNECTED, 2.0), ("pooling", 2.0)])
    assert found.convolution == pytest.approx(0.5)
    assert found.connected == pytest.approx(0.2)
    assert found.both == pytest.approx(0.7)
    assert found.convolution_without_connected == pytest.approx(5 / 8)
    assert shares([(CONNECTED, 1.0)]).convolution_without_connected == 0.0
    with pytest.raises(ValueError, match="no time"):
        shares([(CONVOLUTION, 0.0)])


def test_competitors_take_turns_and_the_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0.0)
    order = []

    def work(name: str, *seconds: float) -> None:
        order.append(name)
        clock[0] += seconds[min(order.count(name), len(seconds)) - 1]

    found = median_seconds(
        {"a": lambda: work("a", 9.0, 1.0, 3.0, 2.0), "b": lambda: work("b", 0.5)}, rounds=3, warm_up=1
    )
    assert order == ["a", "b"] * 4
    assert found == {"a": [1.0, 3.0, 2.0], "b": [0.5, 0.5, 0.5]}


def test_short_work_is_repeated_until_the_clock_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0.0)
    ran: list[None] = []

    def work() -> None:
        ran.append(None)
        clock[0] += 0.125

    assert median_seconds({"a": work}, rounds=2, warm_up=1, least_seconds=0.5) == {"a": [0.125, 0.125]}
    assert len(ran) == 1 + 2 * 4
