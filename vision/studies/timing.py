"""Timing of layers and networks: with warm-up, synchronization, interleaved repetitions and medians.

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
KINDS: Mapping[str, tuple[str, str]] = {  # by function: kind of layer, prefix of its name
    "conv2d": (CONVOLUTION, "conv"),
    "linear": (CONNECTED, "fc"),
    "relu": ("ReLU", "relu"),
    "relu_": ("ReLU", "relu"),
    "max_pool2d": ("pooling", "pool"),
    "avg_pool2d": ("pooling", "pool"),
    "adaptive_avg_pool2d": ("pooling", "pool"),
    "mean": ("pooling", "pool"),
    "batch_norm": ("normalization", "norm"),
    "local_response_norm": ("normalization", "norm"),
    "dropout": ("dropout", "drop"),
}
SETTLE_SECONDS = (
    0.005  # threads of numerical libraries spin for a while after their work and would disturb the next one
)
OTHER = "other"  # additions of shortcuts, concatenations, changes of shape


@dataclass(frozen=True)
class Call:
    """Layer with the input that it got in a forward pass."""

    name: str
    """Name as in the papers: conv1, relu1, pool1, conv2, ..., fc6."""
    kind: str
    run: Callable[[], object]
    """Run the layer again on the same input."""


class _CallRecorder(TorchFunctionMode):
    """Record every call of a function that returns a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._weighted = 0  # number of layers with weights so far

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            function = func.__name__
            kind, prefix = KINDS.get(function, (OTHER, function.strip("_")))
            self._weighted += kind in {CONVOLUTION, CONNECTED}
            self.calls.append(Call(f"{prefix}{self._weighted}", kind, lambda: func(*args, **kwargs)))
        return out


def record_calls(network: nn.Module, x_BCHW: Tensor) -> list[Call]:
    """Record all layers of a network in the order of execution, so that each can be timed on its own input.

    The calls keep their inputs in memory. An in-place layer that runs again has its own result as input, which takes
    the same time.
    """
    recorder = _CallRecorder()
    with torch.no_grad(), recorder:
        network(x_BCHW)
    return recorder.calls


def synchronize() -> None:
    """Synchronize with the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(
    work: Mapping[KeyT, Callable[[], object]],
    rounds: int,
    warmup_rounds: int = 2,
    min_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[KeyT, list[float]]:
    """Measure the seconds that each function takes, once per round. The functions are interleaved within a round.

    Args:
        work: functions by name. They are called without gradients.
        rounds: number of measurements of each function.
        warmup_rounds: rounds that are not measured. The first one compiles and fills caches.
        min_seconds: a short function is repeated for about this time in each round, and the mean is taken.
        clock: returns seconds. time.process_time counts the CPU time of all threads, where other programs run.
    """
    repeats: dict[KeyT, int] = {}
    seconds: dict[KeyT, list[float]] = {key: [] for key in work}
    with torch.no_grad():
        for round_number in range(warmup_rounds + rounds):
            for key, run in work.items():
                synchronize()
                time.sleep(SETTLE_SECONDS)
                start = clock()
                for _ in range(repeats.get(key, 1)):
                    run()
                synchronize()
                each = (clock() - start) / repeats.get(key, 1)
                if round_number < warmup_rounds:
                    repeats[key] = max(1, round(min_seconds / max(each, 1e-9)))
                else:
                    seconds[key].append(each)
    return seconds


@dataclass(frozen=True)
class TimeFractions:
    """Fractions of the time of a forward pass."""

    convolution: float
    """Convolutions, as a fraction of all layers."""
    connected: float
    """Fully connected layers, as a fraction of all layers."""
    both: float
    """Convolutions and fully connected layers together: "95% on GPU, 89% on CPU" in Jia (2014)."""
    convolution_without_connected: float
    """Convolutions, as a fraction of all layers that are not fully connected."""


def time_fractions(seconds: Sequence[tuple[str, float]]) -> TimeFractions:
    """Compute the fractions from the layers' (kind, seconds).

    Raises:
        ValueError: the sum of the times is 0.
    """
    total = sum(each for _, each in seconds)
    if total <= 0:
        raise ValueError("the layers took no time: the sum of their seconds is 0")
    convolution = sum(each for kind, each in seconds if kind == CONVOLUTION)
    connected = sum(each for kind, each in seconds if kind == CONNECTED)
    rest = total - connected
    return TimeFractions(
        convolution / total, connected / total, (convolution + connected) / total, convolution / rest if rest else 0.0
    )


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)
