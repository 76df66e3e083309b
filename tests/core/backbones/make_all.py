"""Program of tests/test_start.py: create every backbone, and load an agent of the zoo."""

from __future__ import annotations

import torch
from torch import Tensor

from zerokara.agents.viewing.loading import load_agent
from zerokara.core.backbones.base import on_meta_device
from zerokara.core.backbones.registry import BACKBONES, make_backbone


def unchanged(tensor: Tensor, *arguments: object, **options: object) -> Tensor:
    """Return the tensor without random numbers, which would take seconds for the largest backbones."""
    return tensor


for method in ("normal_", "uniform_"):
    setattr(torch.Tensor, method, unchanged)
make_backbone("impala", 4, 84, pool="mean")
for name, backbone in BACKBONES.items():
    make_backbone(name, *backbone.default_input)
    with on_meta_device():
        make_backbone(name, *backbone.default_input)
    print(name)
load_agent("pong")
