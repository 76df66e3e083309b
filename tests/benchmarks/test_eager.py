"""Tests that the eager implementations match zerokara: parameters, targets, returns, and sampling by priority."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.eager import Btr, Buffer, Drawn, NoisyLinear, Peer, Rainbow, SumTree, btr_loss, rainbow_loss
from zerokara.agents.configs.dqn import PRESETS, Config
from zerokara.agents.dqn import dqn_loss
from zerokara.agents.qlearning.heads import CategoricalHead, ImplicitQuantileHead, ScalarHead
from zerokara.agents.qlearning.network import make_network
from zerokara.core.compute import Compute

OBS = (4, 84, 84)


def settings(preset: str, **changes: Any) -> Config:
    return Config(**{**PRESETS[preset], "replay_capacity": 64, "batch_size": 3, **changes})


def made_up(actions: int) -> Drawn:
    obs, next_obs = torch.randint(256, (2, 3, *OBS), dtype=torch.uint8)
    reward, done = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.0, 1.0, 0.0])
    return Drawn([0, 1, 2], obs, torch.tensor([0, 1, actions - 1]), reward, next_obs, done, torch.ones(3))


@pytest.mark.parametrize(("preset", "kind"), [("rainbow", Rainbow), ("btr", Btr)])
def test_network_has_the_same_number_of_parameters(preset: str, kind: type[Rainbow | Btr]) -> None:
    config = settings(preset)
    mine = sum(parameter.numel() for parameter in kind(config, 4, 6).parameters())
    assert mine == sum(parameter.numel() for parameter in make_network(config, OBS, 6).parameters())


class Adapter(nn.Module):
    """Interface of zerokara's Q-networks around functions of uint8 observations."""

    def __init__(
        self, head: ScalarHead, outputs: Callable[[Tensor], Tensor], values: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.head, self._outputs, self._values = head, outputs, values

    def features(self, x_BCHW: Tensor) -> Tensor:
        return (x_BCHW * 255).round().to(torch.uint8)

    def outputs(self, features: Tensor, tau_BT: Tensor | None = None) -> Tensor:
        return self._outputs(features)

    def values(self, features: Tensor) -> Tensor:
        return self._values(features)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self._values(self.features(x_BCHW))


def our_loss(
    config: Config, online: Adapter, target: Adapter, batch: Drawn, *taus: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`dqn_loss` of the same batch."""
    discount_B = config.gamma**config.n_step * (1 - batch.done_B)
    tensors = batch.obs, batch.action_B, batch.reward_B, discount_B, batch.next_obs, torch.ones(3)
    return dqn_loss(config, Compute(), online, target, *tensors, *taus)  # type: ignore[arg-type]


def test_rainbow_target_matches() -> None:
    torch.manual_seed(0)
    config = settings("rainbow")
    online, target = Rainbow(config, 4, 6), Rainbow(config, 4, 6)
    batch = made_up(6)
    loss_B = rainbow_loss(config, online, target, batch)
    head = CategoricalHead(config.num_atoms, *config.value_range)
    logit_BXA = online(batch.obs).log().transpose(1, 2).detach().requires_grad_()
    ours = Adapter(head, lambda obs: logit_BXA, online.values)
    theirs = Adapter(head, lambda obs: target(obs).log().transpose(1, 2), target.values)
    loss, *_ = our_loss(config, ours, theirs, batch)
    loss.backward()
    assert logit_BXA.grad is not None
    # The gradient of the mean cross-entropy is (prediction - target) / 3 at the outputs of the action.
    predicted_BX = logit_BXA.softmax(dim=1)[torch.arange(3), :, batch.action_B].detach()
    target_BX = predicted_BX - 3 * logit_BXA.grad[torch.arange(3), :, batch.action_B]
    torch.testing.assert_close(loss_B.detach(), -(target_BX * predicted_BX.log()).sum(1), rtol=1e-4, atol=1e-4)


def test_btr_target_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = settings("btr")
    online, target = (Btr(config, 4, 6).eval() for _ in range(2))
    fractions = torch.rand(3, config.num_tau_samples)  # every call draws the same fractions
    monkeypatch.setattr(torch, "rand", lambda *shape: fractions)
    batch = made_up(6)
    loss_B = btr_loss(config, online, target, batch)
    head = ImplicitQuantileHead(1, 8, 8, 8, 64)
    ours, theirs = (
        Adapter(head, lambda obs, net=net: net(obs, config.num_tau_samples)[0], net.values)  # type: ignore[misc]
        for net in (online, target)
    )
    loss, *_ = our_loss(config, ours, theirs, batch, fractions)
    torch.testing.assert_close(loss_B.mean(), loss)


def test_noise_is_factorized() -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(5, 3, 0.5)
    layer.reset_noise()
    x = torch.randn(4, 5)
    noise = layer.weight_epsilon
    assert torch.linalg.matrix_rank(noise) == 1
    weight = layer.weight_mu + layer.weight_sigma * noise
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias_mu + layer.bias_sigma * layer.bias_epsilon))


def test_sum_tree_samples_in_proportion() -> None:
    tree = SumTree(5)
    for index, value in enumerate([1.0, 0.0, 2.0, 0.5, 0.5]):
        tree[index] = value
    tree[0] = 3.0
    assert tree.sums[1] == 6.0
    found = np.bincount([tree.find(target) for target in np.arange(0.0, 6.0, 0.01)], minlength=8)
    np.testing.assert_allclose(found[:5], [300, 0, 200, 50, 50], atol=1)


def test_n_step_returns_end_with_the_episode() -> None:
    config = settings("rainbow", num_envs=1)
    buffer = Buffer(config, OBS)
    frames = [np.full(OBS, value, np.uint8) for value in range(6)]
    for step, (reward, done) in enumerate([(1.0, False), (0.0, False), (1.0, False), (1.0, True)]):
        buffer.add(0, frames[step], step, reward, frames[step + 1], done)
    gamma = config.gamma
    np.testing.assert_allclose(buffer.reward[:4], [1 + gamma**2, gamma + gamma**2, 1 + gamma, 1])
    assert buffer.done[:4].tolist() == [0, 1, 1, 1]
    assert buffer.next_obs[:4, 0, 0, 0].tolist() == [3, 4, 4, 4]
    assert buffer.index == 4
    assert buffer.tree.sums[1] == 4
    batch = buffer.sample(0.4)
    buffer.update_priorities(batch.index_B, np.full(3, 8.0))
    assert buffer.max_priority == pytest.approx(8.0)
    assert buffer.tree.sums[buffer.tree.size + batch.index_B[0]] == pytest.approx(8.0**0.5)


@pytest.mark.parametrize("preset", ["rainbow", "btr"])
def test_loop_steps_and_updates(preset: str) -> None:
    peer = Peer(settings(preset, num_envs=2, train_every_steps=4, learning_starts=24, target_update_steps=16))
    before = {name: weight.clone() for name, weight in peer.online.state_dict().items()}
    peer.run_steps(32)
    assert peer.step == 32
    assert len(peer.losses) == 3  # at 24, 28 and 32 steps
    assert np.isfinite(peer.losses).all()
    assert any(not torch.equal(weight, before[name]) for name, weight in peer.online.named_parameters())
    # The target network was updated after the last gradient step.
    assert all(map(torch.equal, peer.online.parameters(), peer.target.parameters()))
