"""Backbones by name, with one interface that classifiers, discriminators and Q-networks share.

backbone = BACKBONES["nature"](in_channels=4, image_size=84)
backbone(x)                        # (B, out_channels, *out_size), the last feature map
backbone.stages(x)                 # every feature map, from fine to coarse
nn.Linear(backbone.features, 10)   # number of elements of the last feature map, 3136 here
make_backbone("my_net.py:MyNet", 4, 84)   # a network of one's own, see core/backbones/custom.py

`python -m core.backbones` lists all of them with their parameters and multiply-adds.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

from zerokara.core.backbones import efficientnet_lite, resnet, vgg
from zerokara.core.backbones.airbench import Airbench
from zerokara.core.backbones.alexnet import AlexNet, AlexNet2012
from zerokara.core.backbones.base import Backbone
from zerokara.core.backbones.custom import CustomBackbone, make_custom_class
from zerokara.core.backbones.dcgan import Dcgan
from zerokara.core.backbones.deep_cnn import DeepCnn
from zerokara.core.backbones.googlenet import GoogLeNet
from zerokara.core.backbones.hadamax import Hadamax
from zerokara.core.backbones.impala import Impala
from zerokara.core.backbones.kernels import KERNELS
from zerokara.core.backbones.mlp import Mlp
from zerokara.core.backbones.nature import Der, Nature, Nips, Stream
from zerokara.core.backbones.r3 import R3
from zerokara.core.config import UserError, flag, is_import_path, suggest
from zerokara.core.importing import load_callable

BackboneName = str | Callable[..., Any]
"""Key of `BACKBONES`, import path (`my_net.py:MyNet`, `package.module:MyNet`), or a class or function itself."""

BACKBONES: dict[str, type[Backbone]] = {
    "nature": Nature,
    "nips": Nips,
    "der": Der,
    "stream": Stream,
    "impala": Impala,
    "hadamax": Hadamax,
    "deep_cnn": DeepCnn,
    "airbench": Airbench,
    "alexnet": AlexNet,
    "alexnet_2012": AlexNet2012,
    **vgg.variants(),
    "googlenet": GoogLeNet,
    **resnet.variants(),
    **efficientnet_lite.variants(),
    **KERNELS,
    "dcgan": Dcgan,
    "r3": R3,
    "mlp": Mlp,
}


def find_backbone(name: BackboneName) -> type[Backbone]:
    """Return the class of a backbone: `BACKBONES[name]`, resnet<6n+2> or plain<6n+2> of any depth, or one's own.

    Raises:
        UserError: the name is unknown, the number of layers is not 6n + 2, or an import path cannot be loaded.
    """
    if not isinstance(name, str):
        return make_custom_class(getattr(name, "__qualname__", type(name).__name__), name)
    return make_custom_class(name, load_callable(name, "--backbone")) if is_import_path(name) else _find_own(name)


def is_custom(name: BackboneName) -> bool:
    """Return True if a backbone is not one of this package."""
    return not isinstance(name, str) or is_import_path(name)


@functools.cache
def _find_own(name: str) -> type[Backbone]:
    """Return the class of a backbone of this package."""
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
    raise UserError(
        f"There is no backbone {name!r}{suggest(name, BACKBONES)}; choose one of {', '.join(BACKBONES)}, or "
        f"file.py:MyNet for a network of your own."
    )


def option_names(name: BackboneName) -> list[str]:
    """Return the names of a backbone's options.

    Raises:
        UserError: see `find_backbone`.
    """
    return _option_names(find_backbone(name))


def _option_names(backbone: type[Backbone]) -> list[str]:
    if issubclass(backbone, CustomBackbone):
        return backbone.option_names()
    parameters = inspect.signature(backbone).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def make_backbone(name: BackboneName, in_channels: int, image_size: int | tuple[int, int], **options: Any) -> Backbone:
    """Create `find_backbone(name)(in_channels, image_size, **options)` and check the options.

    Raises:
        UserError: the name or an option is unknown, the images are too small for the network's strides, or a network of
            one's own fails.
    """
    backbone = find_backbone(name)
    known = _option_names(backbone)
    if unknown := [option for option in options if option not in known]:
        has = f"its options are {', '.join(map(_option_flag, known))}" if known else "it has no options"
        raise UserError(f"The backbone {backbone.name} has no option {_option_flag(unknown[0])}: {has}.")
    return backbone(in_channels, image_size, **options)


def _option_flag(option: str) -> str:
    """Return the command-line flag of a backbone's option; programs call `width` --width-multiplier."""
    return flag("width_multiplier" if option == "width" else option)
