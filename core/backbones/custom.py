"""Networks of one's own as backbones, without a base class of ours: `--backbone my_net.py:MyNet`.

    class MyNet(nn.Module):
        def __init__(self, channels, image_size): ...   # image_size is (height, width)
        def forward(self, x): ...                       # images (B, C, H, W) to (B, F) or (B, C, H, W)

A forward pass on two images determines the number of features. Observations that are vectors have the image size
(1, 1); the network gets them as (B, C).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.config import UserError, error_summary

CONTRACT = "images (B, C, H, W) to features (B, F) or to a feature map (B, C, H, W)"


class CustomBackbone(Backbone):
    """Adapter of a network of one's own, which is created by `target(channels, (height, width), **options)`.

    Features (B, F) become maps (B, F, 1, 1). If the class of the network has a method `stages(x)`, it returns all
    feature maps from fine to coarse; otherwise the output of the network is the only one.
    """

    target: ClassVar[Callable[..., Any]]

    def __init__(self, in_channels: int, image_size: int | tuple[int, int], **options: Any) -> None:
        super().__init__(in_channels, image_size)
        # On the CPU also inside `with torch.device("meta")`: the constructor may compute with tensors, and the forward
        # pass may use tensors that are not registered as buffers.
        with torch.device("cpu"):
            self.module = self._create(options)
            self._measure()

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of the parameters after the first two, which are channels and image size."""
        try:
            parameters = list(inspect.signature(cls.target).parameters.values())
        except (TypeError, ValueError):  # of a class or function without a signature, in C
            return []
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        first_two = [parameter.name for parameter in parameters if parameter.kind in positional][:2]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [p.name for p in parameters if p.kind in named and p.name not in first_two]

    def stages(self, x: Tensor) -> list[Tensor]:
        if self.image_size == (1, 1):
            x = x.flatten(1)
        own = callable(getattr(type(self.module), "stages", None))
        maps = self.module.stages(x) if own else [self.module(x)]  # type: ignore[operator]
        return [m[:, :, None, None] if isinstance(m, Tensor) and m.ndim == 2 else m for m in maps]

    def published_name(self, name: str) -> str:
        """Return the name of a weight in the network itself, with which its state dict is saved elsewhere."""
        return name.removeprefix("module.")

    def _create(self, options: dict[str, Any]) -> nn.Module:
        """Create the network.

        Raises:
            UserError: it cannot be created, or is no nn.Module.
        """
        if not all(isinstance(number, int) for number in (self.in_channels, *self.image_size)):
            # They may come from a downloaded model file, whose texts must not reach foreign code.
            raise TypeError(f"channels and image size must be integers, got {self.in_channels!r}, {self.image_size!r}")
        call = f"{self.name}({self.in_channels}, {tuple(self.image_size)})"
        try:
            module = self.target(self.in_channels, tuple(self.image_size), **options)
        except Exception as error:
            raise UserError(
                f"The backbone {call} cannot be created ({type(error).__name__}: {error_summary(error)}): it is called "
                f"with the channels and the (height, width) of the images."
            ) from error
        if not isinstance(module, nn.Module):
            raise UserError(f"The backbone {call} is a {type(module).__name__}, but it must be a torch.nn.Module.")
        return module

    def _measure(self) -> None:
        """Determine the shapes of all stages by a forward pass in evaluation mode.

        Raises:
            UserError: the forward pass raises an exception, or returns something other than feature maps.
        """
        number, shape = 2, (self.in_channels, *self.image_size)
        training = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                maps: Any = self.stages(torch.zeros(number, *shape))
        except Exception as error:
            raise UserError(
                f"The backbone {self.name} failed on {number} images of shape {shape} ({type(error).__name__}: "
                f"{error_summary(error)}): it must convert {CONTRACT}."
            ) from error
        finally:
            for module, mode in training.items():
                module.training = mode
        for each in maps or [None]:
            if not _is_map(each, number):
                raise UserError(
                    f"The backbone {self.name} returned {_describe(each)} for {number} images of shape {shape}: it "
                    f"must convert {CONTRACT}."
                )
        self.stage_shapes = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        self.out_channels, *out_size = self.stage_shapes[-1]
        self.out_size = (out_size[0], out_size[1])


def make_custom_class(name: str, target: Callable[..., Any]) -> type[Backbone]:
    """Return the class of backbones that adapts `target`; a subclass of `Backbone` is returned as it is.

    Args:
        name: import path or name of the class, for messages.
        target: class of networks, or function that creates one.

    Raises:
        UserError: it is a network, or the class of something else.
    """
    if isinstance(target, type) and issubclass(target, Backbone):
        return target
    if isinstance(target, nn.Module) or (isinstance(target, type) and not issubclass(target, nn.Module)):
        what = "the class of something else" if isinstance(target, type) else "a network"
        raise UserError(
            f"{name} is {what}: a backbone is given as a class of torch.nn.Module, or as a function that creates one."
        )
    return type("Custom", (CustomBackbone,), {"name": name, "target": staticmethod(target)})


def _is_map(value: object, number: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and len(value) == number and _has_floats(value)


def _has_floats(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() > 0


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype} of shape {tuple(value.shape)}".removeprefix("torch.")
