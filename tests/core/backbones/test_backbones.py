"""Tests of all backbones: the interface of the base class, and the architecture of each paper."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from zerokara.core.backbones.deep_cnn import WidelyPadded
from zerokara.core.backbones.registry import BACKBONES, make_backbone
from zerokara.core.config import UserError

ATARI = ["nature", "nips", "der", "impala"]
SMALL = [*ATARI, "hadamax", "deep_cnn", "resnet20", "plain20", "dcgan", "r3"]
NARROW: dict[str, dict[str, Any]] = {
    **{name: {"width": 0.0625} for name in ("vgg11", "vgg16_bn", "googlenet", "resnet18", "resnet50")},
    "efficientnet_lite0": {"width": 0.25},
    "alexnet": {"width": 0.0625, "stem": "medium"},  # the paper stem reduces 48 pixels to nothing
}
NAMES = [*SMALL, *NARROW]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("image_size", [84, (64, 48), (40, 96)])
@pytest.mark.parametrize("name", NAMES)
def test_interface(name: str, image_size: int | tuple[int, int]) -> None:
    backbone = make_backbone(name, 3, image_size, **NARROW.get(name, {}))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert backbone.image_size == (height, width)
    assert backbone.in_channels == 3
    x = torch.rand(2, 3, height, width)
    maps = backbone.stages(x)
    assert len(maps) > 1
    sizes = [m.shape[2] * m.shape[3] for m in maps]
    assert all(fine > coarse for fine, coarse in pairwise(sizes)), "from fine to coarse"
    assert torch.equal(backbone(x), maps[-1])
    assert tuple(maps[-1].shape) == (2, backbone.out_channels, *backbone.out_size)
    assert backbone.features == maps[-1][0].numel()
    # The shapes are measured without moving the weights to the meta device, so that they can be trained.
    assert all(p.device.type == "cpu" and p.requires_grad for p in backbone.parameters())
    maps[-1].sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("dcgan", "r3", "hadamax")]
)  # end in leaky ReLU, in no activation, and in a product
def test_last_feature_map_is_nonnegative(name: str) -> None:
    last = make_backbone(name, 1, 64, **NARROW.get(name, {}))(torch.randn(4, 1, 64, 64))
    assert last.min() == 0
    assert last.max() > 0


@pytest.mark.parametrize(
    ("name", "channels", "size", "features", "number"),
    [
        ("nature", 64, (7, 7), 3_136, 8_224 + 32_832 + 36_928),
        ("nips", 32, (9, 9), 2_592, 4_112 + 8_224),
        # 3x3 convolutions: 4 to 16 and four of 16; 16 to 32 and four of 32; five of 32.
        ("impala", 32, (11, 11), 3_872, (592 + 4 * 2_320) + (4_640 + 4 * 9_248) + 5 * 9_248),
    ],
)
def test_sizes_and_parameter_counts_of_the_paper(
    name: str, channels: int, size: tuple[int, int], features: int, number: int
) -> None:
    backbone = make_backbone(name, 4, 84)
    assert (backbone.out_channels, backbone.out_size, backbone.features) == (channels, size, features)
    assert parameters(backbone) == number


def test_shapes_of_all_stages() -> None:
    x = torch.rand(1, 4, 84, 84)
    shapes = {name: [tuple(m.shape[1:]) for m in BACKBONES[name](4, 84).stages(x)] for name in ATARI}
    assert shapes["nature"] == [(32, 20, 20), (64, 9, 9), (64, 7, 7)]
    assert shapes["nips"] == [(16, 20, 20), (32, 9, 9)]
    assert shapes["impala"] == [(16, 42, 42), (32, 21, 21), (32, 11, 11)]


def test_impala_has_fifteen_convolutions() -> None:
    assert sum(isinstance(module, nn.Conv2d) for module in make_backbone("impala", 4, 84).modules()) == 15


def test_residual_block_with_zero_weights_is_the_identity() -> None:
    backbone = make_backbone("impala", 1, 20)
    for name, parameter in backbone.named_parameters():
        if "blocks" in name:
            nn.init.zeros_(parameter)
    x = torch.rand(2, 1, 20, 20)
    convs = [module for name, module in backbone.named_modules() if name.endswith("conv")]
    expected = x
    for conv in convs:
        expected = nn.functional.max_pool2d(conv(expected), 3, stride=2, padding=1)
    torch.testing.assert_close(backbone(x), expected.relu())


def test_mean_pooling_of_impala_leaves_one_pixel() -> None:
    torch.manual_seed(0)
    maps = make_backbone("impala", 4, 84)
    pooled = make_backbone("impala", 4, 84, pool="mean")
    pooled.load_state_dict(maps.state_dict())
    assert (pooled.out_size, pooled.features) == ((1, 1), 32)
    x = torch.rand(2, 4, 84, 84)
    with torch.no_grad():
        torch.testing.assert_close(pooled(x)[:, :, 0, 0], maps(x).sum((2, 3)) / 121)
    assert make_backbone("impala", 4, 84, pool="mean", pool_size=6).features == 32, "the mean takes precedence"


@pytest.mark.parametrize(("width", "channels"), [(2.0, [32, 64, 64]), (0.25, [4, 8, 8]), (0.01, [1, 1, 1])])
def test_width_multiplies_channels(width: float, channels: list[int]) -> None:
    backbone = make_backbone("impala", 4, 84, width=width)
    assert [m.shape[1] for m in backbone.stages(torch.rand(1, 4, 84, 84))] == channels
    assert make_backbone("nature", 4, 84, width=2).out_channels == 128
    assert make_backbone("nips", 4, 84, width=0.5).out_channels == 16


@pytest.mark.parametrize("image_size", [84, 64, (50, 71)])
def test_patch_convolution_equals_conv2d(image_size: int | tuple[int, int]) -> None:
    backbone = make_backbone("der", 4, image_size).to(torch.bfloat16)
    conv = backbone.get_submodule("convs.1")
    assert isinstance(conv, nn.Conv2d)
    first = torch.rand(3, *backbone.stages(torch.rand(1, 4, *backbone.image_size).to(torch.bfloat16))[0].shape[1:])
    exact = nn.Conv2d(32, 64, 5, 5, 2).double()
    exact.load_state_dict(conv.state_dict())
    x_16, x_64 = first.to(torch.bfloat16).requires_grad_(), first.to(torch.bfloat16).double().requires_grad_()
    y_16, y_64 = conv(x_16), exact(x_64)
    assert y_16.shape == y_64.shape
    grad_output = torch.randn_like(y_16)
    actual = (y_16, *torch.autograd.grad(y_16, [x_16, *conv.parameters()], grad_output))
    expected = (y_64, *torch.autograd.grad(y_64, [x_64, *exact.parameters()], grad_output.double()))
    for a, b in zip(actual, expected, strict=True):
        assert (a.double() - b).abs().max() < 0.01 * b.abs().max()


@pytest.mark.parametrize("name", ["nature", "nips"])
def test_too_small_images_raise_an_error(name: str) -> None:
    min_size = {"nature": 36, "nips": 20}[name]
    assert make_backbone(name, 4, min_size).out_size == (1, 1)
    with pytest.raises(UserError, match=rf"^Images of {min_size - 1}x84 pixels are too small for the backbone {name}"):
        make_backbone(name, 4, (min_size - 1, 84))


def test_unknown_name_raises_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"no backbone 'impalla' \(did you mean impala\?\)"):
        make_backbone("impalla", 4, 84)


@pytest.mark.parametrize("name", ATARI)
def test_every_pixel_of_an_atari_frame_has_a_gradient(name: str) -> None:
    """Strides that do not divide the size would ignore the right and bottom edge, where Pong's own paddle moves."""
    x = torch.rand(16, 4, 84, 84, requires_grad=True)
    make_backbone(name, 4, 84)(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any(dim=0).all()


def test_data_efficient_rainbow_shapes_and_parameters() -> None:
    backbone = make_backbone("der", 4, 84)
    assert [tuple(m.shape[1:]) for m in backbone.stages(torch.rand(1, 4, 84, 84))] == [(32, 17, 17), (64, 4, 4)]
    assert sum(p.numel() for p in backbone.parameters()) == 32 * (4 * 25 + 1) + 64 * (32 * 25 + 1)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("alexnet", [(64, 7, 7), (192, 3, 3), (256, 1, 1)]),
        ("vgg11", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]),
    ],
)
def test_stages_are_the_outputs_of_the_max_pools(name: str, shapes: list[tuple[int, int, int]]) -> None:
    with torch.device("meta"):
        backbone = make_backbone(name, 3, 64)
    assert backbone.stage_shapes == shapes


def test_widely_padded_equals_conv2d() -> None:
    """Compare outputs and the gradients of input, weights and bias, in training and evaluation mode."""
    torch.manual_seed(0)
    padded = WidelyPadded(3, 4, 3, padding=2)
    conv = nn.Conv2d(3, 4, 3, padding=2)
    conv.load_state_dict(padded.state_dict())
    x, grad_output = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randn(2, 4, 7, 8)
    gradients = [torch.autograd.grad(layer(x), [x, *layer.parameters()], grad_output) for layer in (padded, conv)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(padded.eval()(x), conv(x))


def test_published_weights_of_googlenet_want_pixels_from_minus_1_to_1() -> None:
    """Torchvision's `transform_input` converts images that were normalized by ImageNet's moments."""
    googlenet, others = BACKBONES["googlenet"], BACKBONES["vgg16"]
    mean, std = torch.tensor(others.published_mean), torch.tensor(others.published_std)
    pixels_N3 = torch.rand(10, 3)
    transformed_N3 = (pixels_N3 - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
    own_mean, own_std = torch.tensor(googlenet.published_mean), torch.tensor(googlenet.published_std)
    torch.testing.assert_close((pixels_N3 - own_mean) / own_std, transformed_N3)
