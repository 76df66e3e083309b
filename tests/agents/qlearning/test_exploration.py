"""Tests of exploration: frequency and duration of random actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zerokara.agents.qlearning.policy import MAX_DURATION, Exploration


def test_random_actions_last_one_step_without_zeta() -> None:
    exploration = Exploration(1000, 4, seed=1)
    explore, action = zip(*(exploration.sample(0.2) for _ in range(50)), strict=True)
    explore_TN, action_TN = torch.stack(explore), torch.stack(action)
    assert explore_TN.double().mean() == pytest.approx(0.2, abs=0.01)  # 50,000 samples: standard deviation .002
    after = explore_TN[1:][explore_TN[:-1]]
    assert after.double().mean() == pytest.approx(0.2, abs=0.025), "independent of the previous step"
    assert (action_TN[1:] == action_TN[:-1]).double().mean() == pytest.approx(0.25, abs=0.015)


def test_durations_follow_the_zeta_distribution() -> None:
    """At epsilon 1 one random action follows the other, so the durations are the steps between changes."""
    exploration = Exploration(2000, 1_000_000, seed=2, zeta=2.0)  # enough actions that none is sampled twice
    action_TN = torch.stack([exploration.sample(1.0)[1] for _ in range(60)]).numpy()
    lengths = np.array([1 + np.argmax(np.r_[action_TN[1:, n] != action_TN[0, n], True]) for n in range(2000)])
    total = (1.0 / np.arange(1, MAX_DURATION + 1) ** 2).sum()
    for length in (1, 2, 3):
        share = 1 / length**2 / total
        assert (lengths == length).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)
    assert (lengths >= 30).mean() == pytest.approx(0.02, abs=0.013), "a heavy tail: 1 / 30 / 1.645"


def test_repeated_actions_continue_to_their_end_when_epsilon_changes() -> None:
    exploration = Exploration(500, 6, seed=3, zeta=1.5)
    explore_N, action_N = exploration.sample(1.0)
    assert explore_N.all()
    ended_N = torch.zeros(500, dtype=torch.bool)
    for _ in range(10):
        explore_N, later_N = exploration.sample(0.0)
        assert torch.equal(later_N[explore_N], action_N[explore_N])
        assert not (explore_N & ended_N).any(), "no new random action may start"
        ended_N |= ~explore_N
    assert 0 < ended_N.sum() < 500


@pytest.mark.parametrize("zeta", [None, 2.0])
def test_exploration_resumes_from_its_state(zeta: float | None) -> None:
    exploration, other = Exploration(50, 3, 4, zeta), Exploration(50, 3, 5, zeta)
    for _ in range(7):
        exploration.sample(0.5)
    other.load_state_dict(exploration.state_dict())
    for _ in range(7):
        for ours, theirs in zip(exploration.sample(0.4), other.sample(0.4), strict=True):
            assert torch.equal(ours, theirs)


def test_without_its_own_state_a_process_draws_other_numbers_and_repeats_nothing() -> None:
    """After a resume with another number of processes: not the numbers of the start, and other ones at each step."""
    state = Exploration(50, 3, 9, 2.0).state_dict()
    fresh = Exploration(50, 3, 4, 2.0)
    resumed = [Exploration(50, 3, 4, 2.0) for _ in range(3)]
    for exploration, step in zip(resumed, (100, 100, 200), strict=True):
        exploration.load_processes({0: state}, 1, step)
        assert not exploration.remaining_N.any()
    begins, same, equal, later = (exploration.sample(0.5)[0] for exploration in (fresh, *resumed))
    assert torch.equal(same, equal)
    assert not torch.equal(begins, same)
    assert not torch.equal(same, later)


def test_the_longest_duration_is_that_of_the_paper() -> None:
    """A random number above the last cumulative probability, which rounding can make less than 1, has a duration."""
    assert MAX_DURATION == 10_000
    exploration = Exploration(2, 3, seed=4, zeta=2.0)
    assert exploration._cumulative is not None
    assert len(exploration._cumulative) == MAX_DURATION
    exploration._cumulative *= 0
    explore_N, _ = exploration.sample(1.0)
    assert explore_N.all()
    assert exploration.remaining_N.tolist() == [MAX_DURATION - 1] * 2


def test_a_random_action_of_one_step_is_followed_by_a_new_decision() -> None:
    exploration = Exploration(2, 3, seed=4, zeta=2.0)
    assert exploration._cumulative is not None
    exploration._cumulative.fill_(1.0)  # all durations are 1
    for epsilon in (1.0, 0.0, 1.0, 1.0, 0.0, 0.0):
        explore_N, _ = exploration.sample(epsilon)
        assert explore_N.tolist() == [epsilon == 1] * 2
        assert exploration.remaining_N.tolist() == [0, 0]


def test_actions_and_explorations_are_those_of_the_seed() -> None:
    generator = torch.Generator().manual_seed(8)
    action_N = torch.randint(5, (6,), generator=generator)
    begins_N = torch.rand(6, generator=generator) < 0.5
    explore_N, random_N = Exploration(6, 5, seed=8).sample(0.5)
    assert torch.equal(random_N, action_N)
    assert torch.equal(explore_N, begins_N)


def test_durations_are_those_of_the_seed_in_float64() -> None:
    """Above a duration of some hundreds, float32 has gaps between the cumulative probabilities."""
    generator = torch.Generator().manual_seed(8)
    torch.randint(5, (600,), generator=generator)
    torch.rand(600, generator=generator)
    chance_N = torch.rand(600, generator=generator, dtype=torch.float64)
    probability = 1 / np.arange(1, MAX_DURATION + 1) ** 1.5
    duration_N = 1 + np.searchsorted(probability.cumsum() / probability.sum(), chance_N.numpy())
    exploration = Exploration(600, 5, seed=8, zeta=1.5)
    exploration.sample(1.0)
    assert exploration.remaining_N.tolist() == (duration_N - 1).tolist()
    assert duration_N.max() > 500


def test_epsilon_0_never_explores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers are at least 0, and 0 occurs."""
    monkeypatch.setattr(torch, "rand", lambda number, **options: torch.zeros(number))
    assert not Exploration(3, 2, seed=1).sample(0.0)[0].any()
    assert Exploration(3, 2, seed=1).sample(1e-9)[0].all()
