"""Test aggregates and their intervals against numbers computed by hand and by independent library functions."""

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
    interquartile_mean,
    mean,
    mean_height,
    median,
    optimality_gap,
    probability_of_improvement,
)

# Three games, four runs each; means 1, 3 and 0.5.
GAMES = [[0.0, 1.0, 1.0, 2.0], [2.0, 3.0, 3.0, 4.0], [0.2, 0.4, 0.6, 0.8]]
ARRAYS = [np.array(game) for game in GAMES]


def test_aggregates_by_hand() -> None:
    assert float(median(*ARRAYS)) == 1.0
    assert float(mean(*ARRAYS)) == pytest.approx(1.5)
    # All twelve scores: 0 .2 .4 | .6 .8 1 1 2 2 | 3 3 4; a quarter is cut from each end.
    assert float(interquartile_mean(*ARRAYS)) == pytest.approx((0.6 + 0.8 + 1 + 1 + 2 + 2) / 6)
    # Differences to 1, at least 0: 1, 0, 0, 0; 0, 0, 0, 0; .8, .6, .4, .2.
    assert float(optimality_gap(*ARRAYS)) == pytest.approx((1 + 0.8 + 0.6 + 0.4 + 0.2) / 12)


def test_number_of_trimmed_runs_is_rounded_down() -> None:
    assert float(interquartile_mean(np.array([0.0, 1.0, 5.0]))) == pytest.approx(2.0)
    assert float(interquartile_mean(np.array([0.0, 1.0, 5.0, 100.0]))) == pytest.approx(3.0)
    assert float(interquartile_mean(*ARRAYS)) == pytest.approx(stats.trim_mean(np.ravel(GAMES), 0.25))


def test_probability_of_improvement_by_hand() -> None:
    # Game 1: of four pairs 2 > 1, 2 = 2, 0 < 1, 0 < 2: 1.5 of 4. Game 2: 1 of 1.
    x, y = [np.array([2.0, 0.0]), np.array([5.0])], [np.array([1.0, 2.0]), np.array([4.0])]
    assert float(probability_of_improvement(*x, *y)) == pytest.approx((1.5 / 4 + 1) / 2)
    assert float(probability_of_improvement(*y, *x)) == pytest.approx(1 - (1.5 / 4 + 1) / 2)


@given(
    x=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
    y=st.lists(st.integers(-3, 3), min_size=1, max_size=6),
)
def test_probability_of_improvement_in_one_game_is_the_mann_whitney_u(x: list[int], y: list[int]) -> None:
    u = stats.mannwhitneyu(x, y, method="asymptotic").statistic if len({*x, *y}) > 1 else len(x) * len(y) / 2
    assert float(probability_of_improvement(np.array(x), np.array(y))) == pytest.approx(u / (len(x) * len(y)))


@pytest.mark.parametrize("name", list(AGGREGATES))
def test_statistics_of_a_batch_of_resamples(name: str) -> None:
    """The result of a batch is that of each resample alone."""
    generator = np.random.default_rng(0)
    batches = [generator.normal(size=(7, runs)) for runs in (2, 5, 3)]
    together = AGGREGATES[name](*batches, axis=-1)
    alone = [float(AGGREGATES[name](*(batch[i] for batch in batches))) for i in range(7)]
    np.testing.assert_allclose(together, alone)
    pairs = [*batches, *(batch + 0.1 for batch in batches)]
    alone = [float(probability_of_improvement(*(batch[i] for batch in pairs))) for i in range(7)]
    np.testing.assert_allclose(probability_of_improvement(*pairs, axis=-1), alone)


def test_runs_are_resampled_within_their_game() -> None:
    """Resample two games with distant scores: across games, the mean would vary by thousands; within, by halves."""
    result = estimate(mean, [[0.0, 1.0], [10_000.0, 10_001.0]])
    # Mean of two draws in each game: from 5000 to 5001 in steps of 1/4, each end with probability 1/16.
    assert (result.value, result.low, result.high) == (5000.5, 5000.0, 5001.0)


def test_interval_is_that_of_all_possible_resamples() -> None:
    """Enumerate all 27 resamples of three runs."""
    runs = [0.0, 1.0, 5.0]
    every = np.array([np.mean(draw) for draw in product(runs, repeat=3)])
    result = estimate(mean, [runs])
    assert result.value == 2.0
    # The distribution has few values: both percentiles must be the same value.
    assert result.low == pytest.approx(np.percentile(every, 2.5, method="inverted_cdf"), abs=1e-9)
    assert result.high == pytest.approx(np.percentile(every, 97.5, method="inverted_cdf"), abs=1e-9)


def test_same_scores_give_the_same_interval() -> None:
    assert estimate(interquartile_mean, GAMES) == estimate(interquartile_mean, GAMES)


def test_no_interval_with_one_run_of_a_game() -> None:
    result = estimate(mean, [[1.0, 2.0], [3.0]])
    assert result == Estimate(2.25, None, None)
    assert str(result) == "2.25"
    assert str(Estimate(1234.5, 0.5, 2000.0)) == "1,234 [0.5, 2,000]"
    assert result.to_dict() == {"value": 2.25, "low": None, "high": None}


def test_interval_of_equal_runs_has_zero_width() -> None:
    assert estimate(median, [[1.0, 1.0], [1.0, 1.0]]) == Estimate(1.0, 1.0, 1.0)


def test_game_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="must have at least one score"):
        estimate(mean, [[1.0], []])
    with pytest.raises(ValueError, match="must have at least one score"):
        estimate(mean, [])


def test_mean_height_of_a_curve_by_hand() -> None:
    # Trapezoids of areas 5 and 30 on a base of 15.
    assert mean_height(np.array([10.0, 15.0, 25.0]), np.array([0.0, 2.0, 4.0])) == pytest.approx(35 / 15)
    assert mean_height(np.array([10.0]), np.array([7.0])) == 7.0
