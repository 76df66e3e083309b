"""Tests of running statistics: against hand-computed numbers, and against NumPy's over all values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zerokara.agents.qlearning.normalization import InputNormalization, RewardScaler, RunningStatistics


def test_mean_and_variance_of_three_values_by_hand() -> None:
    statistics = RunningStatistics((2,))
    statistics.update(np.array([2.0, 5.0]))
    assert (statistics.mean.tolist(), statistics.variance.tolist()) == ([2, 5], [1, 1]), "1 for a single value"
    statistics.update(np.array([4.0, 5.0]))
    assert (statistics.mean.tolist(), statistics.variance.tolist()) == ([3, 5], [2, 0])
    statistics.update(np.array([9.0, 8.0]))
    assert (statistics.mean.tolist(), statistics.variance.tolist()) == ([5, 6], [13, 3])


def test_statistics_are_those_of_all_values() -> None:
    values = np.random.default_rng(0).normal(1000, 0.1, (500, 3))
    statistics = RunningStatistics((3,))
    for value in values:
        statistics.update(value)
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance, values.var(axis=0, ddof=1), rtol=1e-6)


def test_rewards_are_scaled_by_the_deviation_of_their_discounted_sum() -> None:
    scaler = RewardScaler(0.5)
    # Sums u: 2; 1 + 1 = 2; 1 - 4 = -3; the episode ends: 6; 3 + 1 = 4. Variances: 1, 0, 25 / 3, 13.583.., 11.2.
    steps = [(2.0, False), (1.0, False), (-4.0, False), (6.0, True), (1.0, False)]
    scaled = [scaler.scale(*step) for step in steps]
    u = [2.0, 2.0, -3.0, 6.0, 4.0]
    variances = [1.0, *(float(np.var(u[:n], ddof=1)) for n in range(2, 6))]
    expected = [reward / np.sqrt(variance + 1e-8) for (reward, _), variance in zip(steps, variances, strict=True)]
    assert variances[2] == pytest.approx(25 / 3)
    assert scaled == pytest.approx(expected)
    assert scaled[1] == pytest.approx(1e4), "no variance yet"


def test_states_continue_exactly() -> None:
    rng = np.random.default_rng(1)
    scaler, other = RewardScaler(0.9), RewardScaler(0.9)
    for _ in range(5):
        scaler.scale(rng.normal(), False)
    other.load_state_dict(scaler.state_dict())
    for _ in range(5):
        reward = rng.normal()
        assert scaler.scale(reward, False) == other.scale(reward, False)


def test_frames_are_normalized_by_the_statistics_of_their_elements() -> None:
    statistics = RunningStatistics((1, 1, 3))
    for frame in ([0, 100, 50], [200, 100, 51], [100, 100, 52]):
        statistics.update(np.array(frame, np.uint8).reshape(1, 1, 3))
    layer = InputNormalization((1, 1, 3), padded=True)
    layer.set_statistics(statistics, unit=255.0)
    obs = torch.tensor([[0, 0, 0], [200, 100, 53]], dtype=torch.uint8).view(1, 2, 1, 3) / 255
    # Means 100, 100 and 51, deviations 100, 0 and 1. The first frame is before the start of the episode.
    torch.testing.assert_close(layer(obs).view(2, 3), torch.tensor([[0.0, 0, 0], [1, 0, 2]]), rtol=1e-5, atol=1e-4)


def test_an_observation_of_one_frame_may_be_zero() -> None:
    statistics = RunningStatistics((2, 1, 1))
    for vector in ([3.0, -1.0], [1.0, 1.0]):
        statistics.update(np.array(vector).reshape(2, 1, 1))
    layer = InputNormalization((2, 1, 1), padded=False)
    layer.set_statistics(statistics, unit=1.0)
    torch.testing.assert_close(layer(torch.zeros(1, 2, 1, 1)).flatten(), torch.tensor([-(2**0.5), 0.0]))
