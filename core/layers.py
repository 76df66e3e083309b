"""Layers that PyTorch does not have: binary ones, and linear ones with learnt noise.

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

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _Sign(torch.autograd.Function):
    """Forward: +1 from 0 on, else -1. Backward: the gradient of hard-tanh, for sign's own is nothing."""

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
    """Numbers as +1 (from 0 on) or -1, with a straight-through gradient where |x| <= 1 and none elsewhere.

    That is sign after hard-tanh with the sign seen as the identity on the way back (Hubara et al. 2016, equation 4).
    """
    signs: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return signs


class BinaryLinear(nn.Linear):
    """A linear layer whose weights, and inputs, are +1 or -1 (Hubara et al. 2016, "Binarized Neural Networks").

    `weight` holds the latent weights that gradients move; call `clip_latent_` after every step of the optimiser. There
    is no bias: BatchNorm follows.

    Args:
        in_features: I.
        out_features: O.
        binary_input: whether inputs are binarised; a network's first layer leaves its images as they are.
    """

    def __init__(self, in_features: int, out_features: int, *, binary_input: bool = True) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.binary_input = binary_input
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Whole numbers (B, O) where the input is binary."""
        return F.linear(sign(x_BI) if self.binary_input else x_BI, sign(self.weight))


class BinaryConv2d(nn.Conv2d):
    """A convolution whose filters, and inputs, are +1 or -1, as `BinaryLinear`. Padding is +1: 0 is no binary digit.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: side of the filters, in pixels.
        stride: in pixels.
        padding: in pixels.
        binary_input: whether inputs are binarised; where they are not, padding is 0.
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
        """Feature maps (B, out_channels, ...)."""
        if not self.binary_input:
            return F.conv2d(x_BCHW, sign(self.weight), stride=self.stride, padding=self.padding)
        padded = F.pad(sign(x_BCHW), (self.margin,) * 4, value=1.0)
        return F.conv2d(padded, sign(self.weight), stride=self.stride)


def _latent(module: nn.Module) -> dict[str, Tensor]:
    """The latent weights of a network's binary layers, by their names in its state dict."""
    return {
        f"{name}.weight" if name else "weight": layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, BinaryLinear | BinaryConv2d)
    }


@torch.no_grad()
def clip_latent_(module: nn.Module) -> None:
    """Clip all latent weights to [-1, 1], where a gradient can still turn them."""
    weights = list(_latent(module).values())
    if weights:
        torch._foreach_clamp_min_(weights, -1.0)
        torch._foreach_clamp_max_(weights, 1.0)


def pack_signs(weight: Tensor) -> Tensor:
    """The signs of a tensor, eight to a byte as NumPy's packbits has them: uint8 (ceil(n / 8),), a 1 for +1."""
    bits = (weight.detach() >= 0).flatten()
    bits_N8 = F.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (bits_N8 * _places(weight.device)).sum(1, dtype=torch.uint8)


def unpack_signs(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Weights of +1 and -1 of this shape, float32, from `pack_signs`."""
    bits = (packed[:, None] & _places(packed.device)).flatten()[: math.prod(shape)] != 0
    return (bits.float() * 2 - 1).view(shape)


def _places(device: torch.device) -> Tensor:
    """What each bit of a byte counts, the highest first."""
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


def pack(module: nn.Module) -> dict[str, Tensor]:
    """A network's state dict with one bit for each binary weight: a 32nd of their size."""
    latent = _latent(module)
    return {name: pack_signs(x) if name in latent else x.detach() for name, x in module.state_dict().items()}


def unpack(module: nn.Module, packed: Mapping[str, Tensor]) -> None:
    """Load `pack` into a network of the same form, which then computes exactly what the packed one did.

    Latent weights become +1 or -1: enough to see, not to go on learning.
    """
    latent = _latent(module)
    module.load_state_dict(
        {name: unpack_signs(x, tuple(latent[name].shape)) if name in latent else x for name, x in packed.items()}
    )


class NoisyLinear(nn.Module):
    """A linear layer with factorised Gaussian noise of learnt size (Fortunato et al. 2018, section 3.1, equation 11).

    y = (mu + sigma * (f(e_O) outer f(e_I))) x + mu_b + sigma_b * f(e_O), f(e) = sign(e) sqrt(|e|). Noise is drawn by
    `resample_noise` only, in place, so that a captured graph sees fresh noise; it is in the state dict, so that a
    resumed run goes on bit for bit. In evaluation mode there is none.

    Args:
        in_features: I.
        out_features: O.
        sigma: deviation of the noise at first, times sqrt(I); 0.5 in the paper.
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
        """Outputs (B, O).

        The noise is of rank one, so it goes onto inputs and outputs, and the noisy weights are never written down.
        """
        y_BO = F.linear(x_BI, self.weight, self.bias)
        if not self.training:
            return y_BO
        return y_BO + F.linear(x_BI * self.noise_I, self.weight_sigma, self.bias_sigma) * self.noise_O


@torch.no_grad()
def resample_noise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw new noise for all noisy layers of a network, at once; until the first time there is none."""
    layers = [layer for layer in module.modules() if isinstance(layer, NoisyLinear)]
    noises = [noise for layer in layers for noise in (layer.noise_I, layer.noise_O)]
    if not noises:
        return
    drawn = torch.randn(sum(map(len, noises)), generator=generator, device=generator.device)
    torch._foreach_copy_(noises, (drawn.sign() * drawn.abs().sqrt()).split([len(noise) for noise in noises]))


def spectral_norm(module: ModuleT) -> ModuleT:
    """The network with the weights of its convolutions and linear layers divided by their largest singular value.

    Miyato et al. 2018, by PyTorch's own parametrisation: one power iteration in each forward pass of training.
    """
    for layer in list(module.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            parametrizations.spectral_norm(layer)
    return module


def relu(x: Tensor) -> Tensor:
    """max(x, 0), its derivative 0 at 0.

    In code compiled for a CPU it is a product with a sign. PyTorch's own keeps a mask of truth values for the backward
    pass there, and writing those down took a seventh of a whole update (docs/LOG.md).
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return x * x.detach().sign().clamp(min=0)
    return F.relu(x)


class ReLU(nn.ReLU):
    """`relu` as a layer."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (PyTorch's name)
        return relu(input)
