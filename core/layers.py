"""Layers that PyTorch does not have: binary layers, noisy linear layers, normalization of channels.

Shapes: B batch, I inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zerokara.core.config import UserError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _Sign(torch.autograd.Function):
    """Sign with a straight-through gradient: +1 for x >= 0, else -1; backward, the gradient of hard-tanh."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.where(x.abs() <= 1, gradient, 0.0)


def sign(x: Tensor) -> Tensor:
    """Binarize to +1 (x >= 0) or -1, with a straight-through gradient where |x| <= 1 and zero gradient elsewhere.

    Hubara et al. 2016, equation 4: sign of hard-tanh, where the backward pass treats sign as the identity.
    """
    signs: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return signs


class BinaryLinear(nn.Linear):
    """Linear layer with weights and inputs binarized to +1 or -1 (Hubara et al. 2016, "Binarized Neural Networks").

    `weight` holds the latent weights that the optimizer updates; call `clip_latent_` after every optimizer step. There
    is no bias, because BatchNorm follows.

    Args:
        in_features: I.
        out_features: O.
        binary_input: binarize the inputs; False in a network's first layer, whose inputs are images.
    """

    def __init__(self, in_features: int, out_features: int, *, binary_input: bool = True) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.binary_input = binary_input
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Compute outputs (B, O), which are integers if the input is binarized."""
        return F.linear(sign(x_BI) if self.binary_input else x_BI, sign(self.weight))


class BinaryConv2d(nn.Conv2d):
    """Convolution with filters and inputs binarized to +1 or -1, as `BinaryLinear`.

    Padding has the value +1, because 0 is not a binary value.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: side of the filters, in pixels.
        stride: in pixels.
        padding: in pixels.
        binary_input: binarize the inputs; if False, padding has the value 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        binary_input: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.margin, self.binary_input = padding, binary_input
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute feature maps (B, out_channels, ...)."""
        if not self.binary_input:
            return F.conv2d(x_BCHW, sign(self.weight), stride=self.stride, padding=self.padding)
        padded = F.pad(sign(x_BCHW), (self.margin,) * 4, value=1.0)
        return F.conv2d(padded, sign(self.weight), stride=self.stride)


def _latent(module: nn.Module) -> dict[str, Tensor]:
    """Return the latent weights of a network's binary layers, by their names in its state dict."""
    return {
        f"{name}.weight" if name else "weight": layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, BinaryLinear | BinaryConv2d)
    }


@torch.no_grad()
def clip_latent_(module: nn.Module) -> None:
    """Clip all latent weights to [-1, 1], so that their sign can still change."""
    weights = list(_latent(module).values())
    if weights:
        torch._foreach_clamp_min_(weights, -1.0)
        torch._foreach_clamp_max_(weights, 1.0)


def pack_signs(weight: Tensor) -> Tensor:
    """Pack the signs of a tensor, eight per byte in NumPy's packbits order: uint8 (ceil(n / 8),), bit 1 for +1."""
    bits = (weight.detach() >= 0).flatten()
    bits_N8 = F.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (bits_N8 * _bit_values(weight.device)).sum(1, dtype=torch.uint8)


def unpack_signs(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Restore weights of +1 and -1 of this shape, float32, from the output of `pack_signs`."""
    bits = (packed[:, None] & _bit_values(packed.device)).flatten()[: math.prod(shape)] != 0
    return (bits.float() * 2 - 1).view(shape)


def _bit_values(device: torch.device) -> Tensor:
    """Return the value of each bit of a byte, highest first."""
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


def pack(module: nn.Module) -> dict[str, Tensor]:
    """Return a network's state dict with one bit for each binary weight, 1/32 of their size in float32."""
    latent = _latent(module)
    return {name: pack_signs(x) if name in latent else x.detach() for name, x in module.state_dict().items()}


def unpack(module: nn.Module, packed: Mapping[str, Tensor]) -> None:
    """Load the output of `pack` into a network of the same architecture. Outputs are equal to the packed network's.

    Latent weights become +1 or -1: sufficient for inference, not for further training.
    """
    latent = _latent(module)
    module.load_state_dict(
        {name: unpack_signs(x, tuple(latent[name].shape)) if name in latent else x for name, x in packed.items()}
    )


def first_convolution(network: nn.Module) -> nn.Conv2d | None:
    """Return the first convolution of a network; None if it has none."""
    return next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)


