"""Max-pooling whose backward pass stays fast in compiled code.

TorchInductor compiles the backward pass of max-pooling for CPUs into a loop over the windows of each pixel, which it
hardly vectorizes: a quarter of the time of an update of an IMPALA network (docs/LOG.md). PyTorch's own kernel adds each
gradient to the pixel that it belongs to. In compiled code on a CPU the functions here call that kernel; elsewhere they
are `F.max_pool2d`. Gradients are the same, apart from the rounding of sums where windows overlap. In PyTorch 2.11
`torch.compiler.is_exporting` is True in compiled code, too (pytorch/pytorch#176347), so they are `F.max_pool2d` there.

Shapes: B batch, C channels, H, W pixels of the input, h, w of the output.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("zerokara::max_pool2d_backward", mutates_args=())
def _backward(
    gradient: Tensor, x: Tensor, index: Tensor, window: int, stride: int, padding: int, ceil_mode: bool
) -> Tensor:
    """Compute the gradient of the input by PyTorch's kernel. TorchInductor does not look into custom operators."""
    shape = [window, window], [stride, stride], [padding, padding], [1, 1]
    result: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(gradient, x, *shape, ceil_mode, index)
    return result


@_backward.register_fake
def _(gradient: Tensor, x: Tensor, index: Tensor, window: int, stride: int, padding: int, ceil_mode: bool) -> Tensor:
    return torch.empty_like(x)


class _MaxPool(torch.autograd.Function):
    """Max-pooling with `_backward` as its backward pass. Returns the maxima and their positions."""

    @staticmethod
    def forward(x: Tensor, window: int, stride: int, padding: int, ceil_mode: bool) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(x, window, stride, padding, ceil_mode=ceil_mode, return_indices=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *ctx.arguments = inputs
        ctx.save_for_backward(x, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(gradient, *ctx.saved_tensors, *ctx.arguments), None, None, None, None


def max_pool2d(
    x: Tensor, window: int, stride: int | None = None, padding: int = 0, *, ceil_mode: bool = False
) -> Tensor:
    """Max-pool maps (B, C, H, W) to (B, C, h, w), as `F.max_pool2d`.

    Args:
        x: maps.
        window: side of the square windows, in pixels.
        stride: distance of the windows, in pixels; None: `window`.
        padding: margin on all sides, in pixels, which is never a maximum.
        ceil_mode: round h and w up instead of down.
    """
    stride = stride or window
    compiled = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
    if compiled and x.device.type == "cpu" and torch.is_grad_enabled():
        pooled: Tensor
        pooled, _ = _MaxPool.apply(x, window, stride, padding, ceil_mode)  # type: ignore[no-untyped-call]
        return pooled
    return F.max_pool2d(x, window, stride, padding, ceil_mode=ceil_mode)


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d` with square windows, by `max_pool2d`."""

    def __init__(self, window: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__(window, stride, padding)
        self._arguments = window, stride, padding

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (PyTorch's name)
        """See `max_pool2d`."""
        return max_pool2d(input, *self._arguments)
