"""Multiply-adds, parameters and receptive field of each layer, from one forward pass on the meta device.

for layer in layer_costs(classifier, (1, 3, 224, 224)):
    print(layer.name, layer.multiply_adds, layer.receptive_field)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zerokara.core.backbones.base import concatenated, convolved, pooled
from zerokara.core.config import UserError, error_summary

_CONVOLUTIONS = ("convolution", "convolution_overrideable")
_KEEP_SHAPE = ("relu", "relu_", "leaky_relu", "leaky_relu_", "hardtanh", "hardtanh_", "gelu")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class UnknownCostError(UserError):
    """The cost of a network cannot be determined, because it does not run on the meta device."""


@dataclass(frozen=True)
class LayerCost:
    """Cost of one call of a layer. A layer that is called twice has two entries.

    Attributes:
        name: of the module.
        kind: class of the module: Conv2d, Linear, BatchNorm2d, MaxPool2d, ReLU, ...
        parameters: number of parameters of the layer.
        multiply_adds: of its convolutions and matrix products, for the whole batch.
        receptive_field: side of the square of input pixels on which one output element depends.
        stride: distance between neighboring output elements, in input pixels.
    """

    name: str
    kind: str
    parameters: int
    multiply_adds: int
    receptive_field: int
    stride: int


def layer_costs(module: nn.Module, shape: Sequence[int]) -> list[LayerCost]:
    """Compute the cost of every leaf module in evaluation mode, in the order of execution.

    Args:
        module: a network that takes one tensor of images; it is copied and not changed.
        shape: (B, C, H, W) of the images.

    Raises:
        UnknownCostError: a network of one's own does not run on the meta device.
    """
    network = copy.deepcopy(module).to("meta").eval()
    names = {layer: name for name, layer in network.named_modules() if not list(layer.children())}
    costs: list[LayerCost] = []
    with torch.no_grad(), ExitStack() as hooks:
        counter = hooks.enter_context(Counter(max(shape[2:])))
        starts: list[int] = []

        def before(layer: nn.Module, inputs: Any) -> None:
            starts.append(counter.multiply_adds)

        def after(layer: nn.Module, inputs: Any, out: Tensor) -> None:
            field, stride = counter.fields(out)
            costs.append(
                LayerCost(
                    names[layer],
                    type(layer).__name__,
                    sum(p.numel() for p in layer.parameters()),
                    counter.multiply_adds - starts.pop(),
                    field,
                    stride,
                )
            )

        for layer in names:
            hooks.callback(layer.register_forward_pre_hook(before).remove)
            hooks.callback(layer.register_forward_hook(after).remove)
        _forward(network, shape)
    return costs


def multiply_adds(module: nn.Module, shape: Sequence[int]) -> int:
    """Count the multiply-adds of convolutions and matrix products in one pass over images of `shape` (B, C, H, W)."""
    return _run(module, shape)[0].multiply_adds


def receptive_field(module: nn.Module, shape: Sequence[int]) -> int:
    """Compute the side, in pixels, of the receptive field of one output element. It may exceed the image."""
    counter, out = _run(module, shape)
    return counter.fields(out)[0]


def _run(module: nn.Module, shape: Sequence[int]) -> tuple[Counter, Tensor]:
    network = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad(), Counter(max(shape[2:])) as counter:
        out = _forward(network, shape)
    return counter, out


def _forward(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """Compute the output of a network on the meta device."""
    try:
        out: Tensor = network(torch.empty(tuple(shape), device="meta"))
    except Exception as error:
        raise UnknownCostError(
            f"The layers and their multiply-adds cannot be listed, because the network does not run on PyTorch's meta "
            f"device ({error_summary(error)})."
        ) from error
    return out


class Counter(TorchDispatchMode):
    """Dispatch mode that counts multiply-adds and tracks the receptive field through every operation.

    Args:
        image_size: the longer side of the images, which is the receptive field of a linear layer.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not annotated in torch
        self.image_size = image_size
        self.multiply_adds = 0
        # Keyed by id; the tensor is stored as well, so that its id is not reused.
        self._fields_by_id: dict[int, tuple[Tensor, int, int]] = {}

    def fields(self, tensor: Tensor) -> tuple[int, int]:
        """Return the receptive field and the stride of a tensor's elements, in pixels."""
        return self._fields_by_id[id(tensor)][1:] if id(tensor) in self._fields_by_id else (1, 1)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first operation imports the compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        out = _output(name, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not outputs:
            return out
        self.multiply_adds += _multiply_adds(name, args, outputs[0])
        inputs = [self.fields(leaf) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        field = max((field for field, _ in inputs), default=1)
        stride = max((stride for _, stride in inputs), default=1)
        if name in _PRODUCTS:
            field = stride = self.image_size
        elif name in _WINDOWS:
            kernel, step, dilation = _WINDOWS[name](args, outputs[0])
            field, stride = field + (kernel - 1) * dilation * stride, stride * step
        for leaf in outputs:
            self._fields_by_id[id(leaf)] = (leaf, field, stride)
        return out


def _output(name: str, args: tuple[Any, ...]) -> Any:
    """Return the output of a frequent operation; None for others.

    On the meta device these operations are Python code of PyTorch whose first call imports the compiler, which takes
    seconds.
    """
    if name in _CONVOLUTIONS and not args[6]:
        return convolved(*args[:6])
    if name == "max_pool2d_with_indices":
        stride = args[2] if len(args) > 2 and args[2] else None
        return (pooled(args[0], args[1], stride, *args[3:]),) * 2
    if name == "cat":
        return concatenated(*args)
    if name == "mean" and len(args) > 1:
        axes = {axis % args[0].ndim for axis in args[1]}
        keeps = len(args) > 2 and args[2]
        sizes = [1 if axis in axes else size for axis, size in enumerate(args[0].shape) if keeps or axis not in axes]
        return torch.empty(sizes, device="meta")
    if name in ("mm", "addmm"):
        return torch.empty(args[-2].shape[0], args[-1].shape[1], device="meta")
    if name in ("native_batch_norm", "native_layer_norm", "native_group_norm"):
        return (args[0],) * 3  # the statistics are not used
    keeps = name in _KEEP_SHAPE or (name in ("add", "add_", "mul") and getattr(args[1], "shape", 0) == args[0].shape)
    return args[0] if keeps else None


def _multiply_adds(name: str, args: tuple[Any, ...], out: Tensor) -> int:
    if name in _CONVOLUTIONS:
        weight, transposed = args[1], bool(args[6])
        per_number = math.prod(weight.shape[1:])
        return int((args[0] if transposed else out).numel() * per_number)
    if name in _PRODUCTS:
        return int(out.numel() * args[-1].shape[-2])
    return 0


def _convolution(args: tuple[Any, ...], out: Tensor) -> tuple[int, int, int]:
    if args[6]:  # transposed: approximated as a pointwise operation, since each output depends on few inputs
        return 1, 1, 1
    return max(args[1].shape[2:]), max(args[3]), max(args[5])


def _pool(args: tuple[Any, ...], out: Tensor) -> tuple[int, int, int]:
    kernel = max(args[1])
    return kernel, max(args[2]) if len(args) > 2 and args[2] else kernel, 1


def _adaptive(args: tuple[Any, ...], out: Tensor) -> tuple[int, int, int]:
    cells = max(-(-there // here) for there, here in zip(args[0].shape[2:], out.shape[2:], strict=True))
    return cells, cells, 1


def _bilinear(args: tuple[Any, ...], out: Tensor) -> tuple[int, int, int]:
    return 2, max(1, args[0].shape[2] // out.shape[2]), 1


def _mean(args: tuple[Any, ...], out: Tensor) -> tuple[int, int, int]:
    return (max(args[0].shape[2:]), 1, 1) if args[0].ndim == 4 else (1, 1, 1)


# Operation -> function that returns kernel, stride and dilation of its window.
_WINDOWS: dict[str, Callable[[tuple[Any, ...], Tensor], tuple[int, int, int]]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    "max_pool2d_with_indices": _pool,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "_adaptive_avg_pool2d": _adaptive,
    "upsample_bilinear2d": _bilinear,
    "mean": _mean,
}
