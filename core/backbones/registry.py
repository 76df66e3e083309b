"""Backbones by name, with one interface that classifiers, discriminators and Q-networks share.

backbone = BACKBONES["nature"](in_channels=4, image_size=84)
backbone(x)                        # (B, out_channels, *out_size), the last feature map
backbone.stages(x)                 # every feature map, from fine to coarse
nn.Linear(backbone.features, 10)   # number of elements of the last feature map, 3136 here

`python -m core.backbones` lists all of them with their parameters and multiply-adds.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

from zerokara.core.backbones import resnet, vgg
from zerokara.core.backbones.alexnet import AlexNet, AlexNet2012
from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.dcgan import Dcgan
from zerokara.core.backbones.deep_cnn import DeepCnn
from zerokara.core.backbones.googlenet import GoogLeNet
from zerokara.core.backbones.impala import Impala
from zerokara.core.backbones.kernels import KERNELS
from zerokara.core.backbones.nature import Der, Nature, Nips
from zerokara.core.backbones.r3 import R3
from zerokara.core.config import UserError, flag, suggest

BACKBONES: dict[str, type[Backbone]] = {
    "nature": Nature,
    "nips": Nips,
    "der": Der,
    "impala": Impala,
    "deep_cnn": DeepCnn,
    "alexnet": AlexNet,
    "alexnet_2012": AlexNet2012,
    **vgg.variants(),
    "googlenet": GoogLeNet,
    **resnet.variants(),
    **KERNELS,
    "dcgan": Dcgan,
    "r3": R3,
}


@functools.cache
def find_backbone(name: str) -> type[Backbone]:
    """Return `BACKBONES[name]`, or the class of resnet<6n+2> or plain<6n+2> of any depth.

    Raises:
        UserError: the name is unknown, or the number of layers is not 6n + 2.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if match := re.fullmatch(r"(resnet|plain)([1-9]\d*)", name):
        word, depth = match[1], int(match[2])
        if depth % 6 == 2 and depth > 2:
            return resnet.cifar(name, depth, use_shortcuts=word == "resnet")
        below = max(8, (depth - 2) // 6 * 6 + 2)
        raise UserError(
            f"There is no backbone {name}: networks of this kind have 6n + 2 layers; "
            f"choose {word}{below} or {word}{below + 6}."
        )
    raise UserError(f"There is no backbone {name!r}{suggest(name, BACKBONES)}; choose one of {', '.join(BACKBONES)}.")


def option_names(name: str) -> list[str]:
    """Return the names of a backbone's options.

    Raises:
        UserError: see `find_backbone`.
    """
    parameters = inspect.signature(find_backbone(name)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def make_backbone(name: str, in_channels: int, image_size: int | tuple[int, int], **options: Any) -> Backbone:
    """Create `find_backbone(name)(in_channels, image_size, **options)` and check the options.

    Raises:
        UserError: the name or an option is unknown, or the images are too small for the network's strides.
    """
    known = option_names(name)
    if unknown := [option for option in options if option not in known]:
        has = f"its options are {', '.join(map(_option_flag, known))}" if known else "it has no options"
        raise UserError(f"The backbone {name} has no option {_option_flag(unknown[0])}: {has}.")
    return find_backbone(name)(in_channels, image_size, **options)


def _option_flag(option: str) -> str:
    """Return the command-line flag of a backbone's option; programs call `width` --width-multiplier."""
    return flag("width_multiplier" if option == "width" else option)
