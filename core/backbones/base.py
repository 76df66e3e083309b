"""Base class of the backbones.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zerokara.core.backbones.heads import PooledHead
from zerokara.core.config import UserError
from zerokara.core.layers import ReLU


class Backbone(nn.Module, ABC):
    """Convolutional network without a head, created as `Backbone(in_channels, image_size, **options)`.

    A subclass creates the layers, implements `stages` and calls `_measure` at the end of its constructor.

    Attributes:
        name: key in `BACKBONES`.
        default_input, default_classes: channels and side of the images in the network's paper, and number of classes.
        has_own_initialization: the constructor initializes the weights as in the network's paper, which PQN keeps.
        published_mean, published_std: normalization of the images on which torchvision's weights were trained; pixels
            are 0 to 1.
        in_channels: channels of the input, float, scaled to [0, 1] or normalized.
        image_size: (H, W) of the input.
        out_channels: channels of the last feature map.
        out_size: (H, W) of the last feature map.
        features: number of elements of the flattened last feature map.
        stage_shapes: (C, H, W) of every feature map that `stages` returns.
    """

    name: ClassVar[str]
    default_input: ClassVar[tuple[int, int]] = (3, 224)
    default_classes: ClassVar[int] = 1000
    published_mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    published_std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)
    has_own_initialization: ClassVar[bool] = False
    in_channels: int
    image_size: tuple[int, int]
    out_channels: int
    out_size: tuple[int, int]
    stage_shapes: list[tuple[int, int, int]]

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Set `name` to the lower-case class name if the subclass does not define it."""
        super().__init_subclass__(**keywords)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def __init__(self, in_channels: int, image_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size

    @abstractmethod
    def stages(self, x: Tensor) -> list[Tensor]:
        """Compute all feature maps (B, C_i, H_i, W_i) of images x (B, in_channels, H, W), from fine to coarse."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the last feature map (B, out_channels, *out_size)."""
        return self.stages(x)[-1]

    def initialize_from_images(self, images_NCHW: Tensor, normalize: Callable[[Tensor], Tensor]) -> None:
        """Initialize the weights that depend on training images; most networks have none.

        Args:
            images_NCHW: uint8 training images.
            normalize: converts uint8 images to normalized ones.
        """

    def with_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the last feature map and the inputs of auxiliary heads (an empty list for most networks)."""
        return self(x), []

    def hidden_activation(self) -> nn.Module:
        """Make the activation function of hidden layers that follow this network, in agents."""
        return ReLU()

    def paper_head(self, classes: int, dropout: float | None) -> nn.Module:
        """Make the classifier head of the network's paper, from the last feature map to logits (B, K).

        Args:
            classes: K.
            dropout: dropout probability; None: the value of the paper.
        """
        return PooledHead(self.out_channels, classes, dropout or 0.0)

    def published_name(self, name: str) -> str:
        """Convert the name of a weight to torchvision's name, where `layers` is called `features`."""
        return f"features.{name.removeprefix('layers.')}" if name.startswith("layers.") else name

    def published_head_name(self, name: str) -> str:
        """Convert the name of a weight of the paper's head to the published name."""
        return name

    @property
    def features(self) -> int:
        """Number of elements of the last feature map."""
        return self.out_channels * self.out_size[0] * self.out_size[1]

    def _measure(self) -> None:
        """Determine the shapes of all stages by a forward pass on the meta device.

        Raises:
            UserError: the images are too small for the network's strides.
        """
        height, width = self.image_size
        shapes_only = {f"backbone.{name}": tensor.to("meta") for name, tensor in self.state_dict().items()}
        # Two images, because BatchNorm in training mode needs more than one value per channel.
        images = torch.empty(2, self.in_channels, height, width, device="meta")
        try:
            with _ShapesOnly():
                maps: list[Tensor] = torch.func.functional_call(_Stages(self), shapes_only, images)
        except RuntimeError as error:
            raise UserError(
                f"Images of {height}x{width} pixels are too small for the backbone {self.name}: "
                f"its strides reduce them to an empty feature map; use larger images or another --backbone."
            ) from error
        self.stage_shapes = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        self.out_channels, *out_size = self.stage_shapes[-1]
        self.out_size = (out_size[0], out_size[1])


class _ShapesOnly(TorchFunctionMode):
    """Context in which functions return empty tensors of the right shape, or their input if it has this shape.

    On the meta device they are Python code of PyTorch whose first call imports the compiler, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _KEEP_SHAPE or (
            func in (Tensor.add, Tensor.mul) and getattr(args[1], "shape", None) == args[0].shape
        ):
            return args[0]
        if func is F.pad and len(args[1]) == 4:
            return _padded(*args)
        if func is F.conv2d:
            return convolved(*args, **kwargs)
        if func is F.max_pool2d:
            return pooled(*args, **kwargs)
        if func is Tensor.mean and kwargs.get("keepdim"):
            return _averaged(*args)
        if func is torch.cat:
            return concatenated(*args, **kwargs)
        if func is F.interpolate and isinstance(kwargs.get("size"), tuple):
            return torch.empty(*args[0].shape[:2], *kwargs["size"], device="meta")
        return func(*args, **kwargs)


Pair = int | tuple[int, int]


def _two(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | Literal["same", "valid"] = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Return an output of `F.conv2d` on the meta device.

    Raises:
        RuntimeError: the kernel is larger than the image.
    """
    kernel, dilations = weight.shape[2:], _two(dilation)
    both = [dilations[i] * (kernel[i] - 1) for i in (0, 1)]  # padding of both sides that keeps the size
    if not isinstance(padding, str):
        both = [2 * pad for pad in _two(padding)]
    elif padding == "valid":
        both = [0, 0]
    size = [(x.shape[2 + i] + both[i] - dilations[i] * (kernel[i] - 1) - 1) // _two(stride)[i] + 1 for i in (0, 1)]
    if min(size) < 1:
        raise RuntimeError(f"a kernel of {tuple(kernel)} is larger than an image of {tuple(x.shape[2:])}")
    return torch.empty(x.shape[0], weight.shape[0], *size, device="meta")


def _padded(x: Tensor, margin: tuple[int, int, int, int]) -> Tensor:
    """Return an output of `F.pad` on the meta device, for margins left, right, top, bottom."""
    height, width = x.shape[2:]
    return torch.empty(*x.shape[:2], height + sum(margin[2:]), width + sum(margin[:2]), device="meta")


def pooled(
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Return an output of `F.max_pool2d` on the meta device, without indices.

    Raises:
        RuntimeError: the pooled map is empty.
    """
    sizes = []
    settings = (kernel_size, kernel_size if stride is None else stride, padding, dilation)
    for before, kernel, step, pad, dilate in zip(x.shape[-2:], *map(_two, settings), strict=True):
        size = (before + 2 * pad - dilate * (kernel - 1) - 1 + (step - 1) * ceil_mode) // step + 1
        if ceil_mode and (size - 1) * step >= before + pad:  # the last window would begin in the padding
            size -= 1
        sizes.append(size)
    if min(sizes) < 1:
        raise RuntimeError(f"pooling leaves nothing of a map of {tuple(x.shape[-2:])}")
    return torch.empty(*x.shape[:-2], *sizes, device="meta")


def _averaged(x: Tensor, dim: Pair) -> Tensor:
    """Return an output of `Tensor.mean` with keepdim on the meta device, over one or two axes."""
    axes = {axis % x.ndim for axis in _two(dim)}
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return torch.empty(shape, device="meta")


def concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return an output of `torch.cat` on the meta device."""
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return torch.empty(shape, device="meta")


_KEEP_SHAPE = frozenset(
    {
        F.relu,
        F.relu6,
        F.leaky_relu,
        F.gelu,
        F.batch_norm,
        F.group_norm,
        F.layer_norm,
        F.local_response_norm,
        Tensor.add_,  # counts the batches of BatchNorm
    }
)


class _NoInitialization(TorchFunctionMode):
    """Context in which weights are not initialized from a normal distribution, for networks on the meta device.

    On this device it is Python code of PyTorch whose first call imports the compiler, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_meta_device() -> Iterator[None]:
    """Context in which networks are built without memory and without initial values, to learn their shapes."""
    with torch.device("meta"), _NoInitialization():
        yield


class PooledBackbone(Backbone):
    """Sequential backbone that ends in a max-pool. Its stages are the outputs of all max-pools."""

    layers: nn.Sequential

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        return maps


class _Stages(nn.Module):
    """Wrapper of a backbone whose forward pass returns all stages."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.backbone.stages(x)


def scaled(channels: int, width: float) -> int:
    """Multiply a number of channels by a width multiplier; the result is at least 1."""
    return max(1, round(channels * width))


def same_margin(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the pixels that SAME adds before and after an axis of `size` pixels; of an odd sum, more after it."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def he_init(module: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Initialize all convolutions and linear layers; biases are set to 0.

    He et al. 2015, "Delving Deep into Rectifiers", equation 10 (fan_in) or 14 (fan_out).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
