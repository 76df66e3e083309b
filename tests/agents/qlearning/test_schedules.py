"""Tests of the schedules that depend on the step or on the number of updates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zerokara.agents.configs import pqn
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules


def test_resets_are_periodic_and_restart_the_annealing() -> None:
    annealed = Config(
        reset_every_updates=100, reset_until_updates=250, n_step=3, n_step_start=10, gamma=0.997, gamma_start=0.97
    )
    annealed = replace(annealed, n_step_gamma_anneal_updates=40)
    due = [u for u in range(1, 501) if schedules.is_reset_due(annealed, u)]
    assert due == [100, 200]
    assert [schedules.updates_since_reset(annealed, u) for u in (0, 99, 100, 150, 260, 300, 400)] == [
        0,
        99,
        0,
        50,
        60,
        100,
        200,
    ]
    for start in (0, 100, 200):
        n, gamma = schedules.n_step_and_gamma(annealed, start)
        assert n == 10
        assert gamma == pytest.approx(0.97)
        n, gamma = schedules.n_step_and_gamma(annealed, start + 20)  # halfway: geometric means
        assert n == round((10 * 3) ** 0.5)
        assert gamma == pytest.approx(1 - (0.03 * 0.003) ** 0.5)
        n, gamma = schedules.n_step_and_gamma(annealed, start + 40)
        assert n == 3
        assert gamma == pytest.approx(0.997)
    assert schedules.max_n_step(annealed) == 10
    assert schedules.is_annealed(annealed)
    plain = Config()
    assert not schedules.is_annealed(plain)
    assert schedules.n_step_and_gamma(plain, 123) == (plain.n_step, plain.gamma)
    assert not any(schedules.is_reset_due(plain, u) for u in range(1, 50))


def test_step_schedules() -> None:
    c = Config(epsilon_decay_steps=100, epsilon_end=0.1, epsilon_off_after_steps=300, per_beta_steps=200)
    assert [schedules.epsilon(c, s) for s in (0, 50, 100, 299, 300)] == pytest.approx([1, 0.55, 0.1, 0.1, 0])
    assert [schedules.per_beta(c, s) for s in (0, 100, 200, 999)] == pytest.approx([0.4, 0.7, 1, 1])
    assert schedules.learning_rate(Config(learning_rate=1e-3, final_learning_rate=None), 10**6) == 1e-3
    c = Config(learning_rate=1e-3, final_learning_rate=2e-4, learning_rate_decay_steps=100)
    assert [schedules.learning_rate(c, s) for s in (0, 50, 100, 999)] == pytest.approx([1e-3, 6e-4, 2e-4, 2e-4])


def test_the_rate_follows_the_root_of_the_processes_that_average_weights() -> None:
    averaging = pqn.Config(average_every="rollout", learning_rate=1e-3, final_learning_rate=2e-4)
    averaging = replace(averaging, learning_rate_decay_steps=100)
    assert [schedules.learning_rate(averaging, s, 4) for s in (0, 50, 999)] == pytest.approx([2e-3, 1.2e-3, 4e-4])
    for unscaled in (replace(averaging, scale_learning_rate=False), replace(averaging, average_every="minibatch")):
        assert schedules.learning_rate(unscaled, 0, 4) == 1e-3
    assert schedules.learning_rate(Config(learning_rate=1e-3), 0, 4) == 1e-3


def test_target_updates_are_counted_in_agent_steps_for_any_replay_ratio() -> None:
    for every, at_once, target in ((4, 1, 100), (1, 8, 50), (64, 1, 32_000), (8, 1, 4), (3, 2, 10)):
        c = Config(train_every_steps=every, gradient_steps=at_once, target_update_steps=target)
        renewals = sum(schedules.is_target_update_due(c, u) for u in range(1, 2001))
        assert renewals == min(2000, 2000 * every // at_once // target)


def test_target_updates_with_a_maximum_replay_ratio() -> None:
    c = Config(train_every_steps=4, gradient_steps=1, target_update_steps=2000, max_replay_ratio=1.0)
    assert [u for u in range(1, 6001) if schedules.is_target_update_due(c, u)] == [2000, 4000, 6000]


def test_values_at_the_limits_of_the_schedules() -> None:
    assert schedules.max_n_step(Config(n_step=1)) == 1
    assert schedules.max_n_step(Config(n_step=5, n_step_start=2)) == 5
    # A discount factor that is not annealed stays exact, and 1 cannot be annealed exponentially.
    annealed = Config(n_step=3, n_step_start=10, gamma=0.99, gamma_start=0.99, n_step_gamma_anneal_updates=40)
    assert schedules.n_step_and_gamma(annealed, 20) == (5, 0.99)
    assert schedules.n_step_and_gamma(replace(annealed, gamma=1.0, gamma_start=0.9), 0) == (10, 1.0)
    assert schedules.is_annealed(replace(annealed, n_step_start=None))
    assert schedules.is_annealed(replace(annealed, gamma_start=None))
    # A target update at every step, and none before the first one is due.
    often = Config(train_every_steps=4, gradient_steps=1, target_update_steps=4)
    assert [schedules.is_target_update_due(often, u) for u in (1, 2)] == [True, True]
    seldom = Config(train_every_steps=4, gradient_steps=1, target_update_steps=8)
    assert [u for u in range(1, 7) if schedules.is_target_update_due(seldom, u)] == [2, 4, 6]


def test_resets_and_exploration_without_an_end() -> None:
    endless = Config(reset_every_updates=5, reset_until_updates=None)
    assert [u for u in range(1, 21) if schedules.is_reset_due(endless, u)] == [5, 10, 15, 20]
    assert schedules.epsilon(Config(epsilon_off_after_steps=None, epsilon_end=0.1), 10**9) == pytest.approx(0.1)
