"""Tests of the layers: binary layers and their gradients by hand, packed weights, noisy layers, spectral norm."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zerokara.core.layers import (
    BinaryConv2d,
    BinaryLinear,
    NoisyLinear,
    clip_latent_,
    pack,
    pack_signs,
    relu,
    resample_noise,
    sign,
    spectral_norm,
    unpack,
    unpack_signs,
)


def test_sign_and_its_gradient_by_hand() -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.01], requires_grad=True)
    y = sign(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    y.backward(torch.arange(1.0, 9.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]
    assert sign(x.detach().bfloat16()).dtype is torch.bfloat16


def test_binary_linear_by_hand() -> None:
    layer = BinaryLinear(3, 2)
    layer.weight.data = torch.tensor([[0.3, -0.2, 0.9], [-0.1, -0.8, 0.0]])
    x = torch.tensor([[0.5, -3.0, 0.2]], requires_grad=True)
    y = layer(x)  # signs of x: 1, -1, 1; of the weights: (1, -1, 1) and (-1, -1, 1)
    assert y.tolist() == [[3.0, 1.0]]
    y.backward(torch.tensor([[1.0, 10.0]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[1 - 10, 0.0, 1 + 10]]  # |x| > 1 for the second input, so hard-tanh's gradient is 0
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1, -1, 1], [10, -10, 10]]


def test_binary_convolution_by_hand() -> None:
    layer = BinaryConv2d(1, 1, 3, padding=1)
    layer.weight.data = torch.full((1, 1, 3, 3), 0.5)
    x = torch.full((1, 1, 3, 3), -0.7, requires_grad=True)
    y = layer(x)
    # The center sums nine times -1; at an edge three inputs are padding (+1), in a corner five.
    assert y[0, 0].tolist() == [[1, -3, 1], [-3, -9, -3], [1, -3, 1]]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert layer.weight.grad is not None
    assert layer.weight.grad[0, 0].tolist() == [[1, -3, 1], [-3, -9, -3], [1, -3, 1]]


def test_first_layer_does_not_binarize_its_input() -> None:
    x = torch.rand(2, 3, 5, 5)
    layer = BinaryConv2d(3, 4, 3, stride=2, padding=1, binary_input=False)
    torch.testing.assert_close(layer(x), F.conv2d(x, sign(layer.weight), stride=2, padding=1))
    linear = BinaryLinear(4, 2, binary_input=False)
    torch.testing.assert_close(linear(x[0, :, 0, :4]), x[0, :, 0, :4] @ sign(linear.weight).T)


def binary_network() -> nn.Sequential:
    return nn.Sequential(
        BinaryConv2d(1, 5, 3, binary_input=False), nn.BatchNorm2d(5), nn.Flatten(), BinaryLinear(5 * 36, 7)
    )


def test_only_latent_weights_are_clipped() -> None:
    network = binary_network()
    for p in network.parameters():
        p.data.fill_(3.0)
    clip_latent_(network)
    values = {name: p.unique().tolist() for name, p in network.named_parameters()}
    assert values == {"0.weight": [1.0], "1.weight": [3.0], "1.bias": [3.0], "3.weight": [1.0]}


@given(st.lists(st.floats(-2, 2, width=32, allow_subnormal=False), min_size=1, max_size=40))
def test_pack_and_unpack_signs(values: list[float]) -> None:
    weight = torch.tensor(values)
    packed = pack_signs(weight)
    assert packed.dtype is torch.uint8
    assert packed.tolist() == np.packbits(weight.numpy() >= 0).tolist()
    assert torch.equal(unpack_signs(packed, tuple(weight.shape)), sign(weight))


def test_packed_network_has_equal_outputs_with_one_bit_per_weight() -> None:
    torch.manual_seed(0)
    network = binary_network().eval()
    packed = pack(network)
    assert packed["0.weight"].numel() == 6  # 45 bits
    assert packed["3.weight"].numel() * 8 == 5 * 36 * 7 + 4  # 1/32 of the size, rounded up to a byte
    assert torch.equal(packed["1.weight"], network.state_dict()["1.weight"])
    other = binary_network().eval()
    unpack(other, packed)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(other(x), network(x))
    single_layer = BinaryLinear(9, 3)
    assert pack(single_layer)["weight"].dtype is torch.uint8


def noisy(sigma: float = 0.5) -> NoisyLinear:
    torch.manual_seed(0)
    return NoisyLinear(4, 3, sigma)


def test_noisy_linear_by_hand() -> None:
    layer = NoisyLinear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.weight_sigma.copy_(torch.tensor([[0.5, 0.25]]))
        layer.bias.fill_(3.0)
        layer.bias_sigma.fill_(0.1)
    layer.noise_I.copy_(torch.tensor([2.0, -1.0]))
    layer.noise_O.fill_(3.0)
    # The noisy weights are 1 + 0.5 * 3 * 2 and 2 + 0.25 * 3 * -1, the bias is 3 + 0.1 * 3.
    assert layer(torch.tensor([[10.0, 1.0]])).item() == pytest.approx(40 + 1.25 + 3.3)
    assert layer.eval()(torch.tensor([[10.0, 1.0]])).item() == pytest.approx(15.0)


def test_noisy_linear_initialization_of_the_paper() -> None:
    layer = NoisyLinear(64, 32)
    assert layer.weight.abs().max() <= 1 / 8
    assert layer.weight.abs().max() > 0.12
    assert torch.equal(layer.weight_sigma, torch.full((32, 64), 0.5 / 8))
    assert torch.equal(layer.bias_sigma, torch.full((32,), 0.5 / 8))
    x = torch.randn(2, 64)
    # No noise before the first call of resample_noise.
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_noise_is_factorized_and_resampled_in_place() -> None:
    layer = NoisyLinear(4000, 3000)
    resample_noise(layer, torch.Generator().manual_seed(1))
    # f(e) = sign(e) sqrt(|e|): its square is |e|, with mean sqrt(2 / pi) for a normal e.
    assert layer.noise_I.square().mean().item() == pytest.approx((2 / np.pi) ** 0.5, rel=0.05)
    assert abs(layer.noise_O.mean().item()) < 0.05
    noise, address = layer.noise_I.clone(), layer.noise_I.data_ptr()
    generator = torch.Generator().manual_seed(1)
    resample_noise(layer, generator)
    assert torch.equal(layer.noise_I, noise)
    resample_noise(layer, generator)
    assert not torch.equal(layer.noise_I, noise)
    assert layer.noise_I.data_ptr() == address, "a captured CUDA graph reads this address"


def test_noise_scale_has_gradients_and_noise_is_saved() -> None:
    layer = noisy()
    resample_noise(nn.Sequential(layer), torch.Generator().manual_seed(0))
    layer(torch.randn(5, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    other = NoisyLinear(4, 3)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    x = torch.randn(2, 4)
    assert torch.equal(other(x), layer(x))


def test_spectral_norm_makes_the_largest_singular_value_one() -> None:
    torch.manual_seed(0)
    network = spectral_norm(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)))
    for _ in range(60):
        network(torch.randn(3, 2, 4, 4))
    network.eval()
    for layer in (network[0], network[3]):
        assert isinstance(layer.weight, torch.Tensor)
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert largest.item() == pytest.approx(1.0, abs=1e-2)
    assert not hasattr(network[1], "parametrizations")


@pytest.mark.parametrize("compiling", [False, True])
def test_relu_and_its_derivative(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)  # runs the compiled branch eagerly
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0], requires_grad=True)
    y = relu(x)
    assert y.tolist() == [0.0, 0.0, 0.0, pytest.approx(1e-30), 3.0]
    y.backward(torch.full((5,), 5.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 5.0, 5.0]
