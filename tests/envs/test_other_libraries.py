"""Test of the arcade games with Stable-Baselines3."""

from __future__ import annotations

import gymnasium
import stable_baselines3

from zerokara import envs


def test_stable_baselines3_trains_on_catch() -> None:
    """Train its DQN for some updates and check that all counters and weights change."""
    assert envs.make("zerokara/Catch-v0", 1).num_actions == 3  # importing envs registers the games
    model = stable_baselines3.DQN(
        "CnnPolicy",
        gymnasium.make("zerokara/Catch-v0"),
        buffer_size=500,
        learning_starts=100,
        batch_size=8,
        train_freq=4,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}},
        seed=1,
        device="cpu",
    )
    before = [parameter.detach().clone() for parameter in model.q_net.parameters()]
    model.learn(200)
    assert model.num_timesteps == 200
    assert model._n_updates == (200 - 100) // 4
    assert any((new != old).any() for new, old in zip(model.q_net.parameters(), before, strict=True))
