"""Tests of one iteration of DQN: rewards and terminals in the replay buffer, and the logged returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from zerokara import envs
from zerokara.agents import dqn
from zerokara.agents.configs.dqn import Config
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.run import Run

GAMMA = 0.9
SIDE = 36  # small image size that the DER backbone accepts


class ScriptedStep(NamedTuple):
    """Result of one step in the scripted environment."""

    reward: float = 0.0
    life_lost: bool = False
    terminal: bool = False


# Rewards larger than 1 and smaller than -1, a lost life with a reward within the episode, and rewards after it.
EPISODE = (
    ScriptedStep(7),
    ScriptedStep(),
    ScriptedStep(-3, life_lost=True),
    ScriptedStep(7),
    ScriptedStep(-3),
    ScriptedStep(terminal=True),
)
RETURN = 8.0  # raw, of a complete episode


class Scripted(envs.VectorEnv):
    """Two environments that repeat EPISODE independent of the actions; the second is two steps ahead of the first."""

    id, num_envs, num_actions, action_names, frame_channels = "Scripted", 2, 2, ("NOOP", "FIRE"), 1
    obs_shape = (1, SIDE, SIDE)
    settings: dict[str, Any] = {}  # noqa: RUF012  (as the base class has it)

    def __init__(self) -> None:
        self.at = np.array([0, 2])  # (N,) index of the next step in EPISODE

    def observe(self) -> np.ndarray:
        return np.broadcast_to(self.at.astype(np.uint8)[:, None, None, None], (2, *self.obs_shape)).copy()

    def reset(self, seed: int) -> np.ndarray:
        return self.observe()

    def _send(self, action_N: np.ndarray) -> None: ...

    def recv(self) -> envs.Step:
        reward, life_lost, terminal = (np.array(column) for column in zip(*(EPISODE[i] for i in self.at), strict=True))
        last_obs = self.observe()
        self.at = (self.at + 1) % len(EPISODE)
        none_N = np.zeros(2, bool)
        return envs.Step(self.observe(), reward.astype(np.float32), terminal, none_N, life_lost, last_obs)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        return self.observe()


def run_iterations(folder: Path, monkeypatch: pytest.MonkeyPatch, iterations: int, **changes: Any) -> dqn.Training:
    """Run iterations of the training loop in the scripted environments, with one-step returns and without updates."""
    monkeypatch.setattr(envs, "make", lambda *_, **__: Scripted())
    config = Config(
        num_envs=2, frame_stack=1, image_size=SIDE, n_step=1, gamma=GAMMA, hidden_units=8, width_multiplier=0.25,
        save_replay=False, replay_capacity=1_000, learning_starts=1_000, **changes,
    )  # fmt: skip
    with Run(config, kind="dqn", name="scripted", resume=False, quiet=True, root=folder) as run:
        training = dqn.Training(config, run, Compute(), World())
    training.obs = training.env.reset(0)
    for _ in range(iterations):
        training.iterate()
    return training


def stored_transitions(training: dqn.Training, env: int, steps: int) -> tuple[list[float], list[float]]:
    """Return rewards and discounts of the first transitions of an environment, as sampled by the learner."""
    batch = training.replay.gather(torch.full((steps,), env), torch.arange(steps))
    assert batch.weight.tolist() == [1.0] * steps, "a transition is missing"
    return batch.reward.tolist(), batch.discount.tolist()


@pytest.mark.parametrize(
    ("clip", "stored"), [(True, [1, 0, -1, 1, -1, 0]), (False, [7, 0, -3, 7, -3, 0])], ids=["clipped", "raw"]
)
def test_rewards_are_clipped_only_in_the_replay_buffer(
    clip: bool, stored: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run_iterations(tmp_path, monkeypatch, 2 * len(EPISODE), clip_rewards=clip)
    assert stored_transitions(training, 0, len(EPISODE))[0] == stored
    assert stored_transitions(training, 1, len(EPISODE))[0] == stored[2:] + stored[:2]
    # The second environment started at the third step of an episode, so its first return lacks the reward of 7.
    assert list(training.returns) == [RETURN - 7, RETURN, RETURN, RETURN]
    assert list(training.lengths) == [len(EPISODE) - 2, len(EPISODE), len(EPISODE), len(EPISODE)]


@pytest.mark.parametrize("ends", [True, False], ids=["terminal_on_life_loss", "no_terminal"])
def test_a_lost_life_ends_the_return_but_not_the_episode(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run_iterations(tmp_path, monkeypatch, 2 * len(EPISODE), terminal_on_life_loss=ends)
    at_life_lost = 0.0 if ends else GAMMA
    discounts = [GAMMA, GAMMA, at_life_lost, GAMMA, GAMMA, 0.0]
    assert stored_transitions(training, 0, len(EPISODE))[1] == pytest.approx(discounts)
    assert stored_transitions(training, 1, len(EPISODE))[1] == pytest.approx(discounts[2:] + discounts[:2])
    assert (training.episodes, list(training.returns)) == (4, [RETURN - 7, RETURN, RETURN, RETURN])
    assert training.running_length_N.tolist() == [0, 2]
