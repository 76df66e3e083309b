"""Tests of the R3GAN backbone: blocks, sizes and initialization."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zerokara.core.backbones.cost import layer_costs
from zerokara.core.backbones.r3 import GROUP, R3, Block, resize_bilinear, stage_channels
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.config import UserError


def test_channels_double_and_are_multiples_of_the_group_size() -> None:
    assert stage_channels(5, 1.0) == [32, 64, 128, 256, 256]
    assert stage_channels(4, 24.0) == [768, 1536, 3072, 6144]
    for width in (0.05, 0.3, 0.7, 1.1):
        assert all(2 * channels % GROUP == 0 and channels > 0 for channels in stage_channels(4, width))


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (28, [(28, 28), (14, 14), (7, 7), (3, 3)]),
        (32, [(32, 32), (16, 16), (8, 8), (4, 4)]),
        ((64, 45), [(64, 45), (32, 22), (16, 11), (8, 5)]),
    ],
)
def test_every_stage_halves_the_size(size: int | tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    backbone = make_backbone("r3", 3, size)
    assert [shape[1:] for shape in backbone.stage_shapes] == sizes
    assert [shape[0] for shape in backbone.stage_shapes] == stage_channels(len(sizes), 1.0)


def test_block_is_the_identity_at_initialization_and_its_convolution_is_grouped() -> None:
    block = Block(32, blocks=4)
    x = torch.randn(2, 32, 6, 6)
    assert torch.equal(block(x), x)
    assert block.filter.weight.shape == (64, GROUP, 3, 3)
    nn.init.normal_(block.reduce.weight)
    changed = block(x) - x
    assert changed.abs().min() > 0
    x[0] += 1
    assert torch.equal((block(x) - x)[1], changed[1]), "the output of an image depends on that image only"


def test_initial_weights_decrease_with_the_number_of_blocks() -> None:
    gain = (2 / 1.04) ** 0.5
    for blocks in (1, 16):
        block = Block(128, blocks)
        for conv, inputs in ((block.expand, 128), (block.filter, 9 * GROUP)):
            assert float(conv.weight.detach().std()) == pytest.approx(gain * blocks**-0.25 / inputs**0.5, rel=0.02)
            assert conv.bias is not None
            assert not conv.bias.any()
        assert block.reduce.bias is None


def test_downsampling_by_two_is_average_pooling() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(resize_bilinear(x, (2, 2)), nn.functional.avg_pool2d(x, 2))
    assert float(resize_bilinear(x, (8, 8)).mean()) == pytest.approx(7.5)


def test_no_normalization_layers() -> None:
    kinds = {type(module).__name__ for module in make_backbone("r3", 1, 64).modules()}
    assert kinds == {"R3", "ModuleList", "Block", "Conv2d", "Identity"}


def test_receptive_fields_of_the_filters() -> None:
    """A 3x3 filter adds 2 strides, and halving adds 1 stride and doubles it: 1, 3, 4, 8, 10, 18, 22, 38."""
    layers = layer_costs(R3(1, 28), (1, 1, 28, 28))
    filters = [layer for layer in layers if layer.name.endswith("filter")]
    assert [(layer.receptive_field, layer.stride) for layer in filters] == [(3, 1), (8, 2), (18, 4), (38, 8)]


def test_unsupported_size_raises_an_error_with_the_name_of_the_backbone() -> None:
    with pytest.raises(UserError, match="do not fit the backbone r3"):
        make_backbone("r3", 1, 27)
