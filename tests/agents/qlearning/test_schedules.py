"""Tests of the schedules that depend on the step or on the number of updates."""

from __future__ import annotations

from dataclasses import replace

import pytest

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


def test_target_updates_are_counted_in_agent_steps_for_any_replay_ratio() -> None:
    for every, at_once, target in ((4, 1, 100), (1, 8, 50), (64, 1, 32_000), (8, 1, 4), (3, 2, 10)):
        c = Config(train_every_steps=every, gradient_steps=at_once, target_update_steps=target)
        renewals = sum(schedules.is_target_update_due(c, u) for u in range(1, 2001))
        assert renewals == min(2000, 2000 * every // at_once // target)
