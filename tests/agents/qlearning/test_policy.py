"""Tests of the policy: Q-values of observations, and epsilon-greedy actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.agents.qlearning.sampled import ACTIONS, OBS, batches, config, make
from zerokara.agents.qlearning.network import make_network
from zerokara.agents.qlearning.policy import Exploration, Policy
from zerokara.core.compute import Compute


def policy(compute: Compute | None = None, **changes: Any) -> Policy:
    compute = compute or Compute()
    return Policy(compute.module(make_network(config(**changes), OBS, ACTIONS)), compute)


def in_training_mode(player: Policy) -> bool:
    return player.network.training


def observations(number: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (number, *OBS), np.uint8)


def test_on_avx2_the_compiled_network_gets_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled functions are simulated; compare `Compute.converter`."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    player = policy(Compute(channels_last=True, compile=True))
    monkeypatch.setattr(player, "_values", lambda x: x)
    obs = observations(4)
    assert torch.equal(player.values(obs), torch.from_numpy(obs) * torch.tensor(1 / 255))


def test_policy_values_are_those_of_the_network() -> None:
    player = policy()
    obs = observations(4)
    q_NA = player.values(obs)
    torch.testing.assert_close(q_NA, player.network(torch.from_numpy(obs).float() / 255))
    assert q_NA.dtype == torch.float32
    assert not q_NA.requires_grad


def test_epsilon_0_is_greedy_and_epsilon_1_is_uniform() -> None:
    player = policy()
    obs = observations(3000)
    exploration = Exploration(3000, ACTIONS, 0)
    greedy_N = player.act(obs, 0.0, exploration)
    np.testing.assert_array_equal(greedy_N, player.values(obs).argmax(dim=1).numpy())
    random_N = player.act(obs, 1.0, exploration)
    counts = np.bincount(random_N, minlength=ACTIONS)
    # 1000 of each, standard deviation 26.
    assert (np.abs(counts - 1000) < 100).all()
    for action_N in (greedy_N, random_N):
        assert action_N.dtype == np.int64
        assert action_N.shape == (3000,)
        assert action_N.min() >= 0
        assert action_N.max() < ACTIONS


def test_epsilon_is_the_fraction_of_random_actions() -> None:
    player = policy()
    out = player.network.advantage[-1]
    assert isinstance(out, nn.Linear)
    with torch.no_grad():
        out.bias.copy_(torch.tensor([0.0, 1e3, 0.0]))
    action_N = player.act(observations(3000), 0.3, Exploration(3000, ACTIONS, 0))
    # Two thirds of the random actions differ from the greedy one: .2 of 3000, standard deviation 22.
    assert abs((action_N != 1).sum() - 600) < 90


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_every_call_uses_the_same_number_of_random_numbers(epsilon: float) -> None:
    exploration, other = Exploration(5, ACTIONS, 3), Exploration(5, ACTIONS, 3)
    player = policy()
    for _ in range(3):
        player.act(observations(5), epsilon, exploration)
        player.act(observations(5), 0.7, other)
    assert torch.equal(exploration.generator.get_state(), other.generator.get_state())


def test_acting_does_not_change_the_global_random_state() -> None:
    player = policy()
    before = torch.get_rng_state()
    player.act(observations(5), 0.5, Exploration(5, ACTIONS, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_policy_uses_the_updated_weights() -> None:
    learner = make(batches(), learning_rate=0.1)
    player = Policy(learner.network, learner.compute)
    before = player.values(observations(4)).clone()
    learner.update()
    assert not torch.equal(player.values(observations(4)), before)


def test_at_epsilon_1_the_network_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    player, evaluated = policy(), list[int]()
    original = player._values

    def values(obs_NCHW: Tensor) -> Tensor:
        evaluated.append(len(obs_NCHW))
        return original(obs_NCHW)

    monkeypatch.setattr(player, "_values", values)
    player.act(observations(5), 1.0, Exploration(5, ACTIONS, 3))
    assert evaluated == []
    player.act(observations(5), 0.999, Exploration(5, ACTIONS, 3))
    assert evaluated == [5]


def test_noise_follows_from_the_seed_and_is_off_by_default() -> None:
    network = make_network(config(noisy=True), OBS, ACTIONS)
    first, same, other = (Policy(network, Compute(), seed) for seed in (3, 3, 4))

    def is_training() -> bool:
        return network.training

    obs = observations(2)
    noisy, again, different = (player.values(obs, noisy=True).clone() for player in (first, same, other))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, different)
    assert not torch.equal(noisy, first.values(obs, noisy=True)), "new noise in every call"
    assert is_training()
    without = first.values(obs).clone()
    assert not is_training()
    torch.testing.assert_close(first.values(obs), without)
    greedy_N = first.act(obs, 0.0, Exploration(2, ACTIONS, 0))
    np.testing.assert_array_equal(greedy_N, without.argmax(dim=1).numpy())
    assert not is_training(), "act uses no noise unless it is told to"
    state = first.noise.get_state()
    first.act(obs, 0.0, Exploration(2, ACTIONS, 0), noisy=True)
    assert is_training()
    assert not torch.equal(first.noise.get_state(), state)
    assert torch.equal(Policy(first.network, Compute()).noise.get_state(), torch.Generator().manual_seed(0).get_state())
