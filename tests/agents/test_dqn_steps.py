"""Tests of one iteration of DQN: rewards and terminals in the replay buffer, and the logged returns.

The environments are those of tests/agents/scripted.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.scripted import SIZE, Origin, ScriptedEnv, ends_with, reward_of
from zerokara import envs
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.run import Run

GAMMA = 0.9
NUM_ENVS = 3
STEPS = 16  # of each environment: three or four episodes


def script(env: int) -> list[Origin]:
    """Observations of an environment from which its steps start, and the one after the last step."""
    origins = [Origin(env, 0, 0)]
    for _ in range(STEPS):
        last = origins[-1]
        origins.append(Origin(env, last.episode + 1, 0) if ends_with(last) else last._replace(step=last.step + 1))
    return origins


def run_iterations(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dqn.Training:
    """Run iterations of the training loop in the scripted environments, with one-step returns and without updates."""
    monkeypatch.setattr(envs, "make", lambda env, num_envs, **options: ScriptedEnv(num_envs, frame_stack=1))
    config = Config(
        num_envs=NUM_ENVS, frame_stack=1, image_size=SIZE, n_step=1, gamma=GAMMA, hidden_units=8, width_multiplier=0.25,
        save_replay=False, replay_capacity=1_000, learning_starts=1_000, **changes,
    )  # fmt: skip
    with Run(config, kind="dqn", name="scripted", resume=False, quiet=True, root=folder) as run:
        training = dqn.Training(config, run, Compute(), World())
    training.obs = training.env.reset(0)
    for _ in range(STEPS):
        training.iterate()
    return training


def stored_transitions(training: dqn.Training, env: int) -> tuple[list[float], list[float]]:
    """Return rewards and discounts of all transitions of an environment except the last, as sampled by the learner."""
    origins = script(env)[: STEPS - 1]
    # The last observation of a truncated episode takes a slot too.
    slots = [t + sum(ends_with(origin) == "truncated" for origin in origins[:t]) for t in range(len(origins))]
    batch = training.replay.gather(torch.full((len(slots),), env), torch.tensor(slots))
    assert batch.weight.tolist() == [1.0] * len(slots), "a transition is missing"
    return batch.reward.tolist(), batch.discount.tolist()


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "raw"])
def test_rewards_are_clipped_only_in_the_replay_buffer(
    clip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run_iterations(tmp_path, monkeypatch, clip_rewards=clip)
    for env in range(NUM_ENVS):
        rewards = [reward_of(origin) for origin in script(env)[: STEPS - 1]]
        assert min(rewards) < 0 < max(rewards)
        assert stored_transitions(training, env)[0] == pytest.approx(np.sign(rewards) if clip else rewards)
    returns, lengths = ended_episodes()
    assert list(training.returns) == pytest.approx(returns)
    assert list(training.lengths) == lengths


@pytest.mark.parametrize("ends", [True, False], ids=["terminal_on_life_loss", "no_terminal"])
def test_a_lost_life_ends_the_return_but_not_the_episode(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run_iterations(tmp_path, monkeypatch, terminal_on_life_loss=ends)
    for env in range(NUM_ENVS):
        terminal = [
            ends_with(origin) == "terminal" or (ends and origin.step == 1) for origin in script(env)[: STEPS - 1]
        ]
        assert stored_transitions(training, env)[1] == pytest.approx([0.0 if end else GAMMA for end in terminal])
    returns, _ = ended_episodes()
    assert training.episodes == len(returns)
    assert list(training.returns) == pytest.approx(returns)
    assert training.running_length_N.tolist() == [script(env)[-1].step for env in range(NUM_ENVS)]


def ended_episodes() -> tuple[list[float], list[int]]:
    """Raw returns and lengths of the episodes that end within STEPS steps, in the order in which they end."""
    returns, lengths = [], []
    for starts in zip(*(script(env)[:-1] for env in range(NUM_ENVS)), strict=True):
        for origin in starts:
            if ends_with(origin):
                steps = [origin._replace(step=step) for step in range(origin.step + 1)]
                returns.append(sum(map(reward_of, steps)))
                lengths.append(len(steps))
    return returns, lengths
