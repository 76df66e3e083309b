"""Tests of the Q-network: parameter counts computed by hand, and identities between its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zerokara.agents.qlearning.network import QNetwork
from zerokara.core.config import UserError

OBS = (4, 84, 84)


def network(**changes: Any) -> QNetwork:
    options: dict[str, Any] = {
        "backbone": "nature",
        "width": 1.0,
        "hidden_units": 512,
        "dueling": False,
        "layer_norm": False,
    }
    obs_shape = changes.pop("obs_shape", OBS)
    return QNetwork(obs_shape, changes.pop("num_actions", 6), **(options | changes))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# 32 filters of 8x8x4, 64 of 4x4x32, 64 of 3x3x64, 7x7x64 = 3136 features to 512, each with its bias.
NATURE_BACKBONE = 8_224 + 32_832 + 36_928
NATURE_HIDDEN = 1_606_144


@pytest.mark.parametrize("actions", [4, 6, 18])
def test_nature_network_has_the_parameter_count_of_the_paper(actions: int) -> None:
    assert parameters(network(num_actions=actions)) == NATURE_BACKBONE + NATURE_HIDDEN + 512 * actions + actions


def test_known_parameter_counts() -> None:
    assert parameters(network()) == 1_687_206
    # Two hidden layers, and one more output for the state value.
    assert parameters(network(dueling=True)) == NATURE_BACKBONE + 2 * NATURE_HIDDEN + 513 * 6 + 513
    assert parameters(network(layer_norm=True)) == 1_687_206 + 2 * 512
    # 2013: 16 8x8x4, 32 4x4x16, 9x9x32 = 2592 features to 256.
    assert parameters(network(backbone="nips", hidden_units=256)) == 4_112 + 8_224 + 663_808 + 257 * 6


def test_dueling_adds_the_value_to_centered_advantages() -> None:
    net = network(backbone="nips", hidden_units=16, dueling=True).eval()
    x = torch.rand(5, *OBS)
    q_BA = net(x)
    assert net.value is not None
    features = net.backbone(x).flatten(1)
    value_B, advantage_BA = net.value(features).squeeze(1), net.advantage(features)
    torch.testing.assert_close(q_BA.mean(dim=1), value_B)
    for a in range(6):
        others = sum(advantage_BA[:, i] for i in range(6)) / 6
        torch.testing.assert_close(q_BA[:, a], value_B + advantage_BA[:, a] - others)
    # A constant added to all advantages has no effect.
    bias = net.advantage[-1].bias
    assert isinstance(bias, Tensor)
    with torch.no_grad():
        bias += 100
    torch.testing.assert_close(net(x), q_BA, rtol=0, atol=1e-4)


def test_without_dueling_there_is_one_stream() -> None:
    net = network(backbone="nips", hidden_units=16)
    x = torch.rand(3, *OBS)
    assert net.value is None
    assert torch.equal(net(x), net.advantage(net.backbone(x).flatten(1)))


@pytest.mark.parametrize("dueling", [True, False])
def test_layer_norm_normalizes_the_hidden_layer_before_its_relu(dueling: bool) -> None:
    net = network(backbone="nips", hidden_units=64, layer_norm=True, dueling=dueling)
    seen: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.rand(3, *OBS))
    assert len(seen) == (2 if dueling else 1)
    for hidden_BU in seen:
        torch.testing.assert_close(hidden_BU.mean(dim=1), torch.zeros(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(hidden_BU.var(dim=1, unbiased=False), torch.ones(3), rtol=1e-2, atol=0)


def test_initial_q_values_are_near_0() -> None:
    q_BA = network(num_actions=18, dueling=True)(torch.rand(8, *OBS))
    assert q_BA.abs().max() < 0.5


def test_q_values_are_float32_under_autocast() -> None:
    net = network(backbone="nips", hidden_units=16, dueling=True)
    with torch.autocast("cpu", torch.bfloat16):
        q_BA = net(torch.rand(2, *OBS))
    assert q_BA.dtype == torch.float32
    assert q_BA.shape == (2, 6)


@pytest.mark.parametrize("backbone", ["nature", "nips", "impala"])
def test_images_can_be_rectangular(backbone: str) -> None:
    net = network(obs_shape=(3, 40, 64), backbone=backbone, hidden_units=8)
    assert net(torch.rand(2, 3, 40, 64)).shape == (2, 6)


def test_small_images_and_unknown_backbones_are_refused() -> None:
    with pytest.raises(UserError, match="Images of 16x84 pixels are too small for the backbone nature"):
        network(obs_shape=(4, 16, 84))
    with pytest.raises(UserError, match=r"no backbone 'natur' \(did you mean nature\?\); choose one of nature"):
        network(backbone="natur")


def test_the_same_seed_initializes_the_same_weights() -> None:
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(network(backbone="nips", hidden_units=8).state_dict())
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
    assert not torch.equal(nets[0]["backbone.convs.0.weight"], nets[2]["backbone.convs.0.weight"])
