"""Tests of the initial weights of the presets against the published code.

docs/presets.md names the file and line of each reference.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.agents.configs.test_reference_values import OBS, UNIFORM, XAVIER, network_of
from zerokara.agents.configs import pqn
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning.network import make_network, make_pqn_network
from zerokara.core.layers import NoisyLinear


def check_uniform(values: Tensor, bound: float) -> None:
    """Check bounds and standard deviation of a uniform distribution in [-bound, bound]."""
    assert values.abs().max() <= bound
    assert values.abs().max() > 0.9 * bound
    spread = bound / math.sqrt(3)
    assert float(values.std()) == pytest.approx(spread, rel=4 / math.sqrt(values.numel()))


def weights_and_biases(*modules: nn.Module) -> list[tuple[Tensor, Tensor]]:
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [(layer.weight.detach(), layer.get_parameter("bias").detach()) for layer in layers]


@pytest.mark.parametrize("preset", UNIFORM)
def test_weights_and_biases_are_uniform_as_in_torch7(preset: str) -> None:
    """dqn_zoo/networks.py, `_dqn_default_initializer`: U(-c, c), c = 1 / sqrt(inputs), for weights and biases."""
    network = network_of(preset, actions=18)
    for weight, bias in weights_and_biases(network):
        bound = weight[0].numel() ** -0.5
        check_uniform(weight, bound)
        assert bias.abs().max() <= bound
        assert bias.abs().max() > 0
    (hidden, _), (out, _) = weights_and_biases(network.advantage)
    assert float(hidden.std()) == pytest.approx(0.0103, abs=1e-4)
    assert float(out.std()) == pytest.approx(0.0255, abs=6e-4)


@pytest.mark.parametrize("preset", XAVIER)
def test_weights_are_xavier_uniform_as_in_dopamine(preset: str) -> None:
    """dopamine/jax/networks.py: flax's xavier_uniform, U(-c, c), c = sqrt(6 / (inputs + outputs)); biases are 0."""
    network = network_of(preset)
    for weight, bias in weights_and_biases(network):
        area = weight[0, 0].numel()
        check_uniform(weight, math.sqrt(6 / (area * (weight.shape[0] + weight.shape[1]))))
        assert not bias.any()
    (hidden, _), (out, _) = weights_and_biases(network.advantage)
    assert float(hidden.std()) == pytest.approx(0.0156, abs=1e-4)
    assert float(out.std()) == pytest.approx(0.062, abs=1e-3)


def test_xavier_includes_weights_under_spectral_normalization_but_not_noisy_layers() -> None:
    settings: dict[str, Any] = {"backbone": "impala", "spectral_norm": True, "weight_init": "xavier", "noisy": True}
    torch.manual_seed(0)
    network = make_network(Config(**settings), OBS, 6)
    originals = [w for name, w in network.named_parameters() if name.endswith("weight.original")]
    assert len(originals) == 12
    for weight in originals:
        check_uniform(weight.detach(), math.sqrt(6 / (9 * (weight.shape[0] + weight.shape[1]))))
    noisy = dict(network.advantage.named_parameters())
    check_uniform(noisy["0.weight"].detach(), noisy["0.weight"].shape[1] ** -0.5)
    assert noisy["0.bias"].any()


def test_initialization_of_pqn() -> None:
    """purejaxql/pqn_atari.py: he_normal; in the output layer flax's default, normal with 1 / sqrt(inputs); biases 0."""
    torch.manual_seed(0)
    network = make_pqn_network(pqn.Config(), OBS, 18)
    layers = weights_and_biases(network)
    # Roots of 2 / inputs: of 2 / 256, 2 / 512, 2 / 576 and 2 / 3,136; in the output layer of 1 / 512.
    for (weight, bias), spread in zip(layers, [0.08839, 0.0625, 0.05893, 0.02525, 0.04419], strict=True):
        assert float(weight.std()) == pytest.approx(spread, rel=4 / math.sqrt(weight.numel()))
        assert not bias.any()
    gains = [p for name, p in network.named_parameters() if p.ndim == 1 and name.endswith("weight")]
    assert [len(gain) for gain in gains] == [32, 64, 64, 512]
    assert all(gain.eq(1).all() for gain in gains)


def test_the_default_preset_is_initialized_as_before() -> None:
    network = make_network(Config(), OBS, 6)
    assert network.value is not None
    for part in (network.advantage, network.value):
        (hidden, hidden_bias), (out, out_bias) = weights_and_biases(part)
        assert float(hidden.std()) == pytest.approx(math.sqrt(2 / hidden.shape[1]), rel=0.02)
        assert float(out.std()) == pytest.approx(0.1 / 16, rel=0.15)
        assert not hidden_bias.any()
        assert not out_bias.any()


@pytest.mark.parametrize(("preset", "sigma"), [("rainbow", 0.5), ("data-efficient", 0.1), ("btr", 0.5)])
def test_noisy_presets(preset: str, sigma: float) -> None:
    """Kaixhin's model.py:25-30 and BTR's networks.py: means of U(-c, c), scales sigma c, c = 1 / sqrt(inputs).

    Convolutions and the embedding of IQN have PyTorch's default, U(-c, c), also those under spectral normalization.
    """
    network = network_of(preset, actions=18)
    assert network.value is not None
    noisy = [layer for part in (network.advantage, network.value) for layer in (part[0], part[-1])]
    for layer in noisy:
        assert isinstance(layer, NoisyLinear)
        bound = layer.in_features**-0.5
        check_uniform(layer.weight.detach(), bound)
        assert 0 < float(layer.bias.detach().abs().max()) <= bound
        for scale in (layer.weight_sigma, layer.bias_sigma):
            torch.testing.assert_close(scale.detach(), torch.full_like(scale, sigma * bound))
    others = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(others) == {"rainbow": 3, "data-efficient": 2, "btr": 3 * 5 + 1}[preset]
    for other in others:
        normalized = parametrize.is_parametrized(other, "weight")
        weight = other.get_parameter("parametrizations.weight.original" if normalized else "weight").detach()
        check_uniform(weight, weight[0].numel() ** -0.5)
        assert 0 < float(other.get_parameter("bias").detach().abs().max()) <= weight[0].numel() ** -0.5
