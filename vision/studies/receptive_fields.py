"""How deep networks see: where each rectified feature map looks, and what it says.

A depth is the output of a ReLU that is still a map. Its receptive field is exact: every operation between the image
and the map is followed with its stride, padding and dilation, over all branches and shortcuts, without arithmetic.

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
    """What positions of a map see along one axis: the i-th sees input pixels first + jump i to last + jump i.

    Pixels below 0 or beyond the edge are padding.
    """

    jump: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Pixels that one position sees."""
        return self.last - self.first + 1

    def at(self, position: int) -> tuple[int, int]:
        """First and last pixel that a position sees."""
        return self.first + self.jump * position, self.last + self.jump * position

    def windowed(self, kernel: int, stride: int, padding: int, dilation: int) -> Self:
        """Behind a convolution or a pool."""
        return replace(
            self,
            jump=self.jump * stride,
            first=self.first - self.jump * padding,
            last=self.last + self.jump * (dilation * (kernel - 1) - padding),
        )

    def shifted(self, positions: int, step: int = 1) -> Self:
        """Of every step-th position, beginning with `positions`, which is negative where some were put in front."""
        offset = self.jump * positions
        return replace(self, jump=self.jump * step, first=self.first + offset, last=self.last + offset)

    def joined(self, other: Self) -> Self:
        """Of a sum: both are seen.

        Raises:
            ValueError: their strides differ, so no rectangle moves with both.
        """
        if self.jump != other.jump:
            raise ValueError(f"maps of strides {self.jump} and {other.jump} are joined")
        return replace(self, first=min(self.first, other.first), last=max(self.last, other.last))


@dataclass(frozen=True)
class Depth:
    """A rectified feature map."""

    name: str
    """The convolution before it, as the backbone names it."""
    shape: tuple[int, int, int]
    """(C, H, W)."""
    rows: Span
    columns: Span


Field = tuple[Span, Span]  # rows, columns
# Every number of the result comes from numbers of the operands at its own place.
POINTWISE = {
    *("add", "add_", "sub", "mul", "mul_", "div", "relu", "relu_", "hardtanh", "sigmoid", "tanh", "clamp", "sign"),
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_dropout"),
    *("clone", "_to_copy", "detach", "alias", "where", "cat"),
}


class _Follow(TorchDispatchMode):
    """Notes the receptive field of every map that is made from the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch left it without annotations
        pixel = Span(1, 0, 0)
        self.layer = "image"
        self.depths: list[Depth] = []
        # The tensors are kept with their fields: an id is only good while its tensor lives.
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
            field = _behind(name, args, sources)
            self._known[id(result)] = (result, field)
            if name in {"relu", "relu_"}:
                if isinstance(field, str):
                    raise UserError(f"The receptive fields of this network are not known: {field}.")
                channels, height, width = result.shape[1:]
                self.depths.append(Depth(self.layer, (channels, height, width), *field))
        return out


def _behind(name: str, args: Sequence[Any], sources: Sequence[Field | str]) -> Field | str:
    """The receptive field behind an ATen operation, or why it is not known."""
    fields = []
    for source in sources:
        if isinstance(source, str):
            return source
        fields.append(source)
    rows, columns = fields[0]
    if name in POINTWISE:
        try:
            for other_rows, other_columns in fields[1:]:
                rows, columns = rows.joined(other_rows), columns.joined(other_columns)
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
            moved = (rows, columns)[dim - 2].shifted(start or 0, step)
            return (moved, columns) if dim == 2 else (rows, moved)
    elif name == "constant_pad_nd":
        left, _, top, _ = (*args[1][:4], 0, 0, 0, 0)[:4]
        return rows.shifted(-top), columns.shifted(-left)
    return f"it contains the operation {name}, which is not followed here"


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers[0], numbers[-1]


def _windowed(field: Field, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    down, across = zip(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), strict=True)
    return field[0].windowed(*down), field[1].windowed(*across)


class _Rectified(TorchFunctionMode):
    """Keeps what every ReLU says that is still a map (B, C, H, W), in the order of execution."""

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


def depths_of(network: nn.Module, image_shape: tuple[int, int, int]) -> list[Depth]:
    """Every depth of a network that takes images of (C, H, W), in the order of execution.

    Raises:
        UserError: an operation whose receptive field is not known here, or no ReLU at all.
    """
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes_only = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    image = torch.empty(1, *image_shape, device="meta")
    follow = _Follow(image)

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            follow.layer = name.removeprefix("backbone.")

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                stack.enter_context(_removed(module.register_forward_pre_hook(enter(name))))
        stack.enter_context(torch.no_grad())
        stack.enter_context(follow)
        torch.func.functional_call(network, shapes_only, image)
    if not follow.depths:
        raise UserError(
            "This network has no ReLU whose feature map could be looked at; give a run of another backbone."
        )
    return follow.depths


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def activations(network: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the network gives for images, and the feature map of each of `depths_of` (B, C_i, H_i, W_i)."""
    rectified = _Rectified()
    with rectified:
        out: Tensor = network(x_BCHW)
    return out, rectified.maps


def spread(depths: Sequence[Depth], most: int) -> list[int]:
    """The places of at most so many depths, evenly spread; the first and the last are among them where two fit."""
    if len(depths) <= most:
        return list(range(len(depths)))
    if most == 1:
        return [len(depths) - 1]
    return [round(index * (len(depths) - 1) / (most - 1)) for index in range(most)]
