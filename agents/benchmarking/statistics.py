"""Scores of few runs over many games, in numbers that say how far they can be trusted.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice": aggregates of normalised
scores (section 4.3) with intervals by stratified bootstrap (section 4.1), the games being the strata: runs are drawn
again, with replacement, within each game. SciPy draws them.

Shapes: R runs of one game; in front of it what the bootstrap draws. A sample is the scores of one game's runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
TRIMMED = 0.25  # of each end, for the interquartile mean
ENOUGH = 1.0  # score beyond which the optimality gap sees no gain: that of a human

Statistic = Callable[..., np.ndarray]  # of samples (..., R), each of its own R, with their axis


@dataclass(frozen=True)
class Estimate:
    """A number and its interval, percentiles of the bootstrap; None where some game has one run only."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """In a table: "0.512 [0.401, 0.620]"."""
        interval = "" if self.low is None or self.high is None else f" [{_short(self.low)}, {_short(self.high)}]"
        return f"{_short(self.value)}{interval}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def median(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Median over games of the mean over runs."""
    return np.asarray(np.median(_means(samples, axis), axis=0))


def mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over games of the mean over runs."""
    return np.asarray(_means(samples, axis).mean(axis=0))


def interquartile_mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of all runs of all games."""
    return np.asarray(stats.trim_mean(np.concatenate(samples, axis=axis), TRIMMED, axis=axis))


def optimality_gap(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """How far all runs of all games stay below a human's score on average; what exceeds it counts for nothing."""
    return np.asarray((ENOUGH - np.minimum(np.concatenate(samples, axis=axis), ENOUGH)).mean(axis=axis))


AGGREGATES: Mapping[str, Statistic] = {
    "median": median,
    "mean": mean,
    "interquartile mean": interquartile_mean,
    "optimality gap": optimality_gap,
}


def improvement(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probability that a run of X beats one of Y in a game drawn at random: Mann and Whitney's U, a tie counting half.

    Args:
        samples: X's of all games, then Y's of the same games.
    """
    half = len(samples) // 2
    wins = []
    for of_x, of_y in zip(samples[:half], samples[half:], strict=True):
        x, y = np.moveaxis(of_x, axis, -1)[..., :, None], np.moveaxis(of_y, axis, -1)[..., None, :]
        wins.append(((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(wins, axis=0))


def estimate(statistic: Statistic, samples: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """A statistic of the samples, one for each game, with its interval. The same seed draws the same.

    Raises:
        ValueError: no sample, or an empty one.
    """
    if not samples or not all(len(sample) for sample in samples):
        raise ValueError("every game must have a score")
    arrays = [np.array(sample, float) for sample in samples]
    value = float(statistic(*arrays, axis=-1))
    if min(map(len, arrays)) < 2:
        return Estimate(value)
    interval = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=RESAMPLES,
        batch=1_000,  # 57 games of 5 runs take some MB
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def height(x: np.ndarray, y: np.ndarray) -> float:
    """Area under a curve by the length of its base: its mean height from the first point to the last."""
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 and x[-1] > x[0] else float(y[-1])


def _means(samples: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Means over runs, games first."""
    return np.stack([sample.mean(axis=axis) for sample in samples])
