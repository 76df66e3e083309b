"""Network of a detector, its model file, and its detections."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.vision.detection.config import Method
from zerokara.vision.detection.detector import Detector, DetectorMetadata, Svm
from zerokara.vision.detection.network import (
    MEASURED_SIDE,
    RegionNet,
    choose_stage,
    remove_last_pool,
    remove_unused_layers,
)
from zerokara.vision.detection.selective_search import SearchSettings

COMPUTE = Compute(threads=1)
METADATA = DetectorMetadata(
    method="fast-rcnn",
    backbone="resnet20",
    classes=("disc", "square"),
    image_side=96,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    stride=4,
    bins=3,
    units=16,
    dropout=0.5,
    crop_side=32,
    crop_context=2,
    proposals=50,
    search=SearchSettings(colours=("rgb",)),
    options={"width": 0.5},
)


# ---- backbone


@pytest.mark.parametrize(
    ("name", "options", "stride", "found", "channels"),
    [
        ("resnet18", {}, 8, 8, 128),
        ("resnet18", {"stem": "medium", "width": 0.5}, 8, 8, 128),
        ("resnet50", {}, 16, 16, 1024),
        ("vgg11", {}, 16, 16, 512),  # RoI pooling replaces its last pooling, so conv5 has stride 16
        ("vgg11", {}, 32, 16, 512),
        ("vgg11", {}, 8, 8, 256),
        ("alexnet", {}, 16, 16, 256),
        ("googlenet", {}, 16, 16, 832),
        ("deep_cnn", {}, 8, 4, 64),
        ("resnet20", {}, 8, 4, 64),
        ("nature", {}, 8, 8, 64),
        ("impala", {}, 8, 8, 32),
    ],
)
def test_backbones_are_cut_at_the_requested_stride(
    name: str, options: dict[str, object], stride: int, found: int, channels: int
) -> None:
    backbone = make_backbone(name, 3, MEASURED_SIDE, **options)
    remove_last_pool(backbone)
    stage, actual_stride, actual_channels = choose_stage(backbone, stride)
    assert (actual_stride, actual_channels) == (found, channels)
    x = torch.rand(1, 3, 64, 96)
    backbone.eval()
    before = backbone.stages(x)[stage]
    remove_unused_layers(backbone, stage)
    assert torch.equal(backbone.stages(x)[stage], before)
    backbone.stages(x)[stage].sum().backward()
    assert all(weight.grad is not None for weight in backbone.parameters()), "an unused layer was not removed"


def test_a_stride_below_that_of_the_backbone_is_refused() -> None:
    with pytest.raises(UserError, match=r"use --stride 4"):
        RegionNet("nature", 2, stride=1)


def test_freezing_keeps_batch_norm_statistics() -> None:
    net = RegionNet("resnet20", 2, stride=4, width=0.5)
    norm = next(layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    net.freeze_norm()
    net.train().maps(torch.rand(1, 3, 32, 32))
    assert torch.equal(before, norm.running_mean)
    net.freeze_norm(False)
    net.train().maps(torch.rand(1, 3, 32, 32))
    assert not torch.equal(before, norm.running_mean)


def test_regions_of_a_batch_equal_those_of_single_images() -> None:
    net = RegionNet("resnet20", 2, stride=4, width=0.5, bins=3, hidden_units=16).eval()
    x = torch.rand(2, 3, 48, 64)
    boxes = torch.tensor([[0.0, 0, 30, 30], [10, 5, 60, 40], [3, 3, 20, 40]])
    logits, codes = net(x, boxes, torch.tensor([0, 1, 1]))
    assert logits.shape == (3, 3)
    assert codes.shape == (3, 2, 4)
    alone, _ = net(x[1:], boxes[1:], torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(logits[1:], alone, atol=1e-5, rtol=1e-4)


# ---- detector


@pytest.mark.parametrize("method", ["fast-rcnn", "rcnn"])
def test_a_loaded_detector_gives_the_same_detections(method: Method, tmp_path: Path) -> None:
    metadata = dataclasses.replace(METADATA, method=method, figures={"test_map_50": 0.5})
    detector = Detector(metadata)
    nn.init.normal_(detector.net.classify.weight, std=0.05)
    if detector.svm is not None:
        detector.svm.weight.normal_()
        detector.svm.ridge.normal_(std=0.01)
    detector.metadata.save(tmp_path / "model.safetensors", detector.state_dict())
    again, _ = DetectorMetadata.load(tmp_path)
    assert again.metadata == metadata
    assert not again.training
    canvas = torch.randint(256, (3, 60, 80), dtype=torch.uint8)
    proposals = torch.tensor([[0.0, 0, 30, 30], [10, 5, 60, 40], [3, 3, 20, 40], [40, 10, 79, 59]])
    one, other = (each.detect(canvas, proposals, COMPUTE, min_score=0) for each in (detector.eval(), again))
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)
    assert len(one.scores) > 1
    assert ((one.boxes >= 0) & (one.boxes <= torch.tensor([80.0, 60, 80, 60]))).all()
    assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
    assert len(one.above(float(one.scores[1])).scores) == 2
    assert len(detector.detect(canvas, proposals[:0], COMPUTE).scores) == 0


def test_svm_scores_and_codes_by_hand() -> None:
    svm = Svm(2, 2)
    svm.scale.fill_(2.0)
    svm.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    svm.bias.copy_(torch.tensor([0.0, 1.0]))
    svm.ridge[1] = torch.tensor([[1.0, 0, 5], [0, 1, 6], [0, 0, 7], [0, 0, 8]])
    scores, codes = svm(torch.tensor([[0.5, 2.0]]))
    torch.testing.assert_close(scores, torch.tensor([[1.0, -3.0]]).sigmoid())
    assert codes.tolist() == [[[0, 0, 0, 0], [5.5, 8, 7, 8]]]


def test_files_without_a_detector_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        DetectorMetadata.load(tmp_path)
    with pytest.raises(UserError, match="There is no"):
        DetectorMetadata.load(tmp_path / "nothing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a model file")
    with pytest.raises(UserError, match="damaged"):
        DetectorMetadata.load(tmp_path / "broken.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", {"format": "zerokara-classifier-1"})
    with pytest.raises(UserError, match="is not a detector"):
        DetectorMetadata.load(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "card.safetensors", {"format": DetectorMetadata.FORMAT, "card": "{}"})
    with pytest.raises(UserError, match=r"metadata of .* is invalid"):
        DetectorMetadata.load(tmp_path / "card.safetensors")
