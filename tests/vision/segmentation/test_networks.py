"""Tests of segmentation networks: parameter counts of the papers, upsampling, unpooling, sizes, pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.vision.segmentation.networks import (
    Fcn,
    bilinear_upsampling,
    center_fit,
    make_segmenter,
    stage_strides,
    unpool,
)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "backbone", "classes", "expected"),
    [
        ("fcn32s", "vgg16", 21, 136_152_917),
        ("fcn16s", "vgg16", 21, 134_815_994),
        ("fcn8s", "vgg16", 21, 134_489_759),
        ("segnet", "vgg16_bn", 11, 29_449_355),
    ],
)
def test_parameter_counts_match_the_papers(network: str, backbone: str, classes: int, expected: int) -> None:
    with torch.device("meta"):
        segmenter = make_segmenter(network, backbone=backbone, channels=3, image_size=(224, 224), classes=classes)
    assert parameters(segmenter) == expected


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_upsampling_is_initialized_to_bilinear_interpolation_and_trained(factor: int) -> None:
    x = torch.randn(2, 3, 5, 6)
    layer = bilinear_upsampling(3, factor)
    y = layer(x)
    assert y.shape == (2, 3, 5 * factor, 6 * factor)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = slice(factor, -factor)  # at the edges, one pads with zeros, the other repeats the edge
    assert torch.allclose(y[:, :, inside, inside], expected[:, :, inside, inside], atol=1e-5)
    assert layer.weight.requires_grad
    y.square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[0, 1].abs().sum() > 0


def test_unpooling_puts_maxima_at_their_positions() -> None:
    x = torch.tensor([[[[1.0, 5.0, 2.0], [0.0, 3.0, 9.0], [7.0, 8.0, 4.0]]]])
    pooled, index = F.max_pool2d(x, 2, return_indices=True)
    assert unpool(10 * pooled, index, x.shape[2:]).tolist() == [[[[0, 50, 0], [0, 0, 0], [0, 0, 0]]]]
    x = torch.randn(2, 3, 8, 6)
    pooled, index = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(unpool(pooled, index, x.shape[2:]), F.max_unpool2d(pooled, index, (2, 2)))


def test_center_fit_crops_and_pads() -> None:
    x = torch.arange(20.0).view(1, 1, 4, 5)
    assert torch.equal(center_fit(x, torch.Size((4, 5))), x)
    assert torch.equal(center_fit(x, torch.Size((2, 4))), x[:, :, 1:3, :4])
    padded = center_fit(x, torch.Size((6, 5)))
    assert torch.equal(padded[:, :, 1:5], x)
    assert torch.equal(padded[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vgg16", {}, [2, 4, 8, 16, 32]),
        ("resnet18", {"stem": "medium"}, [2, 4, 8, 16]),
        ("resnet18", {}, [2, 4, 8, 16, 32]),
        ("alexnet", {}, [8, 16, 32]),
        ("googlenet", {}, [2, 4, 8, 16, 32]),
        ("deep_cnn", {}, [2, 4, 8]),
        ("resnet20", {}, [1, 2, 4]),
    ],
)
def test_stage_strides(name: str, options: dict[str, str], expected: list[int]) -> None:
    assert stage_strides(name, 3, **options) == expected


@pytest.mark.parametrize(
    ("network", "backbone", "options"),
    [
        ("fcn32s", "vgg11", {"width": 0.1, "hidden_units": 8}),
        ("fcn8s", "alexnet", {"width": 0.1, "hidden_units": 8}),
        ("fcn4s", "deep_cnn", {"decoder_channels": 6}),
        ("fcn2s", "resnet18", {"width": 0.1, "stem": "medium", "decoder_channels": 6}),
        ("fcn8s", "googlenet", {"width": 0.1}),
        ("fcn2s", "resnet20", {"width": 0.5}),
        ("segnet", "vgg11_bn", {"width": 0.1}),
    ],
)
def test_many_backbones_and_image_sizes(network: str, backbone: str, options: dict[str, object]) -> None:
    segmenter = make_segmenter(network, backbone=backbone, channels=3, image_size=(64, 96), classes=5, **options).eval()  # type: ignore[arg-type]
    for height, width in ((64, 96), (70, 101), (128, 64)):
        x = torch.randn(1, 3, height, width)
        assert segmenter(x).shape == (1, 5, height, width)


@pytest.mark.parametrize("network", ["fcn8s", "segnet"])
def test_networks_are_translation_equivariant(network: str) -> None:
    """An image shifted by a multiple of the stride gives logits shifted by the same number of pixels."""
    torch.manual_seed(3)
    options = {"decoder_channels": 4, "hidden_units": 0} if network == "fcn8s" else {}
    segmenter = make_segmenter(
        network, backbone="vgg11_bn", channels=1, image_size=(256, 256), classes=3, width=0.1, **options
    ).eval()
    x = torch.zeros(1, 1, 256, 256)
    x[:, :, 96:128, 96:128] = torch.randn(32, 32)
    shifted = torch.roll(x, (32, 64), (2, 3))
    y, y_shifted = segmenter(x), segmenter(shifted)
    spread = (y - y[:, :, :1, :1]).abs().amax(1)[0]
    assert spread[90:134, 90:134].max() > 2 * spread[:, 200:].max(), "the logits are not where the image is"
    assert torch.allclose(
        torch.roll(y, (32, 64), (2, 3))[..., 96:192, 128:192], y_shifted[..., 96:192, 128:192], atol=1e-3
    )


def test_initial_scores_are_zero_and_every_weight_is_trained() -> None:
    segmenter = make_segmenter("fcn8s", backbone="vgg11", channels=3, image_size=(64, 64), classes=4, width=0.1)
    x = torch.randn(2, 3, 64, 64)
    assert segmenter(x).abs().max() == 0
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.1)
    for _ in range(3):  # the first step trains the score layers only, because their weights are 0
        optimizer.zero_grad()
        F.cross_entropy(segmenter(x), torch.randint(4, (2, 64, 64))).backward()
        optimizer.step()
    untrained = [
        name for name, weight in segmenter.named_parameters() if weight.grad is None or not weight.grad.abs().sum()
    ]
    assert untrained == []


def test_classifier_of_torchvision_becomes_convolutions(tmp_path: Path) -> None:
    """At the center of a 7x7 feature map, fc6 as a 7x7 convolution computes the same as the linear layer."""
    segmenter = make_segmenter("fcn32s", backbone="vgg11", channels=3, image_size=(224, 224), classes=4, width=0.125)
    assert isinstance(segmenter, Fcn)
    backbone = make_backbone("vgg11", 3, 224, width=0.125)
    head = backbone.paper_head(10, None).eval()
    state = {backbone.published_name(name): tensor for name, tensor in backbone.state_dict().items()} | dict(
        head.state_dict()
    )
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vgg.safetensors")
    reports = segmenter.load_published(tmp_path / "vgg.safetensors")
    assert reports[1:] == ["fc6 loaded from classifier.0", "fc7 loaded from classifier.3"]
    x = torch.randn(1, 3, 224, 224)
    features = backbone(x)
    assert torch.allclose(segmenter.backbone(x), features)
    hidden = segmenter.hidden.eval()(features)[:, :, 3, 3]
    linear = head.get_submodule("classifier")[:6](features.flatten(1))  # type: ignore[index]
    assert torch.allclose(hidden, linear, atol=1e-4)
    segmenter = make_segmenter(
        "fcn32s", backbone="vgg11", channels=3, image_size=(224, 224), classes=4, width=0.125, hidden_units=7
    )
    assert segmenter.load_published(tmp_path / "vgg.safetensors")[1].startswith("fc6 keeps its random initialization")


def test_the_backbone_of_another_network_is_loaded(tmp_path: Path) -> None:
    segmenter = make_segmenter("segnet", backbone="vgg11_bn", channels=3, image_size=(64, 64), classes=4, width=0.1)
    other = make_segmenter("fcn8s", backbone="vgg11_bn", channels=3, image_size=(64, 64), classes=9, width=0.1)
    save_file(dict(other.state_dict()), tmp_path / "model.safetensors")
    loaded = load_pretrained_backbone(segmenter.backbone, tmp_path / "model.safetensors")
    assert loaded.missing == ()
    assert torch.equal(
        segmenter.backbone.state_dict()["layers.0.weight"], other.backbone.state_dict()["layers.0.weight"]
    )


@pytest.mark.parametrize(
    ("network", "backbone", "message"),
    [
        ("fcn8s", "resnet21", "6n"),
        ("segnet", "resnet18", r"not a VGG.*vgg16_bn"),
        ("fcn16s", "deep_cnn", r"no feature map of stride 16.*fcn2s, fcn4s, fcn8s"),
        ("unet", "vgg16", "no network 'unet'"),
    ],
)
def test_invalid_networks_are_rejected(network: str, backbone: str, message: str) -> None:
    with pytest.raises(UserError, match=message), torch.device("meta"):
        make_segmenter(network, backbone=backbone, channels=3, image_size=(64, 64), classes=4)
