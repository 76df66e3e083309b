"""Parts that recordings of training programs share: copies and averages of weights, and one process of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zerokara.core.compute import Compute
from zerokara.core.distributed import World

ValueT = TypeVar("ValueT")


class Shard(World):
    """One of two processes, whose collective operations do nothing. Recordings replace `World.mean_gradients`."""

    def broadcast(self, module: nn.Module) -> None: ...

    def broadcast_value(self, value: ValueT) -> ValueT:
        """Return the value; the main process's hardware settings in the other process."""
        settings: Any = {"compute": Compute(threads=1).to_dict()}
        return settings if value == {"compute": {}} else value

    def gather(self, value: ValueT) -> list[ValueT]:
        """Return the value as that of all processes."""
        return [value] * self.size

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        return flag

    def barrier(self) -> None: ...

    def close(self) -> None: ...


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
