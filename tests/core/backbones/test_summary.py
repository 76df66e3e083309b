"""Tests of the layer table: exact parameter counts, rows for blocks of deep networks, auxiliary heads."""

from __future__ import annotations

import pytest
import torch

from zerokara.core.backbones.summary import MAX_ROWS, short, summary
from zerokara.core.models.classifier import make_classifier


def rows(backbone: str, channels: int, size: int, classes: int = 10) -> dict[str, list[str]]:
    """Return the cells of each row, by the layer's name."""
    with torch.device("meta"):
        classifier = make_classifier(backbone, channels, size, classes)
    page = summary(classifier, (1, channels, size, size))
    lines = [line.split() for line in page.splitlines() if line.strip() and "─" not in line]
    return {cells[0]: cells[1:] for cells in lines}


def test_deep_cnn() -> None:
    costs = rows("deep_cnn", 1, 28)
    assert costs["sum"][0] == "123,552"
    # 160 weights; 28 x 28 positions x 9 inputs x 16 channels multiply-adds; the receptive field is 3 x 3.
    assert costs["backbone.layers.0"] == ["Conv2d", "16x28x28", "160", "113", "k", "3"]
    assert costs["backbone.layers.7"][:3] == ["WidelyPadded", "32x16x16", "9,248"]
    assert costs["backbone.layers.13"][:3] == ["MaxPool2d", "64x4x4", "0"]
    assert costs["head.classifier.3"][:3] == ["Linear", "10", "510"]


def test_deep_networks_have_a_row_per_block() -> None:
    costs = rows("resnet18", 3, 224, 1000)
    assert len(costs) < MAX_ROWS
    assert costs["sum"][0] == "11,689,512"
    assert costs["backbone.layer4"][:4] == ["10", "layers", "512x7x7", "8,393,728"]
    inception = rows("googlenet", 3, 224, 1000)
    assert inception["backbone.inception3a"][2] == "256x28x28", "the channels of all branches, not only of the last"
    assert inception["sum,"][-3:] == ["13,004,888", "1.5", "G"], (
        "the sum includes the auxiliary heads, which the forward pass does not use"
    )


@pytest.mark.parametrize("backbone", ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"])
def test_sequential_backbones_have_a_row_per_layer(backbone: str) -> None:
    costs = rows(backbone, 3, 224, 1000)
    assert costs["backbone.layers.0"][:2] == ["Conv2d", "64x224x224"]
    convolutions = [name for name, cells in costs.items() if cells[0] == "Conv2d"]
    assert len(convolutions) == int(backbone.removeprefix("vgg").removesuffix("_bn")) - 3


def test_short_numbers() -> None:
    assert [short(number) for number in (7, 1_500, 2_000_000, 1_814_073_344)] == ["7", "1.5 k", "2 M", "1.81 G"]
