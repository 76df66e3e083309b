"""Aggregates and their intervals against numbers made by hand, and against other functions of libraries."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from zerokara.agents.benchmarking.statistics import (
    AGGREGATES,
    Estimate,
    estimate,
    height,
    improvement,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
)

# Three games, four runs each; means 1, 3 and 0.5.
GAMES = [[0.0, 1.0, 1.0, 2.0], [2.0, 3.0, 3.0, 4.0], [0.2, 0.4, 0.6, 0.8]]
ARRAYS = [np.array(game) for game in GAMES]


def test_aggregates_by_hand() -> None:
    assert float(median(*ARRAYS)) == 1.0
    assert float(mean(*ARRAYS)) == pytest.approx(1.5)
    # All twelve: 0 .2 .4 | .6 .8 1 1 2 2 | 3 3 4: a quarter is cut from each end.
    assert float(interquartile_mean(*ARRAYS)) == pytest.approx((0.6 + 0.8 + 1 + 1 + 2 + 2) / 6)
    # What is missing to 1: 1, 0, 0, 0; nothing; .8, .6, .4, .2.
    assert float(optimality_gap(*ARRAYS)) == pytest.approx((1 + 0.8 + 0.6 + 0.4 + 0.2) / 12)


def test_a_quarter_of_few_runs_is_rounded_down() -> None:
    assert float(interquartile_mean(np.array([0.0, 1.0, 5.0]))) == pytest.approx(2.0)
    assert float(interquartile_mean(np.array([0.0, 1.0, 5.0, 100.0]))) == pytest.approx(3.0)
    assert float(interquartile_mean(*ARRAYS)) == pytest.approx(stats.trim_mean(np.ravel(GAMES), 0.25))


def test_probability_of_improvement_by_hand() -> None:
    # Game 1: of four pairs 2 > 1, 2 = 2, 0 < 1, 0 < 2: 1.5 of 4. Game 2: 1 of 1.
    x, y = [np.array([2.0, 0.0]), np.array([5.0])], [np.array([1.0, 2.0]), np.array([4.0])]
    assert float(improvement(*x, *y)) == pytest.approx((1.5 / 4 + 1) / 2)
    assert float(improvement(*y, *x)) == pytest.approx(1 - (1.5 / 4 + 1) / 2)


@given(
    x=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
    y=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
)
def test_in_one_game_it_is_mann_and_whitneys_u(x: list[int], y: list[int]) -> None:
    u = stats.mannwhitneyu(x, y, method="asymptotic").statistic if len({*x, *y}) > 1 else len(x) * len(y) / 2
    assert float(improvement(np.array(x), np.array(y))) == pytest.approx(u / (len(x) * len(y)))


@pytest.mark.parametrize("name", list(AGGREGATES))
def test_drawn_runs_are_counted_like_real_ones(name: str) -> None:
    """A batch of resamples gives what each would give alone."""
    generator = np.random.default_rng(0)
    batches = [generator.normal(size=(7, runs)) for runs in (2, 5, 3)]
    together = AGGREGATES[name](*batches, axis=-1)
    alone = [float(AGGREGATES[name](*(batch[i] for batch in batches))) for i in range(7)]
    np.testing.assert_allclose(together, alone)
    pairs = [*batches, *(batch + 0.1 for batch in batches)]
    np.testing.assert_allclose(
        improvement(*pairs, axis=-1), [float(improvement(*(batch[i] for batch in pairs))) for i in range(7)]
    )


def test_runs_are_drawn_within_their_game() -> None:
    """Two games far apart: drawn across games the mean would swing by thousands, drawn within by halves."""
    found = estimate(mean, [[0.0, 1.0], [10_000.0, 10_001.0]])
    # The mean of two draws in each game: from 5000 to 5001 by quarters, the ends with probability 1/16 each.
    assert (found.value, found.low, found.high) == (5000.5, 5000.0, 5001.0)


def test_the_interval_is_that_of_all_resamples() -> None:
    """Three runs give 27 resamples, few enough to write them all down."""
    runs = [0.0, 1.0, 5.0]
    every = np.array([np.mean(draw) for draw in product(runs, repeat=3)])
    found = estimate(mean, [runs])
    assert found.value == 2.0
    # Percentiles of a distribution with few steps: both must lie on the same step.
    assert found.low == pytest.approx(np.percentile(every, 2.5, method="inverted_cdf"), abs=1e-9)
    assert found.high == pytest.approx(np.percentile(every, 97.5, method="inverted_cdf"), abs=1e-9)


def test_the_same_scores_give_the_same_interval() -> None:
    assert estimate(interquartile_mean, GAMES) == estimate(interquartile_mean, GAMES)


def test_one_run_of_a_game_gives_no_interval() -> None:
    found = estimate(mean, [[1.0, 2.0], [3.0]])
    assert found == Estimate(2.25, None, None)
    assert str(found) == "2.25"
    assert str(Estimate(1234.5, 0.5, 2000.0)) == "1,234 [0.5, 2,000]"
    assert found.to_dict() == {"value": 2.25, "low": None, "high": None}


def test_equal_runs_have_an_interval_of_no_width() -> None:
    assert estimate(median, [[1.0, 1.0], [1.0, 1.0]]) == Estimate(1.0, 1.0, 1.0)


def test_a_game_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="must have a score"):
        estimate(mean, [[1.0], []])
    with pytest.raises(ValueError, match="must have a score"):
        estimate(mean, [])


def test_the_height_of_a_curve_by_hand() -> None:
    # Trapezia of areas 5 and 30 on a base of 15.
    assert height(np.array([10.0, 15.0, 25.0]), np.array([0.0, 2.0, 4.0])) == pytest.approx(35 / 15)
    assert height(np.array([10.0]), np.array([7.0])) == 7.0
