"""Receptive fields and activations of the feature maps of a network.

A feature map here is the output (B, C, H, W) of a ReLU. Its receptive field is exact: stride, padding and dilation of
every operation between the image and the map are tracked through all branches and shortcuts, on the meta device.

Shapes: B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from zerokara.core.config import UserError


@dataclass(frozen=True)
class Span:
    """Receptive fields of a feature map along one axis: position i has pixels first + jump * i to last + jump * i.

    Pixels below 0 or beyond the image are padding.
    """

    jump: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Size of the receptive field in pixels."""
        return self.last - self.first + 1

    def pixels(self, position: int) -> tuple[int, int]:
        """Return the first and the last pixel of the receptive field of a position."""
        return self.first + self.jump * position, self.last + self.jump * position

    def after_window(self, kernel: int, stride: int, padding: int, dilation: int) -> Self:
        """Return the span after a convolution or a pooling layer."""
        return replace(
            self,
            jump=self.jump * stride,
            first=self.first - self.jump * padding,
            last=self.last + self.jump * (dilation * (kernel - 1) - padding),
        )

    def after_slice(self, positions: int, step: int = 1) -> Self:
        """Return the span after slicing every step-th position from `positions`, or after padding if it is negative."""
        offset = self.jump * positions
        return replace(self, jump=self.jump * step, first=self.first + offset, last=self.last + offset)

    def merged(self, other: Self) -> Self:
        """Return the span of the sum of two maps: the smallest one that contains both.

        Raises:
            ValueError: the strides differ.
        """
        if self.jump != other.jump:
            raise ValueError(f"it adds maps of strides {self.jump} and {other.jump}")
        return replace(self, first=min(self.first, other.first), last=max(self.last, other.last))


@dataclass(frozen=True)
class FeatureMap:
    """Feature map after a ReLU, with its receptive field."""

    name: str
    """Name of the convolution before it in the backbone."""
    shape: tuple[int, int, int]
    """(C, H, W)."""
    rows: Span
    columns: Span


Field = tuple[Span, Span]  # rows, columns
# Elementwise operations: each output value depends only on input values at the same position.
POINTWISE = {
    *("add", "add_", "sub", "mul", "mul_", "div", "relu", "relu_", "hardtanh", "sigmoid", "tanh", "clamp", "sign"),
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_dropout"),
    *("clone", "_to_copy", "detach", "alias", "where", "cat"),
}


class _FieldTracker(TorchDispatchMode):
    """Track the receptive field of every tensor that is computed from the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch left it without annotations
        pixel = Span(1, 0, 0)
        self.layer = "image"
        self.feature_maps: list[FeatureMap] = []
        # The tensors are kept alive with their fields, because an id is reused after its tensor is freed.
        self._known: dict[int, tuple[Tensor, Field | str]] = {id(image): (image, (pixel, pixel))}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        operands = args[0] if name == "cat" else args
        sources = [self._known[id(x)][1] for x in operands if isinstance(x, Tensor) and id(x) in self._known]
        result = out[0] if isinstance(out, tuple) else out
        if sources and isinstance(result, Tensor) and result.ndim == 4:
            field = _field_after(name, args, sources)
            self._known[id(result)] = (result, field)
            if name in {"relu", "relu_"}:
                if isinstance(field, str):
                    raise UserError(f"The receptive fields of this network cannot be computed: {field}.")
                channels, height, width = result.shape[1:]
                self.feature_maps.append(FeatureMap(self.layer, (channels, height, width), *field))
        return out


def _field_after(name: str, args: Sequence[Any], sources: Sequence[Field | str]) -> Field | str:
    """Return the receptive field after an ATen operation, or the reason why it cannot be computed."""
    fields = []
    for source in sources:
        if isinstance(source, str):
            return source
        fields.append(source)
    rows, columns = fields[0]
    if name in POINTWISE:
        try:
            for other_rows, other_columns in fields[1:]:
                rows, columns = rows.merged(other_rows), columns.merged(other_columns)
        except ValueError as error:
            return str(error)
        return rows, columns
    if name == "convolution":
        kernel, (stride, padding, dilation, transposed) = args[1].shape[2:], args[3:7]
        if not transposed:
            return _windowed((rows, columns), kernel, stride, padding, dilation)
    elif name in {"max_pool2d_with_indices", "max_pool2d", "avg_pool2d"}:
        kernel, stride, padding = (*args[1:4], *((None, [], 0)[len(args) - 1 :]))[:3]
        dilation = args[4] if name != "avg_pool2d" and len(args) > 4 else 1
        return _windowed((rows, columns), kernel, stride or kernel, padding, dilation)
    elif name == "slice":
        dim, start, _, step = (*args[1:5], *((0, None, None, 1)[len(args) - 1 :]))[:4]
        if dim < 2:
            return rows, columns
        if (start or 0) >= 0:
            sliced = (rows, columns)[dim - 2].after_slice(start or 0, step)
            return (sliced, columns) if dim == 2 else (rows, sliced)
    elif name == "constant_pad_nd":
        left, _, top, _ = (*args[1][:4], 0, 0, 0, 0)[:4]
        return rows.after_slice(-top), columns.after_slice(-left)
    return f"it contains the operation {name}, which is not supported"


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers[0], numbers[-1]


def _windowed(field: Field, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    down, across = zip(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), strict=True)
    return field[0].after_window(*down), field[1].after_window(*across)


class _ReluRecorder(TorchFunctionMode):
    """Record the output (B, C, H, W) of every ReLU, in the order of execution."""

    calls = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.calls and out.ndim == 4:
            self.maps.append(out)
        return out


def feature_maps(network: nn.Module, image_shape: tuple[int, int, int]) -> list[FeatureMap]:
    """Return the feature maps of a network in the order of execution.

    Args:
        network: any network with ReLU layers.
        image_shape: (C, H, W).

    Raises:
        UserError: the network has no ReLU, or an operation that is not supported.
    """
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes_only = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    image = torch.empty(1, *image_shape, device="meta")
    tracker = _FieldTracker(image)

    def on_enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            tracker.layer = name.removeprefix("backbone.")

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                stack.enter_context(_hook(module.register_forward_pre_hook(on_enter(name))))
        stack.enter_context(torch.no_grad())
        stack.enter_context(tracker)
        torch.func.functional_call(network, shapes_only, image)
    if not tracker.feature_maps:
        raise UserError("This network has no feature map after a ReLU: give a run with another backbone.")
    return tracker.feature_maps


@contextlib.contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def activations(network: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the output of the network and its feature maps (B, C_i, H_i, W_i), in the order of `feature_maps`."""
    recorder = _ReluRecorder()
    with recorder:
        out: Tensor = network(x_BCHW)
    return out, recorder.maps


def evenly_spaced(length: int, max_indices: int) -> list[int]:
    """Return at most `max_indices` evenly spaced indices below `length`, including the first and the last one."""
    if length <= max_indices:
        return list(range(length))
    if max_indices == 1:
        return [length - 1]
    return [round(index * (length - 1) / (max_indices - 1)) for index in range(max_indices)]
