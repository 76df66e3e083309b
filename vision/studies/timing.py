"""Time, measured honestly: warmed up, the device waited for, competitors taking turns, medians.

Shapes: B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KeyT = TypeVar("KeyT")

CONVOLUTION, CONNECTED = "convolution", "fully connected"
KINDS: Mapping[str, tuple[str, str]] = {  # by function: kind, and how a layer of it is called
    "conv2d": (CONVOLUTION, "conv"),
    "linear": (CONNECTED, "fc"),
    "relu": ("ReLU", "relu"),
    "relu_": ("ReLU", "relu"),
    "max_pool2d": ("pooling", "pool"),
    "avg_pool2d": ("pooling", "pool"),
    "adaptive_avg_pool2d": ("pooling", "pool"),
    "mean": ("pooling", "pool"),
    "batch_norm": ("normalisation", "norm"),
    "local_response_norm": ("normalisation", "norm"),
    "dropout": ("dropout", "drop"),
}
SETTLE_SECONDS = 0.005  # libraries' threads spin for a while after their work, and would be in the next one's way
OTHER = "other"  # sums of shortcuts, joins of branches, changes of shape


@dataclass(frozen=True)
class Call:
    """A layer with the input that it was given in a real pass."""

    name: str
    """As the papers number them: conv1, relu1, pool1, conv2, ..., fc6."""
    kind: str
    run: Callable[[], object]
    """Does its arithmetic once more."""


class _Record(TorchFunctionMode):
    """Notes every function that gives a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._weighted = 0  # layers with weights so far

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            word = func.__name__
            kind, short = KINDS.get(word, (OTHER, word.strip("_")))
            self._weighted += kind in {CONVOLUTION, CONNECTED}
            self.calls.append(Call(f"{short}{self._weighted}", kind, lambda: func(*args, **kwargs)))
        return out


def calls_of(network: nn.Module, x_BCHW: Tensor) -> list[Call]:
    """Every layer of a network in the order of execution, ready to be timed by itself on what it was given.

    The inputs are kept as long as the calls are. A layer that works in place works on its own result when it is run
    again; that takes as long.
    """
    record = _Record()
    with torch.no_grad(), record:
        network(x_BCHW)
    return record.calls


def wait() -> None:
    """Wait until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(
    work: Mapping[KeyT, Callable[[], object]], rounds: int, warm_up: int = 2, least_seconds: float = 0.0
) -> dict[KeyT, list[float]]:
    """Seconds that each piece of work takes, once for each round; the pieces take turns.

    Args:
        work: by name; called without gradients.
        rounds: turns of each.
        warm_up: turns that are not counted; the first compiles and fills caches.
        least_seconds: a turn repeats short work until about this much time is over, and takes the mean.
    """
    repeats: dict[KeyT, int] = {}
    seconds: dict[KeyT, list[float]] = {key: [] for key in work}
    with torch.no_grad():
        for turn in range(warm_up + rounds):
            for key, run in work.items():
                wait()
                time.sleep(SETTLE_SECONDS)
                began = time.perf_counter()
                for _ in range(repeats.get(key, 1)):
                    run()
                wait()
                each = (time.perf_counter() - began) / repeats.get(key, 1)
                if turn < warm_up:
                    repeats[key] = max(1, round(least_seconds / max(each, 1e-9)))
                else:
                    seconds[key].append(each)
    return seconds


@dataclass(frozen=True)
class Shares:
    """Where a forward pass's time goes, from 0 to 1."""

    convolution: float
    """Convolutions, of all layers."""
    connected: float
    """Fully connected layers, of all layers."""
    both: float
    """Convolutions and fully connected layers together: what Jia's "95% on GPU, 89% on CPU" are about."""
    convolution_without_connected: float
    """Convolutions, of all layers but the fully connected ones."""


def shares(seconds: Sequence[tuple[str, float]]) -> Shares:
    """The shares of layers given as (kind, seconds).

    Raises:
        ValueError: no time at all.
    """
    total = sum(each for _, each in seconds)
    if total <= 0:
        raise ValueError("the layers took no time")
    convolution = sum(each for kind, each in seconds if kind == CONVOLUTION)
    connected = sum(each for kind, each in seconds if kind == CONNECTED)
    rest = total - connected
    return Shares(
        convolution / total, connected / total, (convolution + connected) / total, convolution / rest if rest else 0.0
    )


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)
