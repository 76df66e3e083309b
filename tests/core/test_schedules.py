"""Schedules against values by hand, at both ends and with a length of zero steps."""

from __future__ import annotations

import math

import pytest

from zerokara.core.schedules import cosine, linear, warmup_cosine, warmup_linear


def test_linear_by_hand() -> None:
    # DQN (Mnih et al., 2015): epsilon from 1 to 0.1 in 1M steps, after a warm-up of 50,000 steps.
    expected = {0: 1.0, 50_000: 1.0, 300_000: 0.775, 1_050_000: 0.1, 9_000_000: 0.1}
    for step, value in expected.items():
        assert linear(step, 1.0, 0.1, 50_000, 1_000_000) == pytest.approx(value)
    assert linear(1_050_000, 1.0, 0.1, 50_000, 1_000_000) == 0.1  # exactly, so that 0.1 is logged


def test_cosine_by_hand() -> None:
    assert cosine(0, 2e-4, 5e-5, 0, 100) == 2e-4
    assert cosine(25, 1.0, 0.0, 0, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert cosine(50, 0.9, 0.99, 0, 100) == pytest.approx(0.945)  # an increasing schedule
    assert cosine(100, 2e-4, 5e-5, 0, 100) == 5e-5


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_zero_steps_give_the_end_value_at_once(schedule: object) -> None:
    assert callable(schedule)
    assert [schedule(step, 3.0, 7.0, 10, 0) for step in (9, 10, 11)] == [3.0, 7.0, 7.0]
    with pytest.raises(ValueError, match="over_steps"):
        schedule(0, 1.0, 0.0, 0, -1)


def test_warmup_cosine_by_hand() -> None:
    assert [warmup_cosine(step, 10, 110) for step in (0, 5, 10, 60, 110, 500)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert warmup_cosine(35, 10, 110) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert [warmup_cosine(step, 0, 4) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    values = [warmup_cosine(step, 10, 4) for step in range(5)]  # the run is shorter than the warm-up
    assert values == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_warmup_linear_by_hand() -> None:
    assert [warmup_linear(step, 10, 110) for step in (0, 5, 10, 35, 60, 110, 500)] == pytest.approx(
        [0, 0.5, 1, 0.75, 0.5, 0, 0]
    )
    assert [warmup_linear(step, 0, 4) for step in (0, 1, 4)] == pytest.approx([1, 0.75, 0])
    assert [warmup_linear(step, 10, 4) for step in (0, 4)] == pytest.approx([0, 0.4])  # shorter than the warm-up
