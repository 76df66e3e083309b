"""Checks of the settings of actors, before anything is created."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zerokara.core.config import UserError, error_summary

if TYPE_CHECKING:
    from zerokara.agents.configs.dqn import Config


def replay_ratios(config: Config) -> tuple[float, float]:
    """Return the minimum and the maximum of the updates per agent step."""
    usual = config.gradient_steps / config.train_every_steps
    maximum = usual if config.max_replay_ratio is None else config.max_replay_ratio
    return maximum if config.min_replay_ratio is None else config.min_replay_ratio, maximum


def check_actors(config: Config) -> None:
    """Check the settings of a run with actors, and that Ray can be imported.

    Raises:
        UserError: settings contradict each other, torchrun started the program, or Ray is missing.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError(
            "--actors and torchrun cannot be combined: a run with actors has one learner; start it with "
            "python -m agents.dqn, or leave --actors out."
        )
    minimum, maximum = replay_ratios(config)
    if minimum > maximum:
        raise UserError(
            f"--min-replay-ratio {minimum:g} must not be above --max-replay-ratio, which is {maximum:g} (by default "
            f"--gradient-steps / --train-every-steps)."
        )
    # While an actor makes a chunk, the learner gets one of every actor, and may not have learned from those before.
    staleness = 2 * config.total_envs * config.actor_steps * maximum
    if staleness > config.max_staleness:
        raise UserError(
            f"{config.actors} actors with {config.num_envs} environments and --actor-steps {config.actor_steps} would "
            f"act with weights that are {staleness:,.0f} updates old at a replay ratio of {maximum:g}, and "
            f"--max-staleness is {config.max_staleness:,}: raise it, or lower --actor-steps or --num-envs."
        )
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--actors needs the package ray, which cannot be imported ({error_summary(error)}): type pip install ray, "
            f"or leave --actors out."
        ) from error
