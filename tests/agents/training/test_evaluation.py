"""Tests of the evaluation: the same number of complete episodes in every environment, independent of their length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from zerokara.agents.qlearning.network import QNetwork
from zerokara.agents.qlearning.policy import Policy
from zerokara.agents.training.evaluation import Scores, evaluate
from zerokara.core.compute import Compute
from zerokara.envs.base import Step, VectorEnv


class Scripted(VectorEnv):
    """Scripted environments with known episode lengths and rewards.

    Environment i has episodes of `lengths[i]` steps. The last step of episode g has reward 100 i + g, all other steps
    have reward 1. An episode of length 0 never ends. An episode of negative length is truncated, not terminal.
    """

    id = "Scripted"
    num_actions = 3
    action_names = ("a", "b", "c")
    frame_channels = 1
    obs_shape = (1, 20, 20)
    settings: Mapping[str, Any] = {}

    def __init__(self, lengths: Sequence[int]) -> None:
        self.num_envs = len(lengths)
        self.lengths = lengths
        self.seeds: list[int] = []
        self.actions: list[list[int]] = []

    def _obs(self) -> np.ndarray:
        return np.zeros((self.num_envs, *self.obs_shape), np.uint8)

    def reset(self, seed: int) -> np.ndarray:
        self.seeds.append(seed)
        self.age = [0] * self.num_envs
        self.episode = [0] * self.num_envs
        return self._obs()

    def _send(self, action_N: np.ndarray) -> None:
        self.actions.append(action_N.tolist())

    def recv(self) -> Step:
        reward = np.ones(self.num_envs, np.float32)
        terminal, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for i, length in enumerate(self.lengths):
            self.age[i] += 1
            if self.age[i] == abs(length):
                (terminal if length > 0 else truncated)[i] = True
                reward[i] = 100 * i + self.episode[i]
                self.age[i] = 0
                self.episode[i] += 1
        # A lost life does not end an episode.
        return Step(self._obs(), reward, terminal, truncated, ~terminal & ~truncated, self._obs())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        return self._obs()


@pytest.fixture(scope="module")
def policy() -> Policy:
    net = QNetwork((1, 20, 20), 3, backbone="nips", width=0.1, hidden_units=4, dueling=False, layer_norm=False)
    return Policy(net, Compute())


def play(policy: Policy, env: Scripted, episodes_per_env: int, max_steps: int = 1000, seed: int = 7) -> Scores:
    return evaluate(policy, env, episodes_per_env=episodes_per_env, epsilon=0.5, max_steps=max_steps, seed=seed)


def test_every_environment_contributes_the_same_number_of_episodes(policy: Policy) -> None:
    env = Scripted([2, 5, -11])
    scores = play(policy, env, 3)
    # During three episodes of the third environment, the first one plays sixteen, of which the first three count.
    assert list(scores.lengths) == [2, 2, 2, 5, 5, 5, 11, 11, 11]
    assert list(scores.returns) == [1, 2, 3, 104, 105, 106, 210, 211, 212]
    assert len(env.actions) == 33
    assert scores.mean == pytest.approx((6 + 315 + 633) / 9)


def test_returns_are_raw_and_lost_lives_do_not_end_episodes(policy: Policy) -> None:
    # The second environment has a reward of 100 in one step, which clipping would change.
    assert list(play(policy, Scripted([3, 1]), 1).returns) == [2, 100]


def test_an_episode_is_cut_after_max_steps_and_its_return_counts(policy: Policy) -> None:
    env = Scripted([5, 9])
    scores = play(policy, env, 3, max_steps=6)
    # The second environment is cut after 6 steps and continues, not counted, to step 9; its next episode is cut after
    # step 15. By then the first environment has completed three episodes, so all are reset for the third one.
    assert list(scores.lengths) == [5, 5, 5, 6, 6, 6]
    assert list(scores.returns) == [4, 5, 6, 6, 6, 6]
    assert len(env.actions) == 21
    assert env.seeds == [7, 8]
    assert scores.cut == 3


def test_an_episode_that_ends_at_max_steps_is_not_cut(policy: Policy) -> None:
    scores = play(policy, Scripted([6]), 2, max_steps=6)
    assert list(scores.lengths) == [6, 6]
    assert list(scores.returns) == [5, 6]
    assert scores.cut == 0


def test_episodes_that_never_end_do_not_block_the_evaluation(policy: Policy) -> None:
    env = Scripted([0, 3])
    scores = play(policy, env, 3, max_steps=10)
    assert list(scores.lengths) == [10, 10, 10, 3, 3, 3]
    assert list(scores.returns) == [10, 10, 10, 102, 103, 104]
    assert env.seeds == [7, 8, 9], "each reset must have its own seed"


def test_the_same_seed_gives_the_same_actions(policy: Policy) -> None:
    envs = [Scripted([3, 5]) for _ in range(3)]
    for env, seed in zip(envs, (4, 4, 5), strict=True):
        play(policy, env, 4, seed=seed)
    assert envs[0].actions == envs[1].actions
    assert envs[0].actions != envs[2].actions
    assert {action for row in envs[0].actions for action in row} == {0, 1, 2}


def test_evaluation_does_not_change_the_global_random_state(policy: Policy) -> None:
    before = torch.get_rng_state()
    play(policy, Scripted([3]), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_mean_and_standard_error_of_scores() -> None:
    scores = Scores((1.0, 2.0, 6.0), (10, 20, 30))
    assert scores.mean == 3
    # Deviations -2, -1, 3: variance 14 / 2 = 7, over 3 episodes.
    assert scores.standard_error == pytest.approx((7 / 3) ** 0.5)
    assert Scores((5.0,), (1,)).standard_error == 0
