"""Settings of the preset `fast` for the arcade games, with which an agent reaches its best within minutes.

They take the place of the preset's values where a game is named with --env. docs/LOG.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Compared with Pong: a tenth of the steps; returns of fewer steps, because rewards are less delayed; fewer updates per
# step, because the games cost almost nothing.
_ARCADE: Mapping[str, Any] = {
    "total_steps": 100_000,
    "num_envs": 32,
    "n_step": 5,
    "train_every_steps": 16,
    "learning_starts": 2_000,
    "epsilon_decay_steps": 20_000,
    "final_learning_rate": 5e-5,
    "learning_rate_decay_steps": 100_000,
    "replay_capacity": 100_000,
    "eval_every_steps": 20_000,
}

ARCADE: Mapping[str, Mapping[str, Any]] = {
    "zerokara/Breaker-v0": _ARCADE,
    # Catch is learned in fewer steps with 3-step returns; frequent evaluations find that sooner (docs/LOG.md).
    "zerokara/Catch-v0": {
        **_ARCADE,
        "total_steps": 60_000,
        "n_step": 3,
        "learning_rate": 1e-3,
        "learning_rate_decay_steps": 60_000,
        "replay_capacity": 60_000,
        "eval_every_steps": 2_500,
    },
    "zerokara/Shooter-v0": {**_ARCADE, "total_steps": 120_000},
    # Snake is harder. It needs the smaller strides of the Nature network, because its cells are 14 pixels wide; a lower
    # discount factor, or the agent moves in circles; and more steps.
    "zerokara/Snake-v0": {
        **_ARCADE,
        "total_steps": 160_000,
        "backbone": "nature",
        "n_step": 3,
        "double": True,
        "gamma": 0.95,
    },
}
