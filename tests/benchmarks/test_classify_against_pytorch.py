"""Tests of the NumPy side against PyTorch: loss, gradients of all parameters, Adam updates."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.classify_against_pytorch import (
    Adam,
    Affine,
    Convolution,
    Dropout,
    eager_network,
    numpy_layers,
    numpy_loss_and_gradients,
)


def test_numpy_gradients_match_pytorch() -> None:
    rng = np.random.default_rng(0)
    layers = [layer for layer in numpy_layers(rng) if not isinstance(layer, Dropout)]
    network = nn.Sequential(*(layer for layer in eager_network() if not isinstance(layer, nn.Dropout))).double()
    learning = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for mine, its in zip([layer for layer in layers if layer.params], learning, strict=True):
            assert isinstance(mine, Convolution | Affine)
            weight, bias = (torch.from_numpy(param) for param in mine.params)
            its.weight.copy_(weight if isinstance(mine, Convolution) else weight.T)
            assert its.bias is not None
            its.bias.copy_(bias)
    x, label = rng.standard_normal((3, 1, 28, 28)), np.array([3, 1, 4])
    loss, gradients = numpy_loss_and_gradients(layers, x, label)
    expected = F.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(label))
    expected.backward()
    assert abs(loss - expected.item()) < 1e-3  # the book adds 1e-7 to a probability, of which there may be 1e-4
    for found, parameter in zip(gradients, network.parameters(), strict=True):
        gradient = torch.from_numpy(found)
        torch.testing.assert_close(gradient if gradient.shape == parameter.shape else gradient.T, parameter.grad)


def test_numpy_adam_matches_pytorch() -> None:
    weight = np.array([1.0, -2.0, 3.0])
    parameter = nn.Parameter(torch.from_numpy(weight.copy()))
    adam, its = Adam([weight]), torch.optim.Adam([parameter], lr=1e-3)
    for gradient in ([0.1, -3.0, 20.0], [0.2, 1.0, -5.0], [-0.3, 2.0, 1.0]):
        adam.update([np.array(gradient)])
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        its.step()
    torch.testing.assert_close(torch.from_numpy(weight), parameter.detach(), rtol=1e-6, atol=1e-8)
