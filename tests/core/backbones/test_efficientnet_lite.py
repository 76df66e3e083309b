"""Tests of EfficientNet-Lite: published sizes, padding as in TensorFlow, stems, names of the published file."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.cost import multiply_adds
from zerokara.core.backbones.efficientnet_lite import EfficientNetLite
from zerokara.core.backbones.heads import PooledHead
from zerokara.core.backbones.registry import BACKBONES, make_backbone
from zerokara.core.models.classifier import Classifier, make_classifier


def classifier_on_meta(name: str, image_size: int) -> Classifier:
    with torch.device("meta"):
        return make_classifier(name, 3, image_size, 1000)


@pytest.mark.parametrize(
    ("name", "millions", "multiply_adds_millions"),
    [
        ("efficientnet_lite0", 4.7, 407),
        ("efficientnet_lite1", 5.4, 631),
        ("efficientnet_lite2", 6.1, 899),
        ("efficientnet_lite3", 8.2, 1440),
        ("efficientnet_lite4", 13.0, 2640),
    ],
)
def test_sizes_are_those_that_google_published(name: str, millions: float, multiply_adds_millions: int) -> None:
    """Table in tensorflow/tpu, models/official/efficientnet/lite; it counts normalization and activations, too."""
    image_size = BACKBONES[name].default_input[1]
    classifier = classifier_on_meta(name, image_size)
    assert sum(p.numel() for p in classifier.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    counted = multiply_adds(classifier, (1, 3, image_size, image_size)) / 1e6
    assert 0.93 * multiply_adds_millions < counted < multiply_adds_millions


def test_lite0_has_the_published_number_of_parameters_and_features() -> None:
    classifier = classifier_on_meta("efficientnet_lite0", 224)
    assert sum(p.numel() for p in classifier.parameters()) == 4_652_008
    shapes = [(16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (1280, 7, 7)]
    assert classifier.backbone.stage_shapes == shapes
    assert dropout_of(classifier.head) == 0.2
    with torch.device("meta"):
        backbone = make_backbone("efficientnet_lite4", 3, 300)
        assert [dropout_of(backbone.paper_head(5, dropout)) for dropout in (None, 0.0)] == [0.3, 0]


def dropout_of(head: nn.Module) -> float:
    """Return the dropout probability of a pooled head."""
    assert isinstance(head, PooledHead)
    return head.dropout


def test_names_and_shapes_are_those_of_the_published_file() -> None:
    classifier = classifier_on_meta("efficientnet_lite0", 224)
    state = {classifier.published_name(name): tuple(t.shape) for name, t in classifier.state_dict().items()}
    expected = {
        "_conv_stem.weight": (32, 3, 3, 3),
        "_bn0.running_mean": (32,),
        "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
        "_blocks.0._project_conv.weight": (16, 32, 1, 1),
        "_blocks.1._expand_conv.weight": (96, 16, 1, 1),
        "_blocks.3._depthwise_conv.weight": (144, 1, 5, 5),
        "_blocks.15._bn2.num_batches_tracked": (),
        "_conv_head.weight": (1280, 320, 1, 1),
        "_bn1.bias": (1280,),
        "_fc.weight": (1000, 1280),
        "_fc.bias": (1000,),
    }
    assert expected.items() <= state.items()
    assert "_blocks.0._expand_conv.weight" not in state
    assert len(state) == 49 * 6 + 2  # convolutions with BatchNorm (five tensors) each; weight and bias of the head


@pytest.mark.parametrize("image_size", [(20, 32), (33, 50), (9, 7)])
@pytest.mark.parametrize(
    ("name", "kernel"), [("conv_stem", 3), ("blocks.1.depthwise_conv", 3), ("blocks.3.depthwise_conv", 5)]
)
def test_strided_convolutions_pad_like_tensorflow(name: str, kernel: int, image_size: tuple[int, int]) -> None:
    """The output has ceil(side / 2) pixels; an odd zero row or column is at the end, where PyTorch would center it."""
    backbone = make_backbone("efficientnet_lite0", 3, 32)
    convolution = backbone.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.kernel_size == (kernel, kernel)
    x = torch.randn(1, convolution.in_channels, *image_size)
    height, width = (math.ceil(side / 2) for side in image_size)
    expected = torch.zeros(1, convolution.out_channels, height, width)
    for row in range(height):
        for column in range(width):
            # Zero rows before the first: 0 or 1 of a 3x3 filter, 1 or 2 of a 5x5 filter, for an even or an odd side.
            top, left = (
                2 * index - (kernel - 3) // 2 - side % 2 for index, side in zip((row, column), image_size, strict=True)
            )
            window = window_of(x, top, left, kernel)
            if convolution.groups > 1:  # a filter for each channel
                window = window.transpose(0, 1)
            expected[0, :, row, column] = (window * convolution.weight).sum((1, 2, 3))
    torch.testing.assert_close(convolution(x), expected, rtol=1e-4, atol=1e-5)


def window_of(x: Tensor, top: int, left: int, side: int) -> Tensor:
    """Return a square window of an image (1, C, H, W) at this row and column, with zeros outside of the image."""
    return F.pad(x, (side,) * 4)[:, :, top + side : top + 2 * side, left + side : left + 2 * side]


def test_batchnorm_has_the_constants_of_the_published_training() -> None:
    """TensorFlow's epsilon .001 and momentum .99, which PyTorch writes as .01."""
    with torch.device("meta"):
        modules = make_backbone("efficientnet_lite0", 3, 32).modules()
    constants = [(module.eps, module.momentum) for module in modules if isinstance(module, nn.BatchNorm2d)]
    assert (len(constants), set(constants)) == (49, {(0.001, 0.01)})


def test_residual_branches_with_zero_weights_leave_only_the_shortcut() -> None:
    backbone = make_backbone("efficientnet_lite0", 3, 32).eval()
    blocks = backbone.get_submodule("blocks")
    x = torch.randn(1, 24, 8, 8)
    second = blocks.get_submodule("2")  # from 24 to 24 channels
    for name, parameter in second.named_parameters():
        if name.startswith("bn2"):
            nn.init.zeros_(parameter)
    torch.testing.assert_close(second(x), x)
    first = blocks.get_submodule("1")  # from 16 to 24 channels, reduces the image
    assert first(torch.randn(1, 16, 9, 8)).shape == (1, 24, 5, 4)


def test_smaller_stems_reduce_less_with_the_same_weights() -> None:
    sizes = {}
    for stem in ("paper", "medium", "small"):
        with torch.device("meta"):
            backbone = make_backbone("efficientnet_lite0", 3, 64, stem=stem)
        sizes[stem] = backbone.out_size
        assert isinstance(backbone, EfficientNetLite)
        assert backbone.state_dict()["conv_stem.weight"].shape == (32, 3, 3, 3)
    assert sizes == {"paper": (2, 2), "medium": (4, 4), "small": (8, 8)}


def test_activations_are_bounded_by_six() -> None:
    backbone = make_backbone("efficientnet_lite0", 3, 32, width=0.25).eval()
    with torch.no_grad():
        backbone.state_dict()["bn1.weight"].mul_(1000)
    last = backbone(torch.randn(2, 3, 32, 32))
    assert last.max() == 6
    assert last.min() == 0
