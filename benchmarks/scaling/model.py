"""Cost model of training on several hosts: computation, latency, bytes over bandwidth, and their overlap.

An all-reduce of m bytes over N hosts as a ring takes 2 (N - 1) steps, in each of which every host sends m / N bytes to
its neighbor (Thakur, Rabenseifner and Gropp 2005, "Optimization of Collective Communication Operations in MPICH",
section 4.5; Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"). A message
of n bytes takes alpha + n beta seconds (Hockney 1994). An iteration is a sequence of phases; a phase ends when its
computation and its messages, which are averaged one after another, have ended.

Here several hosts share the cores of one machine, so that the fitted model also has the time of the cores for each
message and byte of all hosts. The extrapolation leaves it out: there every host has its own cores. To be fitted, rings
of two and four hosts average at the same time, so that the cores have as much to do as with one ring of all hosts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Cost = Callable[[int], float]
"""Seconds of an all-reduce of a number of bytes."""
Bound = Literal["computation", "latency", "bandwidth"]
VOTE_BYTES = 8  # World.any: one int64; World.max: two float32 or, in votes of a program, three, which take as long


@dataclass(frozen=True)
class Phase:
    """Computation, and messages that are averaged over the hosts meanwhile or afterwards."""

    seconds: float
    messages: tuple[tuple[float, int], ...] = ()
    """For each: the second in which it is ready, and its bytes."""


def iteration_seconds(phases: Sequence[Phase], cost: Cost) -> float:
    """Return the length of an iteration.

    A message starts when it is ready and the one before has arrived.
    """
    total = 0.0
    for phase in phases:
        arrived = 0.0
        for ready, size in phase.messages:
            arrived = max(arrived, ready) + cost(size)
        total += max(phase.seconds, arrived)
    return total


def ring_bytes(size: int, hosts: int) -> float:
    """Return the bytes that each host sends in an all-reduce of `size` bytes as a ring."""
    return 2 * (hosts - 1) / hosts * size


@dataclass(frozen=True)
class Link:
    """Network between hosts."""

    latency: float
    """Seconds of an empty message."""
    bandwidth: float
    """Bytes per second of a host, in each direction."""


def ring_seconds(size: int, hosts: int, link: Link) -> float:
    """Return the length of an all-reduce as a ring: 2 (N - 1) (latency + size / N / bandwidth)."""
    return 2 * (hosts - 1) * link.latency + ring_bytes(size, hosts) / link.bandwidth


def doubling_seconds(size: int, hosts: int, link: Link) -> float:
    """Return the length of an all-reduce by recursive doubling: log2 N messages of the whole size.

    Thakur et al. 2005, section 4.5, for short messages; the number of hosts is rounded up to a power of two.
    """
    return math.ceil(math.log2(hosts)) * (link.latency + size / link.bandwidth)


def halving_seconds(size: int, hosts: int, link: Link) -> float:
    """Return the length of Rabenseifner's all-reduce: reduce-scatter by recursive halving, all-gather by doubling.

    Thakur et al. 2005, section 4.5, for long messages: 2 log2 N messages, and as many bytes as a ring.
    """
    return 2 * math.ceil(math.log2(hosts)) * link.latency + ring_bytes(size, hosts) / link.bandwidth


def best_seconds(size: int, hosts: int, link: Link) -> float:
    """Return the length of the fastest of the three algorithms, as a library would choose it."""
    if hosts == 1:
        return 0.0
    return min(algorithm(size, hosts, link) for algorithm in (ring_seconds, doubling_seconds, halving_seconds))


@dataclass(frozen=True)
class Prediction:
    """Extrapolation of one job to a number of hosts."""

    efficiency: float
    """Length of the iteration on one host over that on all."""
    bound: Bound
    """Longest of computation, latency and bandwidth, the latter two without the part that overlaps."""

    def speedup(self, hosts: int) -> float:
        """Return items per second of all hosts over those of one."""
        return self.efficiency * hosts


def predict(phases: Sequence[Phase], hosts: int, link: Link, factor: float = 1.0) -> Prediction:
    """Extrapolate the length of an iteration to a number of hosts, with the same work for each (weak scaling).

    Args:
        phases: of one host.
        hosts: number of hosts.
        link: network between them.
        factor: how many times as fast a host computes.
    """
    faster = [
        Phase(phase.seconds / factor, tuple((ready / factor, size) for ready, size in phase.messages))
        for phase in phases
    ]
    computation = iteration_seconds(faster, lambda size: 0.0)
    instant = Link(0.0, link.bandwidth)
    total = iteration_seconds(faster, lambda size: best_seconds(size, hosts, link))
    without_latency = iteration_seconds(faster, lambda size: best_seconds(size, hosts, instant))
    parts: dict[Bound, float] = {
        "computation": computation,
        "bandwidth": without_latency - computation,
        "latency": total - without_latency,
    }
    return Prediction(computation / total, max(parts, key=lambda part: parts[part]))


@dataclass(frozen=True)
class Sample:
    """Measured all-reduce."""

    rate: float
    """Nominal bytes per second of a host."""
    hosts: int
    size: int
    """Bytes."""
    seconds: float
    rings: int = 1
    """Rings of as many hosts that averaged at the same time, on the same cores."""


@dataclass(frozen=True)
class Fit:
    """All-reduce of `size` bytes in each of R rings of N hosts that share the cores of one machine.

    seconds = max(latency, wire, cores), the longest of three times that overlap, where
    latency = 2 (N - 1) (step + R k message + R N (1 + 1/2 + ... + 1/N) wait),
    wire = overhead 2 (N - 1) / N size / rate,
    cores = R (2 (N - 1) size core_byte + N size copy_byte).

    Gloo divides a message into 2 N parts, of which a vote, a single number, fills one: k = 1 instead of 2 N are sent in
    each step. A step of a ring ends when its slowest host has sent: the mean of the longest of N exponential delays is
    (1 + 1/2 + ... + 1/N) times that of one (Rényi 1953, "On the theory of order statistics"), and each delay grows with
    the number R N of hosts that want the cores. In a vote one host sends at a time, and no other is waited for.
    """

    step: float
    """Seconds of a step of the ring."""
    message: float
    """Seconds of the cores for a message."""
    wait: float
    """Seconds that a step waits for its slowest host, for each host that wants the cores."""
    overhead: float
    """Bytes on the wire over bytes of the message."""
    core_byte: float
    """Seconds of the cores to send a byte of each host in each step."""
    copy_byte: float
    """Seconds of the cores to copy and divide a byte of each host, once for each all-reduce."""

    def seconds(self, rate: float, hosts: int, size: int, rings: int = 1) -> float:
        """Return the predicted length of an all-reduce of each ring."""
        steps = 2 * (hosts - 1)
        parts, wait = 2 * hosts, hosts * sum(1 / host for host in range(1, hosts + 1)) * self.wait
        if size <= VOTE_BYTES:
            parts, wait = 1, 0.0
        latency = steps * (self.step + rings * (parts * self.message + wait))
        wire = self.overhead * ring_bytes(size, hosts) / rate
        cores = rings * size * (steps * self.core_byte + hosts * self.copy_byte)
        return max(latency, wire, cores)


def fit(samples: Sequence[Sample]) -> Fit:
    """Fit the model by least squares of the logarithm of predicted over measured seconds.

    Args:
        samples: with at least two numbers of hosts above 1, two sizes and two rates.
    """
    from scipy.optimize import least_squares

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        candidate = Fit(*np.exp(logarithms))
        seconds = [candidate.seconds(each.rate, each.hosts, each.size, each.rings) for each in samples]
        return np.array([math.log(one / each.seconds) for one, each in zip(seconds, samples, strict=True)])

    found = least_squares(residuals, np.log([1e-4, 1e-5, 1e-5, 1.05, 3e-10, 1e-10]), loss="soft_l1", f_scale=0.1)
    return Fit(*(float(value) for value in np.exp(found.x)))