def first_filters(network: nn.Module) -> Tensor:
    """Return the weights (N, C, H, W) of the first convolution of a network.

    Raises:
        UserError: it has no convolution.
    """
    convolution = first_convolution(network)
    if convolution is None:
        raise UserError("The network has no convolution, whose filters could be shown: choose another run.")
    return convolution.weight.detach()


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of every pixel of maps (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NoisyLinear(nn.Module):
    """Linear layer with factorized Gaussian noise of learned scale (Fortunato et al. 2018, section 3.1, equation 11).

    y = (mu + sigma * (f(e_O) outer f(e_I))) x + mu_b + sigma_b * f(e_O), f(e) = sign(e) sqrt(|e|). Only
    `resample_noise` draws noise. It writes in place, so that a captured CUDA graph uses the new noise. The noise is
    part of the state dict, so that a resumed run is bit-exact. In evaluation mode there is no noise.

    Args:
        in_features: I.
        out_features: O.
        sigma: initial standard deviation of the noise, times sqrt(I); 0.5 in the paper.
    """

    noise_I: Tensor
    noise_O: Tensor

    def __init__(self, in_features: int, out_features: int, sigma: float = 0.5) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_features, in_features), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((out_features,), sigma * bound))
        self.register_buffer("noise_I", torch.zeros(in_features))
        self.register_buffer("noise_O", torch.zeros(out_features))

    def forward(self, x_BI: Tensor) -> Tensor:
        """Compute outputs (B, O).

        The noise matrix has rank one, so inputs and outputs are multiplied by its factors, and the noisy weights are
        never materialized.
        """
        y_BO = F.linear(x_BI, self.weight, self.bias)
        if not self.training:
            return y_BO
        return y_BO + F.linear(x_BI * self.noise_I, self.weight_sigma, self.bias_sigma) * self.noise_O


@torch.no_grad()
def resample_noise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw new noise for all noisy layers of a network at once. Before the first call the noise is zero."""
    layers = [layer for layer in module.modules() if isinstance(layer, NoisyLinear)]
    noises = [noise for layer in layers for noise in (layer.noise_I, layer.noise_O)]
    if not noises:
        return
    drawn = torch.randn(sum(map(len, noises)), generator=generator, device=generator.device)
    torch._foreach_copy_(noises, (drawn.sign() * drawn.abs().sqrt()).split([len(noise) for noise in noises]))


def spectral_norm(module: ModuleT) -> ModuleT:
    """Apply spectral normalization to all convolutions and linear layers of a network, and return the network.

    Weights are divided by their largest singular value (Miyato et al. 2018), by PyTorch's parametrization: one power
    iteration in each forward pass in training mode.
    """
    for layer in list(module.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            parametrizations.spectral_norm(layer)
    return module


def relu(x: Tensor) -> Tensor:
    """Compute max(x, 0), with derivative 0 at 0.

    In code compiled for the CPU it is a product with the sign. PyTorch's version stores a boolean mask for the backward
    pass there, which took a seventh of the time of an update (docs/LOG.md).
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return x * x.detach().sign().clamp(min=0)
    return F.relu(x)


class ReLU(nn.ReLU):
    """`relu` as a module."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (PyTorch's name)
        return relu(input)


class SampleNorm(nn.Module):
    """Layer normalization over all elements of a sample (B, ...), without weights (Ba et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize every sample to mean 0 and variance 1."""
        return F.layer_norm(x, x.shape[1:])


@torch.no_grad()
def sparse_init_(weight: Tensor, sparsity: float) -> Tensor:
    """Initialize a weight (O, I, ...) uniformly within 1 / sqrt(I ...), with zeros for a fraction of each output unit.

    Elsayed et al. 2024, "Streaming Deep Reinforcement Learning Finally Works", algorithm 1. The number of zeros is
    rounded up, as in the published code, but one input of each unit is always connected: with ReLU, a layer of zeros
    would have no gradient.

    Args:
        weight: changed in place.
        sparsity: fraction of zeros among the weights of each output unit.
    """
    rows_OI = weight.view(len(weight), -1)
    inputs = rows_OI.shape[1]
    rows_OI.uniform_(-(inputs**-0.5), inputs**-0.5)
    # The ranks of random numbers are a random permutation of each row.
    ranks_OI = torch.rand(rows_OI.shape).argsort(dim=1).argsort(dim=1).to(weight.device)
    return rows_OI.masked_fill_(ranks_OI < min(math.ceil(sparsity * inputs), inputs - 1), 0.0)
