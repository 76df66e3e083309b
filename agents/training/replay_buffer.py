"""Replay buffer of a DQN run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.policy import obs_dtype
from zerokara.agents.qlearning.prioritized_replay import PrioritizedReplay
from zerokara.agents.qlearning.replay import Batch, Replay
from zerokara.agents.training.start import ITERATIONS_PER_VOTE, Resources
from zerokara.core.run import Run
from zerokara.envs import Step


def min_transitions(config: Config) -> int:
    """Return the number of stored transitions, in all processes together, below which there are no updates."""
    # Of several actors perhaps only one has a place so far.
    return min(config.learning_starts, config.replay_capacity // max(1, config.actors))


def describe_fill(config: Config, stored: Sequence[int]) -> str:
    """Describe how many transitions are stored: "replay buffer: 0 of 1,000 transitions; there are no updates ...".

    Args:
        config: config of the run.
        stored: transitions of each process.
    """
    text = f"replay buffer: {sum(stored):,} of {config.replay_capacity:,} transitions"
    needed, processes = min_transitions(config), len(stored)
    if min(stored) >= needed // processes:  # as in `Training.learn`
        return text
    if processes == 1:
        return f"{text}; there are no updates before it has {needed:,}"
    return f"{text}; there are no updates before each of the {processes} processes has {needed // processes:,}"


def make_replay(config: Config, run: Run, resources: Resources, seed: int, is_finished: Callable[[], bool]) -> Replay:
    """Create the replay buffer of a process, with a ring buffer for each of its environments or those of its actors.

    Actors fill their ring buffers at different speeds. Their transitions are therefore sampled by priority, which with
    `per_alpha` 0 is the same for all: uniform over transitions, not over ring buffers.

    Args:
        config: config of the run.
        run: run folder, which has the files of the buffer.
        resources: environments of this process, or such as those of an actor; device; processes, which divide the
            capacity.
        seed: seed of the sampling.
        is_finished: True for a finished run, which needs no replay buffer: nothing is printed about a missing one.

    Raises:
        UserError: as `Replay`.
    """
    env, compute, world = resources.env, resources.compute, resources.world
    num_envs = config.total_envs // world.size
    chunk = config.actor_steps if config.actors else 1  # steps of an environment that are stored at once
    make: Callable[..., Replay] = Replay
    if config.per_alpha or config.actors:
        given = config.actors > 0 and config.per_alpha > 0
        make = partial(
            PrioritizedReplay,
            alpha=config.per_alpha,
            uniform_fraction=config.per_uniform_fraction,
            given_priorities=given,
        )
    return make(
        -(-config.replay_capacity // world.size),
        num_envs,
        env.obs_shape,
        env.frame_channels,
        dtype=env.obs_dtype,
        n_step=schedules.max_n_step(config),
        gamma=config.gamma,
        seed=seed,
        device=compute.torch_device,
        folder=run.checkpoints.files("replay") if config.save_replay else None,
        # Slots written between two checkpoints, with room for the last observations of truncated episodes.
        checkpoint_margin=config.checkpoint_every_steps // world.size + 4 * num_envs * chunk,
        steps_at_once=chunk if world.size == 1 else ITERATIONS_PER_VOTE,
        random_shift=config.random_shift,
        function=compute.function,
        print_line=lambda line: None if is_finished() else run.print(line),
    )


def store(config: Config, replay: Replay, obs: np.ndarray, action_N: np.ndarray, step: Step, **options: Any) -> None:
    """Store a step in the replay buffer: with the sign of the rewards, and lost lives as terminals, if configured.

    Args:
        config: config of the run.
        replay: replay buffer of the learner, or of an actor.
        obs: observations (N, C, H, W) before the step, or their newest frames.
        action_N: actions that were executed.
        step: result of the step.
        options: as for `Replay.add`.
    """
    reward_N = np.sign(step.reward) if config.clip_rewards else step.reward
    life_lost_N = step.life_lost if config.terminal_on_life_loss else None
    last_obs = step.last_obs if step.truncated.any() else obs  # else not used, and some environments would make it
    replay.add(obs, action_N, reward_N, step.terminal, step.truncated, last_obs, life_lost_N, **options)


def random_batch(
    config: Config, resources: Resources, batch_size: int
) -> tuple[Batch, tuple[Tensor, Tensor, Tensor] | tuple[()]]:
    """Return a batch of random data as a process learns from, and what follows it (`Replay.following`)."""
    env, device = resources.env, resources.compute.torch_device
    obs = torch.randint(256, (2, batch_size, *env.obs_shape), dtype=obs_dtype(env)).to(device)
    # A tensor that is passed twice would be compiled for, and compiled code of no use in training.
    ones, discount_B, weight_B = (torch.ones(batch_size, device=device) for _ in range(3))
    batch = Batch(obs[0], ones.long(), ones, discount_B, obs[1], weight_B)
    if not config.spr_weight:
        return batch, ()
    later_BS = ones[:, None].repeat(1, config.spr_steps)
    return batch, (obs[0].repeat_interleave(config.spr_steps, 0), later_BS.long(), later_BS)
