"""Program of tests/test_start.py: create every backbone, and load an agent of the zoo."""

from __future__ import annotations

from unittest import mock

from torch import Tensor

from zerokara.agents.viewing.loading import load_agent
from zerokara.core.backbones.base import on_meta_device
from zerokara.core.backbones.registry import BACKBONES, make_backbone


def unchanged(tensor: Tensor, *arguments: object, **options: object) -> Tensor:
    """Return the tensor without random numbers, which would take seconds for the largest backbones."""
    return tensor


make_backbone("impala", 4, 84, pool="mean")
for name, backbone in BACKBONES.items():
    with mock.patch.multiple(Tensor, normal_=unchanged, uniform_=unchanged):
        make_backbone(name, *backbone.default_input)
    with on_meta_device():  # with PyTorch's own functions, whose first call on this device imports the compiler
        make_backbone(name, *backbone.default_input)
    print(name)
load_agent("pong")
