"""Parts that recordings of training programs share: copies and averages of weights, gradients, one process of two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.compute import Compute
from zerokara.core.data_parallel import DataParallel
from zerokara.core.distributed import World

ValueT = TypeVar("ValueT")


class Shard(World):
    """One of two processes, whose collective operations do nothing. See `record_averages`."""

    def broadcast(self, module: nn.Module) -> None: ...

    def broadcast_value(self, value: ValueT) -> ValueT:
        """Return the value; the main process's hardware settings in the other process."""
        settings: Any = {"compute": Compute(threads=1).to_dict(), "local_size": self.local_size}
        return settings if value == {**settings, "compute": {}} else value

    def shard(self, number: int) -> slice:
        """Return all items, since there is no other process that evaluates the rest."""
        return slice(0, number)

    def gather(self, value: ValueT) -> list[ValueT]:
        """Return the value as that of all processes; a list of results as that of the only process with a shard."""
        others: list[Any] = [[] if isinstance(value, list) else value] * (self.size - 1)
        return [value, *others]

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        return flag

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the tensor as that of all processes."""
        return tensor.detach().clone()

    def max(self, values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
        return list(values)

    def barrier(self) -> None: ...

    def close(self) -> None: ...


class Unconnected:
    """In place of PyTorch's DistributedDataParallel: the passes of this process alone."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def record_averages(patch: pytest.MonkeyPatch, record: Callable[[set[int]], None]) -> None:
    """Let no gradients be exchanged. Call `record` with the ids of the parameters whose gradients would be averaged.

    PyTorch averages them in a backward pass whose forward pass was not within `no_sync`.
    """
    forward, backward = DataParallel.forward, DataParallel.backward
    synchronized: set[int] = set()

    def recording_forward(parallel: DataParallel, function: Callable[..., Any], *args: Any) -> Any:
        if parallel.synchronizes and torch.is_grad_enabled():
            synchronized.add(id(parallel))
        return forward(parallel, function, *args)

    def recording_backward(parallel: DataParallel, loss: Tensor) -> None:
        backward(parallel, loss)
        if id(parallel) in synchronized:
            synchronized.remove(id(parallel))
            record({id(p) for p in parallel.network.parameters() if p.requires_grad})

    patch.setattr(DataParallel, "forward", recording_forward)
    patch.setattr(DataParallel, "backward", recording_backward)
    patch.setattr(DataParallel, "_connect", lambda _: Unconnected())


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    """Copy of the weights and buffers of a network."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def averaged(
    weights: Sequence[Mapping[str, Tensor]], first: Mapping[str, Tensor], half_life: float
) -> dict[str, Tensor]:
    """Moving average of weights by its definition: the half-life grows to `half_life` updates.

    Args:
        weights: after each update.
        first: before the first update.
        half_life: in updates; at most a twentieth of the updates so far.
    """
    mean = dict(first)
    for number, current in enumerate(weights, 1):
        keep = 0.5 ** (1 / min(half_life, number / 20))
        mean = {name: keep * mean[name] + (1 - keep) * weight for name, weight in current.items()}
    return mean
