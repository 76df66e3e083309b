"""Tests of max-pooling: equal to PyTorch's, and with PyTorch's kernel as the backward pass of compiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func

from zerokara.core.backbones.impala import Impala
from zerokara.core.max_pool import MaxPool2d, max_pool2d

needs_is_exporting = pytest.mark.skipif(torch.__version__ < "2.12", reason="compilation counts as export in 2.11")
WINDOWS = [(2, 2, 0, False), (3, 2, 1, False), (3, 1, 1, False), (3, 2, 0, True), (2, 2, 0, True), (4, 3, 2, False)]


@pytest.fixture(autouse=True)
def _new_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs_of(function: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], list[str]]:
    """Compile a function as one graph, without code generation; also returns the operators of its graphs."""
    operators: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        boxed: Callable[..., Any] = make_boxed_func(graph.forward)
        return boxed

    backend = aot_autograd(fw_compiler=record, bw_compiler=record)
    return torch.compile(function, backend=backend, fullgraph=True), operators


def maps(channels_last: bool = True) -> Tensor:
    """Maps (2, 8, 9, 14) with many equal values, so that maxima are not unique."""
    x = torch.randint(5, (2, 8, 9, 14), generator=torch.Generator().manual_seed(0)).float()
    return x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_()


@needs_is_exporting
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("window", "stride", "padding", "ceil_mode"), WINDOWS)
def test_outputs_and_gradients_are_those_of_pytorch(
    window: int, stride: int, padding: int, ceil_mode: bool, channels_last: bool
) -> None:
    compiled, operators = graphs_of(lambda x: max_pool2d(x, window, stride, padding, ceil_mode=ceil_mode))
    ours, theirs = maps(channels_last), maps(channels_last)
    pooled = compiled(ours)
    expected = F.max_pool2d(theirs, window, stride, padding, ceil_mode=ceil_mode)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    pooled.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(pooled, expected)
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)
    assert "zerokara.max_pool2d_backward.default" in operators
    assert not any("max_pool2d_with_indices_backward" in operator for operator in operators)


@needs_is_exporting
def test_an_impala_network_is_compiled_with_it() -> None:
    network = Impala(4, 84)
    compiled, operators = graphs_of(lambda x: network(x).float().square().mean())
    with torch.autocast("cpu", torch.bfloat16):
        loss = compiled(torch.rand(2, 4, 84, 84))
    loss.backward()
    assert operators.count("zerokara.max_pool2d_backward.default") == 3  # of its sections


def test_without_compilation_or_without_gradients_it_is_pytorch_function() -> None:
    pooled = max_pool2d(maps(), 3, 2, 1)
    assert pooled.grad_fn is not None
    assert type(pooled.grad_fn).__name__ == "MaxPool2DWithIndicesBackward0"
    compiled, operators = graphs_of(lambda x: max_pool2d(x, 3, 2, 1))
    with torch.no_grad():
        assert torch.equal(compiled(maps()), F.max_pool2d(maps(), 3, 2, 1))
    assert not any("zerokara" in operator for operator in operators)


@pytest.mark.parametrize("strict", [False, True])
def test_a_network_that_is_exported_has_no_operator_of_ours(strict: bool) -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3), MaxPool2d(2)).train()
    exported = torch.export.export(network, (maps().detach(),), strict=strict)  # strict: traced as in compilation
    targets = [str(node.target) for node in exported.graph.nodes]
    assert any("max_pool2d" in target for target in targets)
    assert not any("zerokara" in target for target in targets)


def test_the_module_is_one_of_pytorch_with_the_same_arguments() -> None:
    ours, theirs = MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)
    assert isinstance(ours, nn.MaxPool2d)
    assert torch.equal(ours(maps()), theirs(maps()))
    assert repr(ours) == repr(theirs)
