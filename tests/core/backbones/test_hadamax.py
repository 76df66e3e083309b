"""Tests of the Hadamax encoder, against the published architecture and numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zerokara.core.backbones.cost import layer_costs
from zerokara.core.backbones.hadamax import Hadamax
from zerokara.core.layers import ChannelNorm

GELU_1 = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1 + 0.044715)))  # tanh approximation


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_sizes_of_the_published_network() -> None:
    backbone = Hadamax(4, 84)
    assert backbone.stage_shapes == [(32, 21, 21), (64, 11, 11)]
    assert backbone.features == 7_744
    # The second block has maps of 11x11, too. Two branches; outputs x inputs of a filter x channels.
    costs = layer_costs(backbone, (1, 4, 84, 84))
    assert sum(layer.multiply_adds for layer in costs) == (
        84 * 84 * 2 * (8 * 8 * 4 * 32) + 21 * 21 * 2 * (4 * 4 * 32 * 64) + 11 * 11 * 2 * (3 * 3 * 64 * 64)
    )
    with torch.no_grad():
        maps = backbone.stages(torch.rand(1, 4, 84, 84))
    assert [tuple(x.shape[1:]) for x in maps] == backbone.stage_shapes
    assert Hadamax(4, (50, 71)).stage_shapes == [(32, 13, 18), (64, 7, 9)]
    assert Hadamax(4, 84, width=0.5).stage_shapes == [(16, 21, 21), (32, 11, 11)]


def identity(backbone: Hadamax) -> None:
    """Let the second branch of every block return its first channel, and the first one the constant 1.

    The tap at floor((kernel - 1) / 2) sees the pixel itself: SAME pads kernels of 8 by 3 and 4, of 4 by 1 and 2.
    """
    with torch.no_grad():
        for block, tap in zip(backbone.layers, (3, 1, 1), strict=True):
            one, copy = (block.get_submodule(f"convs.{i}") for i in (0, 1))
            for p in (*one.parameters(), *copy.parameters()):
                p.zero_()
            one.get_parameter("bias").fill_(1.0)
            copy.get_parameter("weight")[:, 0, tap, tap] = 1.0


@pytest.mark.parametrize(
    ("size", "largest"),
    [
        (8, [[27, 31], [59, 63]]),  # quadrants of 4x4
        (5, [[12, 14], [22, 24]]),  # SAME pads 5 by 1 and 2: windows of rows 0 to 2 and 3 to 4
    ],
)
def test_a_block_is_the_maximum_of_the_product_of_both_branches(size: int, largest: list[list[int]]) -> None:
    backbone = Hadamax(1, size, width=1 / 32, layer_norm=False)
    identity(backbone)
    x = torch.arange(size * size).view(1, 1, size, size) / size**2
    with torch.no_grad():
        first, last = backbone.stages(x)
    products = [[GELU_1 * gelu(value / size**2) for value in row] for row in largest]
    torch.testing.assert_close(first[0, 0], torch.tensor(products))
    second = GELU_1 * gelu(products[1][1])
    assert last.shape == (1, 2, 1, 1)
    assert last.flatten().tolist() == pytest.approx([GELU_1 * gelu(second)] * 2)


def test_branches_are_normalized_over_the_channels_of_each_pixel() -> None:
    backbone = Hadamax(2, 12)
    x = torch.rand(3, 2, 12, 12)
    inputs: list[Tensor] = []
    norm = backbone.get_submodule("layers.0.norms.1")
    assert isinstance(norm, ChannelNorm)
    assert norm.eps == 1e-6
    norm.register_forward_hook(lambda module, arguments, output: inputs.extend((arguments[0], output)))
    with torch.no_grad():
        backbone(x)
    before, after = inputs
    mean, deviation = before.mean(1, keepdim=True), before.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(after, (before - mean) / deviation, rtol=1e-3, atol=1e-3)
