"""The eye: convolutional trunks by name, under one contract that classifier, discriminator and Q-network share.

eye = BACKBONES["nature"](in_channels=4, image_size=84)
eye(x)                        # (B, out_channels, *out_size), the last feature map
eye.stages(x)                 # every feature map, from fine to coarse
nn.Linear(eye.features, 10)   # no head writes down 3136
"""

from __future__ import annotations

from typing import Any

from core.backbones.base import Backbone
from core.backbones.impala import Impala
from core.backbones.nature import Der, Nature, Nips
from core.config import UserError, suggest

BACKBONES: dict[str, type[Backbone]] = {"nature": Nature, "nips": Nips, "der": Der, "impala": Impala}


def build(name: str, in_channels: int, image_size: int | tuple[int, int], **options: Any) -> Backbone:
    """`BACKBONES[name](in_channels, image_size, **options)` with a sentence for a name that does not exist.

    Raises:
        UserError: unknown name, or images too small for the strides.
    """
    if name not in BACKBONES:
        raise UserError(
            f"There is no backbone {name!r}{suggest(name, BACKBONES)}; choose one of {', '.join(BACKBONES)}."
        )
    return BACKBONES[name](in_channels, image_size, **options)
