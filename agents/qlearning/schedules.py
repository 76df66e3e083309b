"""Schedules as pure functions of the step or the number of updates, so that checkpoints need no schedule state."""

from __future__ import annotations

import numpy as np

from zerokara.agents.configs import pqn, stream
from zerokara.agents.configs.common import Settings
from zerokara.agents.configs.dqn import Config
from zerokara.core import schedules


def epsilon(config: Config, step: int) -> float:
    """Probability of a random action at an agent step. With actors, the mean over their environments."""
    if config.actors:
        return float(actor_epsilons(config).mean())
    if config.epsilon_off_after_steps is not None and step >= config.epsilon_off_after_steps:
        return 0.0
    begin = config.learning_starts if config.epsilon_decay_begins == "learning_starts" else 0
    decay = schedules.linear if config.epsilon_schedule == "linear" else schedules.exponential_approach
    return float(decay(step, config.epsilon_start, config.epsilon_end, begin, config.epsilon_decay_steps))


def linear_epsilon(config: pqn.Config | stream.Config, step: int) -> float:
    """Linear epsilon of PQN and of streaming Q(lambda) at an agent step."""
    return schedules.linear(step, config.epsilon_start, config.epsilon_end, 0, config.epsilon_decay_steps)


def actor_epsilons(config: Config) -> np.ndarray:
    """Return the epsilon of each environment of each actor, (actors, num_envs): epsilon^(1 + i / (N - 1) * alpha).

    Horgan et al. 2018, section 4.1, where an actor has one environment. Here each of the N environments of all actors
    has an epsilon of its own; neighbors in the order of i belong to different actors, so that an actor that ends takes
    no part of the range with it.
    """
    total = config.actors * config.num_envs
    i = np.arange(total).reshape(config.num_envs, config.actors).T
    epsilons: np.ndarray = config.actor_epsilon ** (1 + i / max(1, total - 1) * config.actor_epsilon_alpha)
    return epsilons


def learning_rate(config: Settings, step: int, processes: int = 1) -> float:
    """Learning rate at an agent step.

    Processes of PQN that average weights once per rollout have minibatches smaller by their number, whose noisier
    gradients shorten the useful part of an adaptive step. Their rate is multiplied by the root of this number
    (Malladi et al. 2022, square root scaling rule), with `scale_learning_rate`.

    Args:
        config: config of the run.
        step: agent step.
        processes: that train together.
    """
    end = config.learning_rate if config.final_learning_rate is None else config.final_learning_rate
    rate = schedules.linear(step, config.learning_rate, end, 0, config.learning_rate_decay_steps)
    is_scaled = isinstance(config, pqn.Config) and config.average_every == "rollout" and config.scale_learning_rate
    return rate * processes**0.5 if is_scaled else rate


def updates_due(config: Config, step: int) -> int:
    """Number of updates up to an agent step: `gradient_steps` per `train_every_steps` since `learning_starts`.

    With `max_replay_ratio`, this number of updates per agent step.
    """
    if config.max_replay_ratio is not None:
        return int(max(0, step - config.learning_starts) * config.max_replay_ratio)
    return max(0, step - config.learning_starts) // config.train_every_steps * config.gradient_steps


def per_beta(config: Config, step: int) -> float:
    """Exponent beta of the importance-sampling weights at an agent step (Schaul et al. 2016, section 3.4)."""
    begin = config.learning_starts if config.per_beta_begins == "learning_starts" else 0
    return schedules.linear(step, config.per_beta_start, config.per_beta_end, begin, config.per_beta_steps)


def is_target_update_due(config: Config, updates: int) -> bool:
    """True if the target network is copied after this many updates; `target_update_steps` counts agent steps.

    With `max_replay_ratio`, these are the agent steps of updates at this ratio.
    """
    if config.max_replay_ratio is None:
        before, now = (u * config.train_every_steps // config.gradient_steps for u in (updates - 1, updates))
    else:
        before, now = (int(u / config.max_replay_ratio) for u in (updates - 1, updates))
    return now // config.target_update_steps > before // config.target_update_steps


def is_reset_due(config: Config, updates: int) -> bool:
    """Return True if the networks are reset after this many updates."""
    return config.reset_every_updates > 0 and updates_since_reset(config, updates) == 0


def updates_since_reset(config: Config, updates: int) -> int:
    """Number of updates since the last reset, or since the start of training."""
    if not config.reset_every_updates:
        return updates
    last = updates if config.reset_until_updates is None else min(updates, config.reset_until_updates)
    return updates - last // config.reset_every_updates * config.reset_every_updates


def n_step_and_gamma(config: Config, updates: int) -> tuple[int, float]:
    """Return n of the n-step return and the discount factor for the next update, after this many updates.

    Both are annealed exponentially from the start of training and from every reset: n itself, and 1 - gamma of the
    discount factor (Schwarzer et al. 2023, "Bigger, Better, Faster", section 3).
    """
    at, over = updates_since_reset(config, updates), config.n_step_gamma_anneal_updates
    n_start, n_step = config.n_step_start or config.n_step, config.n_step
    n = round(schedules.exponential(at, n_start, n_step, 0, over))
    gamma_start, gamma = config.gamma_start, config.gamma
    if gamma_start is None or gamma == gamma_start or gamma == 1:
        return n, gamma
    return n, 1 - schedules.exponential(at, 1 - gamma_start, 1 - gamma, 0, over)


def is_annealed(config: Config) -> bool:
    """Return True if `n_step_and_gamma` changes during the run."""
    return config.n_step_start is not None or config.gamma_start is not None


def max_n_step(config: Config) -> int:
    """Largest n of the n-step returns during the run."""
    return max(config.n_step, config.n_step_start or 1)
