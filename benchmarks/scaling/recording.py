"""Recording of what a job computes and communicates in an iteration, and its repetition with sleeps for computation.

    recording = record(JOBS["dqn"], arguments, compute)
    replay = Replay(recording, world)
    replay.update()  # sleeps, and averages with the job's own code

Two cores cannot compute for eight hosts, but they can sleep for them. The averaging is that of the programs:
`World.mean_gradients`, `World.mean_weights`, votes by `World.any` and `World.max`, and the buckets of `DataParallel`,
which are exchanged while the backward pass goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.scaling.jobs import Job, Work
from benchmarks.scaling.model import VOTE_BYTES, Phase
from zerokara.core.compute import Compute
from zerokara.core.data_parallel import DataParallel
from zerokara.core.distributed import World

ValueT = TypeVar("ValueT")

FLOAT_BYTES = 4
VOTES = ("any", "max")
BUCKET_BYTES = (1 << 20, 25 << 20)  # of DistributedDataParallel: the first bucket, and the others


@dataclass(frozen=True)
class Event:
    """Computation of an iteration, and the communication that follows it."""

    kind: str
    """any, max (votes), mean_gradients, mean_weights, backward (gradients averaged while computed) or end."""
    seconds: tuple[float, ...]
    """Computation before it; of backward: up to the gradient of each parameter in `order`, from the one before."""
    network: str = ""
    """Network whose gradients or weights are averaged."""
    order: tuple[int, ...] = ()
    """Of backward: numbers of the parameters, in the order in which their gradients become ready."""


@dataclass(frozen=True)
class Recording:
    """One iteration of a job."""

    items: int
    """Images or agent steps of one process."""
    networks: dict[str, list[int]]
    """Elements of each tensor of a network."""
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        """Computation of the iteration."""
        return sum(sum(event.seconds) for event in self.events)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with times in microseconds."""
        plain = dataclasses.asdict(self)
        for event in plain["events"]:
            event["microseconds"] = [round(1e6 * seconds) for seconds in event.pop("seconds")]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Recording:
        """Read what `to_dict` returned."""
        events = tuple(
            Event(
                event["kind"],
                tuple(1e-6 * microseconds for microseconds in event["microseconds"]),
                event["network"],
                tuple(event["order"]),
            )
            for event in plain["events"]
        )
        return cls(plain["items"], plain["networks"], events)


