"""Statistics of the scores of few runs on many games, with confidence intervals.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice": aggregates of normalized
scores (section 4.3) and confidence intervals by stratified bootstrap (section 4.1). The strata are the games: runs are
resampled with replacement within each game. The bootstrap is scipy.stats.bootstrap.

Shapes: a sample holds the scores of the R runs of one game. In the bootstrap it has a batch dimension in front:
(resamples, R).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
TRIM_FRACTION = 0.25  # fraction cut from each end for the interquartile mean
OPTIMALITY_THRESHOLD = 1.0  # gamma of the optimality gap: the human score

Statistic = Callable[..., np.ndarray]  # f(*samples, axis): samples of shape (..., R), with an R of their own


@dataclass(frozen=True)
class Estimate:
    """Value with its 95% confidence interval (bootstrap percentiles); None if a game has only one run."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Text for tables: "0.512 [0.401, 0.620]"."""
        interval = "" if self.low is None or self.high is None else f" [{_format(self.low)}, {_format(self.high)}]"
        return f"{_format(self.value)}{interval}"


def _format(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def median(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Median over games of the mean over runs."""
    return np.asarray(np.median(_means(samples, axis), axis=0))


def mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over games of the mean over runs."""
    return np.asarray(_means(samples, axis).mean(axis=0))


def interquartile_mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle 50% of all runs of all games."""
    from scipy import stats  # imported here, because it takes half a second

    return np.asarray(stats.trim_mean(np.concatenate(samples, axis=axis), TRIM_FRACTION, axis=axis))


def optimality_gap(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean amount by which the runs of all games are below the human score; scores above it count as equal."""
    scores = np.concatenate(samples, axis=axis)
    return np.asarray((OPTIMALITY_THRESHOLD - np.minimum(scores, OPTIMALITY_THRESHOLD)).mean(axis=axis))


AGGREGATES: Mapping[str, Statistic] = {
    "median": median,
    "mean": mean,
    "interquartile mean": interquartile_mean,
    "optimality gap": optimality_gap,
}


def probability_of_improvement(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probability that a run of X scores higher than a run of Y in a random game; ties count half.

    Per game this is the Mann-Whitney U statistic, divided by the number of pairs of runs.

    Args:
        samples: samples of X for all games, then samples of Y for the same games.
    """
    half = len(samples) // 2
    wins = []
    for x_runs, y_runs in zip(samples[:half], samples[half:], strict=True):
        x, y = np.moveaxis(x_runs, axis, -1)[..., :, None], np.moveaxis(y_runs, axis, -1)[..., None, :]
        wins.append(((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(wins, axis=0))


def estimate(statistic: Statistic, samples: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """Compute a statistic and its confidence interval. The same seed gives the same interval.

    Args:
        samples: scores of the runs of each game.

    Raises:
        ValueError: there is no sample, or a sample is empty.
    """
    if not samples or not all(len(sample) for sample in samples):
        raise ValueError("every game must have at least one score")
    from scipy import stats  # as in `interquartile_mean`

    arrays = [np.array(sample, float) for sample in samples]
    value = float(statistic(*arrays, axis=-1))
    if min(map(len, arrays)) < 2:
        return Estimate(value)
    interval = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=RESAMPLES,
        batch=1_000,  # limits memory: a batch of 57 games with 5 runs takes a few MB
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def mean_height(x: np.ndarray, y: np.ndarray) -> float:
    """Area under a curve divided by the length of its base (trapezoidal rule), from the first point to the last."""
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 and x[-1] > x[0] else float(y[-1])


def _means(samples: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Stack the means over runs; the first axis is the game."""
    return np.stack([sample.mean(axis=axis) for sample in samples])
