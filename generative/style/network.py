"""Feed-forward network for one style, and the metadata of its model file.

Johnson et al. 2016, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", supplement, with instance
normalization (Ulyanov et al. 2017), and with nearest-neighbor upsampling and convolution instead of transposed
convolution, which avoids checkerboard artifacts. 1,679,235 parameters with the names of PyTorch's example
fast_neural_style, so that its weights can be loaded.

Shapes: B images, C channels, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import scaled
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary
from zerokara.core.divergence import check_finite_file
from zerokara.core.models.model_file import Metadata
from zerokara.core.models.weights import read_tensors

MIDDLE_GREY = 127.5  # of 255; initial output of the network
STRIDES = 4  # total stride; sides are padded to a multiple of it


class _Conv(nn.Module):
    """Convolution with reflection padding, after optional upsampling."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, upsample: int = 1) -> None:
        super().__init__()
        self.upsample, self.border = upsample, kernel // 2
        self.conv2d = nn.Conv2d(inside, outside, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsample > 1:
            x = F.interpolate(x, scale_factor=self.upsample, mode="nearest")
        out: Tensor = self.conv2d(F.pad(x, [self.border] * 4, mode="reflect"))
        return out


class _Residual(nn.Module):
    """Residual block of two convolutions, without ReLU after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.in1 = _Conv(channels, channels, 3), nn.InstanceNorm2d(channels, affine=True)
        self.conv2, self.in2 = _Conv(channels, channels, 3), nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.in2(self.conv2(F.relu(self.in1(self.conv1(x)))))
        return out + x


class StyleNetwork(nn.Module):
    """Network from images (B, 3, H, W) from 0 to 1, of any size, to stylized images of the same shape.

    Internally pixels range from 0 to 255, as in PyTorch's example. Outputs may slightly exceed the range.

    Args:
        width: multiplier on the channels.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        fine, middle, coarse = (scaled(channels, width) for channels in (32, 64, 128))
        self.width = width
        self.conv1, self.in1 = _Conv(3, fine, 9), nn.InstanceNorm2d(fine, affine=True)
        self.conv2, self.in2 = _Conv(fine, middle, 3, stride=2), nn.InstanceNorm2d(middle, affine=True)
        self.conv3, self.in3 = _Conv(middle, coarse, 3, stride=2), nn.InstanceNorm2d(coarse, affine=True)
        self.res1, self.res2, self.res3, self.res4, self.res5 = (_Residual(coarse) for _ in range(5))
        self.deconv1, self.in4 = _Conv(coarse, middle, 3, upsample=2), nn.InstanceNorm2d(middle, affine=True)
        self.deconv2, self.in5 = _Conv(middle, fine, 3, upsample=2), nn.InstanceNorm2d(fine, affine=True)
        self.deconv3 = _Conv(fine, 3, 9)
        nn.init.constant_(self.deconv3.conv2d.bias, MIDDLE_GREY)  # type: ignore[arg-type]  # training from black output is slow

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Stylize images (B, 3, H, W)."""
        height, width = pixels_BCHW.shape[2:]
        padding = [0, -width % STRIDES, 0, -height % STRIDES]
        y = F.pad(pixels_BCHW, padding, mode="reflect") * 255 if any(padding) else pixels_BCHW * 255
        y = F.relu(self.in1(self.conv1(y)))
        y = F.relu(self.in2(self.conv2(y)))
        y = F.relu(self.in3(self.conv3(y)))
        for block in (self.res1, self.res2, self.res3, self.res4, self.res5):
            y = block(y)
        y = F.relu(self.in4(self.deconv1(y)))
        y = F.relu(self.in5(self.deconv2(y)))
        stylized: Tensor = self.deconv3(y)
        return stylized[..., :height, :width] / 255


@dataclass(frozen=True, kw_only=True)
class StyleMetadata(Metadata[StyleNetwork]):
    """Metadata of a style network's model file."""

    FORMAT = "zerokara-stylist-1"
    NETWORK = "style network"
    PROGRAM = "generative.fast_style"

    style: str = ""
    """File name of the style image."""
    width: float = 1.0
    update: int = 0

    def build(self) -> StyleNetwork:
        """Create the network with randomly initialized weights."""
        return StyleNetwork(self.width)


def load(source: str) -> tuple[StyleNetwork, StyleMetadata]:
    """Load the network of a run's folder, of its model file, or of a file of PyTorch's example, on the CPU.

    Raises:
        UserError: no such file, a damaged one, one with NaN or Inf, or one of another kind of network.
    """
    path = StyleMetadata.find(Path(source).expanduser())
    if path.suffix == ".safetensors":
        return StyleMetadata.load(path)
    # Old files of the example contain running means, which instance normalization does not use.
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if ".running_" not in name}
    check_finite_file(tensors, path)
    style_network = StyleNetwork()
    try:
        StyleMetadata.fill(style_network, tensors)
    except RuntimeError as error:
        raise UserError(
            f"{path} is not a network of generative.fast_style ({error_summary(error)}): give the folder of such a run."
        ) from None
    return style_network.eval(), StyleMetadata(style=path.stem)


@torch.no_grad()
def stylize(style_network: StyleNetwork, compute: Compute, pixels_BCHW: Tensor) -> Tensor:
    """Stylize images (B, 3, H, W) from 0 to 1, float32, on the device of `compute`."""
    with compute.autocast():
        stylized: Tensor = style_network(compute.layout(pixels_BCHW.to(compute.torch_device)))
    return stylized.float().clamp(0, 1)