@dataclass(frozen=True)
class RecordingWorld(World):
    """First of two processes, of which the second does the same; it records the collective operations."""

    size: int = 2
    calls: list[tuple[float, str, list[int]]] = field(default_factory=list, compare=False)
    """Time of each operation, its name, and the elements of its tensors."""

    def _note(self, kind: str, tensors: Iterable[Tensor] = ()) -> None:
        self.calls.append((time.perf_counter(), kind, [tensor.numel() for tensor in tensors]))

    def mean_gradients(self, parameters: Iterable[nn.Parameter], masters: Iterable[nn.Parameter] | None = None) -> None:
        """Record the gradients."""
        self._note("mean_gradients", [p.grad for p in parameters if p.grad is not None])

    def mean_weights(self, module: nn.Module) -> None:
        """Record the floating-point parameters and buffers."""
        self._note("mean_weights", [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()])

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Record a vote, and return that of this process."""
        self._note("any")
        return flag

    def max(self, values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
        """Record and return the values."""
        self._note("max")
        return list(values)

    def mean(self, tensor: Tensor) -> Tensor:
        """Record and return the tensor."""
        self._note("mean")
        return tensor.detach().clone()

    def broadcast(self, module: nn.Module) -> None:
        """Record it."""
        self._note("broadcast")

    def broadcast_value(self, value: ValueT) -> ValueT:
        """Record and return the value."""
        self._note("broadcast_value")
        return value

    def gather(self, value: ValueT) -> list[ValueT]:
        """Record it, and return the value of both processes."""
        self._note("gather")
        return [value, value]

    def barrier(self) -> None:
        """Record it."""
        self._note("barrier")


def record(job: Job, arguments: argparse.Namespace, compute: Compute, repeats: int = 5, before: int = 1) -> Recording:
    """Record the shortest iteration among `repeats`, because other programs can only make one longer.

    Args:
        job: to record.
        arguments: that the job reads.
        compute: hardware settings, which are applied.
        repeats: iterations of which one is chosen.
        before: iterations before them.

    Raises:
        ValueError: the job communicates in a way that `Replay` does not repeat.
    """
    world = RecordingWorld()
    # DistributedDataParallel needs processes; in one, the times of the gradients tell when it would average them.
    work = job.make(arguments, compute, World() if job.overlaps else world, 1)
    try:
        notes = _note_gradients(work.networks)
        recordings = []
        for number in range(-before, repeats):
            world.calls.clear()
            notes.clear()
            start = time.perf_counter()
            work.update()
            end = time.perf_counter()
            if number >= 0:
                if job.overlaps:
                    recordings.append(_overlapped(work, notes, start, end))
                else:
                    recordings.append(_blocking(work, world.calls, start, end))
    finally:
        work.close()
    return min(recordings, key=lambda recording: recording.seconds)


def _note_gradients(networks: Mapping[str, nn.Module]) -> list[tuple[float, str, int]]:
    """Return a list to which the networks add time, name and number of each parameter whose gradient is ready."""
    notes: list[tuple[float, str, int]] = []

    def note(name: str, index: int, parameter: Tensor) -> None:
        notes.append((time.perf_counter(), name, index))

    for name, network in networks.items():
        for index, parameter in enumerate(p for p in network.parameters() if p.requires_grad):
            parameter.register_post_accumulate_grad_hook(partial(note, name, index))
    return notes


def _overlapped(work: Work, notes: Sequence[tuple[float, str, int]], start: float, end: float) -> Recording:
    """Return the recording of an iteration with backward passes, from the times of the gradients."""
    networks = {name: [p.numel() for p in network.parameters()] for name, network in work.networks.items()}
    events, before = [], start
    for name in dict.fromkeys(name for _, name, _ in notes):
        times, order = zip(*((at, index) for at, each, index in notes if each == name), strict=True)
        missing = tuple(index for index in range(len(networks[name])) if index not in order)  # they get zeros at once
        gaps = (0.0,) * len(missing) + tuple(b - a for a, b in pairwise((before, *times)))
        events.append(Event("backward", gaps, name, (*missing, *order)))
        before = times[-1]
    return Recording(work.items, networks, (*events, Event("end", (end - before,))))


def _blocking(work: Work, calls: Sequence[tuple[float, str, list[int]]], start: float, end: float) -> Recording:
    """Return the recording of an iteration that waits for each of its collective operations."""
    networks: dict[str, list[int]] = {}
    events, before = [], start
    for at, kind, elements in calls:
        if kind not in (*VOTES, "mean_gradients", "mean_weights"):
            raise ValueError(f"an iteration calls World.{kind}, which is not repeated")
        name = "" if kind in VOTES else f"{sum(elements)} elements"
        if name:
            networks[name] = elements
        events.append(Event(kind, (at - before,), name))
        before = at
    return Recording(work.items, networks, (*events, Event("end", (end - before,))))


def buckets(elements: Sequence[int]) -> list[list[int]]:
    """Divide parameters into the buckets of DistributedDataParallel, the last parameter first.

    Li et al. 2020, section 3.2.3: a bucket is full when it has `BUCKET_BYTES`, the first one less.
    """
    order = range(len(elements) - 1, -1, -1)
    tensors = [torch.empty(elements[index], device="meta") for index in order]
    found, _ = dist._compute_bucket_assignment_by_size(tensors, list(BUCKET_BYTES))  # type: ignore[attr-defined]
    return [[order[position] for position in bucket] for bucket in found]


def phases(recording: Recording) -> list[Phase]:
    """Return the iteration for the cost model: computation, and the messages that are averaged during or after it."""
    found = []
    for event in recording.events:
        seconds = sum(event.seconds)
        sizes = recording.networks.get(event.network, [])
        if event.kind == "backward":
            ready = dict(zip(event.order, accumulate(event.seconds), strict=True))
            messages = tuple(
                (max(ready[index] for index in bucket), FLOAT_BYTES * sum(sizes[index] for index in bucket))
                for bucket in buckets(sizes)
            )
        elif event.kind == "end":
            messages = ()
        else:
            messages = ((seconds, VOTE_BYTES if event.kind in VOTES else FLOAT_BYTES * sum(sizes)),)
        found.append(Phase(seconds, messages))
    return found


class Replay:
    """Repetition of a recorded iteration in which the process sleeps instead of computing.

    Args:
        recording: of a job.
        world: processes that communicate.
    """

    def __init__(self, recording: Recording, world: World) -> None:
        self._recording, self._world = recording, world
        self._networks = {name: _zeros(sizes) for name, sizes in recording.networks.items()}
        self._parallel = {name: DataParallel(world, network) for name, network in self._networks.items()}

    def update(self) -> None:
        """Do one iteration."""
        for event in self._recording.events:
            if event.kind == "backward":
                self._backward(event)
                continue
            time.sleep(event.seconds[0])
            if event.kind == "any":
                self._world.any(False)
            elif event.kind == "max":
                self._world.max([0.0, 0.0])
            elif event.kind == "mean_gradients":
                self._world.mean_gradients(self._networks[event.network].parameters())
            elif event.kind == "mean_weights":
                self._world.mean_weights(self._networks[event.network])

    def _backward(self, event: Event) -> None:
        """Sleep in the backward pass until the recorded time of each gradient, which is zero."""
        network, parallel = self._networks[event.network], self._parallel[event.network]
        parameters = list(network.parameters())
        for parameter in parameters:
            parameter.grad = None
        start = time.perf_counter()

        def paused_loss() -> Tensor:
            total = torch.zeros((), requires_grad=True)
            for index, seconds in reversed(list(zip(event.order, accumulate(event.seconds), strict=True))):
                total = _Pause.apply(total, parameters[index], start + seconds)  # type: ignore[no-untyped-call]
            return total

        parallel.backward(parallel.forward(paused_loss))


def _zeros(sizes: Sequence[int]) -> nn.Module:
    """Return a module with parameters of these numbers of elements, which have gradients."""
    network = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes])
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return network


class _Pause(torch.autograd.Function):
    """Identity whose backward pass sleeps until a time, and then returns a gradient of zero for a parameter."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, parameter: Tensor, until: float) -> Tensor:
        ctx.shape, ctx.until = parameter.shape, until
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        time.sleep(max(0.0, ctx.until - time.perf_counter()))
        return grad, grad.new_zeros(ctx.shape), None
