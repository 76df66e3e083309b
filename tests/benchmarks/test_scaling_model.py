"""Tests of the cost model of benchmarks.scaling, with numbers computed by hand."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.scaling.model import (
    Fit,
    Link,
    Phase,
    Sample,
    best_seconds,
    doubling_seconds,
    fit,
    halving_seconds,
    iteration_seconds,
    predict,
    ring_bytes,
    ring_seconds,
)

LINK = Link(latency=1e-3, bandwidth=1e6)


@pytest.mark.parametrize(("hosts", "expected"), [(1, 0), (2, 1_000), (4, 1_500), (8, 1_750), (1_000, 1_998)])
def test_bytes_of_a_ring(hosts: int, expected: float) -> None:
    assert ring_bytes(1_000, hosts) == expected


def test_seconds_of_the_algorithms() -> None:
    """4 hosts, 1 MB at 1 MB/s: 1.5 s of bytes and 6 steps of 1 ms, or 4 of them; doubling sends 1 MB twice."""
    assert ring_seconds(1_000_000, 4, LINK) == pytest.approx(1.506)
    assert halving_seconds(1_000_000, 4, LINK) == pytest.approx(1.504)
    assert doubling_seconds(1_000_000, 4, LINK) == pytest.approx(2.002)


def test_the_fastest_algorithm_is_chosen() -> None:
    assert best_seconds(1_000_000, 4, LINK) == pytest.approx(1.504)
    assert best_seconds(8, 4, LINK) == pytest.approx(2 * (1e-3 + 8e-6))  # short: by doubling
    assert best_seconds(8, 5, LINK) == pytest.approx(3 * (1e-3 + 8e-6))  # as for 8 hosts
    assert best_seconds(1_000_000, 1, LINK) == 0


def test_messages_overlap_with_the_computation_of_their_phase() -> None:
    """Of two messages of 2 s each, one is ready after 1 s and one after 2 s of 4: they end at 3 and 5 s."""
    phase = Phase(4.0, ((1.0, 10), (2.0, 10)))
    assert iteration_seconds([phase], lambda size: 2.0) == 5.0
    assert iteration_seconds([phase, phase], lambda size: 2.0) == 10.0
    assert iteration_seconds([phase, Phase(1.0)], lambda size: 0.5) == 5.0  # hidden behind the computation
    assert iteration_seconds([Phase(4.0, ((4.0, 10),))], lambda size: size / 5) == 6.0  # nothing to overlap with


def test_efficiency_and_bound() -> None:
    """1 s of computation, then 1 MB over 4 hosts at 1 MB/s: 1.5 s of bytes, 4 ms of latency."""
    phases = [Phase(1.0, ((1.0, 1_000_000),))]
    prediction = predict(phases, 4, LINK)
    assert prediction.efficiency == pytest.approx(1 / 2.504)
    assert prediction.bound == "bandwidth"
    assert prediction.speedup(4) == pytest.approx(4 / 2.504)
    assert predict(phases, 4, Link(1.0, 1e9)).bound == "latency"
    assert predict(phases, 4, Link(1e-6, 1e9)).bound == "computation"
    assert predict(phases, 1, LINK).efficiency == 1.0


def test_hosts_that_compute_faster() -> None:
    prediction = predict([Phase(1.0, ((0.5, 1_000_000),))], 4, LINK, factor=10)
    assert prediction.efficiency == pytest.approx(0.1 / (0.05 + 1.504))


def test_the_longest_of_latency_links_and_cores_counts() -> None:
    """2 hosts, 1 MB: 1.1 s on the wire at 1 MB/s; 2 MB of both are sent in 0.15 us and copied in 0.05 us per byte."""
    model = Fit(step=1e-3, message=1e-4, wait=1.2e-5, overhead=1.1, core_byte=1.5e-7, copy_byte=5e-8)
    assert model.seconds(1e6, 2, 1_000_000) == pytest.approx(1.1)
    assert model.seconds(1e9, 2, 1_000_000) == pytest.approx(0.4)
    assert model.seconds(1e9, 2, 1_000_000, rings=4) == pytest.approx(1.6)  # eight hosts at the same cores
    # 6 steps; 8 parts of 0.1 ms, and a wait for the slowest of 4 hosts: 4 x 25/12 x 0.012 ms. In two rings twice.
    assert model.seconds(1e9, 4, 1_000) == pytest.approx(6 * (1e-3 + 8e-4 + 1e-4))
    assert model.seconds(1e9, 4, 1_000, rings=2) == pytest.approx(6 * (1e-3 + 2 * (8e-4 + 1e-4)))
    # A vote is one part in each step, so that no host is waited for but the one that sends.
    assert model.seconds(1e9, 4, 8) == pytest.approx(6 * (1e-3 + 1e-4))
    assert model.seconds(1e9, 4, 8, rings=2) == pytest.approx(6 * (1e-3 + 2e-4))


def test_the_fit_finds_the_model_and_predicts_more_hosts() -> None:
    truth = Fit(step=2e-4, message=2e-5, wait=3e-5, overhead=1.05, core_byte=3e-10, copy_byte=2e-10)
    rates, sizes = (12.5e6, 125e6, 1.25e9), (8, 65_536, 1_048_576, 6_700_000, 26_000_000)
    samples = [
        Sample(rate, hosts, size, truth.seconds(rate, hosts, size, 8 // hosts), 8 // hosts)
        for rate, hosts, size in itertools.product(rates, (2, 4), sizes)
    ]
    found = fit(samples)
    assert found.step == pytest.approx(truth.step, rel=0.01)
    assert found.message == pytest.approx(truth.message, rel=0.01)
    assert found.wait == pytest.approx(truth.wait, rel=0.01)
    assert found.overhead == pytest.approx(truth.overhead, rel=0.01)
    assert found.core_byte == pytest.approx(truth.core_byte, rel=0.01)
    assert found.copy_byte == pytest.approx(truth.copy_byte, rel=0.01)
    assert found.seconds(125e6, 8, 6_700_000) == pytest.approx(truth.seconds(125e6, 8, 6_700_000), rel=0.01)
