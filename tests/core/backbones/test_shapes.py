"""Shapes of feature maps are determined without a forward pass and without importing PyTorch's compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.programs import run_interpreter
from zerokara.core.backbones.base import Backbone

CODE = """
import sys
from zerokara.core.backbones.registry import BACKBONES, make_backbone
for name, backbone in BACKBONES.items():
    if name in ("googlenet", "r3"):  # torch.cat and interpolate on the meta device import it
        continue
    make_backbone(name, *backbone.default_input)
    if "torch._dynamo" in sys.modules:
        raise SystemExit(f"{name} imports torch._dynamo")
"""


def test_no_backbone_imports_the_compiler(tmp_path: Path) -> None:
    """Its import takes a second or two, at every start of every program."""
    done = run_interpreter(tmp_path, "-c", CODE)
    assert (done.returncode, done.stderr) == (0, "")


class Odd(Backbone):
    """Backbone with additions that change the shape, and with one of a number."""

    def __init__(self, in_channels: int, image_size: int) -> None:
        super().__init__(in_channels, image_size)
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.weight = nn.Parameter(torch.ones(2, 1, 4, 1, 1))
        self._measure()

    def stages(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.conv(x)) + 1
        return [x, (x + self.weight).flatten(0, 1)]


@pytest.mark.parametrize("image_size", [9, 12])
def test_additions_that_broadcast_change_the_shape(image_size: int) -> None:
    backbone = Odd(3, image_size)
    maps = backbone.stages(torch.zeros(2, 3, image_size, image_size))
    assert backbone.stage_shapes == [tuple(map_.shape[1:]) for map_ in maps]
