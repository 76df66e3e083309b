"""Networks with binary weights and activations, and files in which a weight takes one bit.

Courbariaux and Hubara et al. 2016, "Binarized Neural Networks: Training Neural Networks with Weights and Activations
Constrained to +1 or -1"; the journal version is Hubara et al. 2018, "Quantized Neural Networks". All weights are +1 or
-1, including those of the first and the last layer. The inputs of all layers except the first one, which gets pixels,
are +1 or -1. BatchNorm follows every layer and stays in float32.

Shapes: B batch, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.config import UserError
from zerokara.core.layers import BinaryConv2d, BinaryLinear, pack, unpack
from zerokara.core.models.model_file import Metadata

Binary = BinaryLinear | BinaryConv2d


class BinaryNetwork(nn.Module):
    """Base class: network from pixels to logits. A subclass implements `logits`.

    The first layer has real-valued inputs. The network normalizes images itself, with the mean and standard deviation
    of the training set, which are saved with the weights.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_size = shape[1:]
        self.register_buffer("mean_C", torch.zeros(shape[0]))
        self.register_buffer("std_C", torch.ones(shape[0]))

    @abstractmethod
    def logits(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits (B, K) of normalized images."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits (B, K) of pixels from 0 to 1."""
        shape = (1, -1, 1, 1)
        return self.logits((x_BCHW - self.mean_C.view(shape)) / self.std_C.view(shape))

    def binary_layers(self) -> dict[str, Binary]:
        """Return the layers with binary weights by name, in order."""
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, Binary)}


class BinaryMlp(BinaryNetwork):
    """Multilayer perceptron with BatchNorm after each layer (section 2.1). Each layer binarizes its own input."""

    def __init__(self, shape: tuple[int, int, int], units: int, layers: int, classes: int) -> None:
        super().__init__(shape)
        sizes = [shape[0] * shape[1] * shape[2], *[units] * layers, classes]
        self.linears = nn.ModuleList(
            BinaryLinear(inputs, outputs, binary_input=number > 0)
            for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes))
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:])

    def logits(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits (B, K) of normalized images."""
        x = x_BCHW.flatten(1)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = norm(linear(x).float())
        return x


class BinaryCnn(BinaryNetwork):
    """Convolutional network of the paper for CIFAR-10 (section 2.2).

    Six 3x3 convolutions in pairs of 128, 256 and 512 channels, with max pooling before the BatchNorm at the end of each
    pair, then two hidden fully connected layers.

    Args:
        shape: (C, H, W) of the images.
        width: factor on the channels.
        units: units of the fully connected layers; 1,024 in the paper.
        classes: number of classes K.
    """

    channels = (128, 128, 256, 256, 512, 512)

    def __init__(self, shape: tuple[int, int, int], width: float, units: int, classes: int) -> None:
        super().__init__(shape)
        if min(shape[1:]) < 8:
            raise UserError(
                f"Images of {shape[1]}x{shape[2]} pixels are too small for the three pooling layers of --network cnn: "
                f"at least 8x8 are needed; use larger images or --network mlp."
            )
        sizes = [shape[0], *(max(1, round(channels * width)) for channels in self.channels)]
        self.convs = nn.ModuleList(
            BinaryConv2d(inputs, outputs, 3, padding=1, binary_input=number > 0)
            for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes))
        )
        self.conv_norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes[1:])
        flat = sizes[-1] * (shape[1] // 8) * (shape[2] // 8)
        layer_sizes = [flat, units, units, classes]
        self.linears = nn.ModuleList(
            BinaryLinear(inputs, outputs) for inputs, outputs in itertools.pairwise(layer_sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in layer_sizes[1:])

    def logits(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits (B, K) of normalized images."""
        x = x_BCHW
        for number, (conv, norm) in enumerate(zip(self.convs, self.conv_norms, strict=True)):
            x = conv(x)
            if number % 2:
                x = F.max_pool2d(x, 2)
            x = norm(x.float())
        x = x.flatten(1)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = norm(linear(x).float())
        return x


@dataclass(frozen=True, kw_only=True)
class BinaryMetadata(Metadata[BinaryNetwork]):
    """Metadata of a file of packed weights: architecture, classes and input shape."""

    FORMAT = "zerokara-binary-1"
    NETWORK = "network with packed weights"
    PROGRAM = "vision.binary"
    FILE = "packed.safetensors"

    network: Literal["mlp", "cnn"]
    units: int  # of each hidden fully connected layer
    layers: int  # number of hidden layers of the mlp
    width: float  # factor on the channels of the cnn
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]  # (H, W)

    def build(self) -> BinaryNetwork:
        """Build the network with random weights.

        Raises:
            UserError: the images are too small for the cnn.
        """
        shape = (self.channels, *self.image_size)
        if self.network == "mlp":
            return BinaryMlp(shape, self.units, self.layers, len(self.classes))
        return BinaryCnn(shape, self.width, self.units, len(self.classes))

    @staticmethod
    def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Unpack the weights of a file into the network."""
        unpack(network, weights)


@dataclass(frozen=True)
class Sizes:
    """Sizes in bytes of the binary weights of a network and of its file."""

    float_bytes: int
    """Size of the weights as float32."""
    packed_bytes: int
    """Size of the weights with one bit each."""
    file_bytes: int
    """Size of the file: weights, BatchNorm in float32, and metadata."""

    @property
    def ratio(self) -> float:
        """Compression ratio of the weights: 32, or less if the last byte of a layer is not full."""
        return self.float_bytes / self.packed_bytes


def write_packed(path: Path, network: BinaryNetwork, metadata: BinaryMetadata) -> Sizes:
    """Write a network atomically to a file with one bit per binary weight. Return the sizes.

    Raises:
        UserError: the file cannot be written.
    """
    packed = pack(network)
    metadata.save(path, packed)
    layers = network.binary_layers()
    return Sizes(
        float_bytes=sum(4 * layer.weight.numel() for layer in layers.values()),
        packed_bytes=sum(packed[f"{name}.weight"].nbytes for name in layers),
        file_bytes=path.stat().st_size,
    )
