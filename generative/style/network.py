"""The network that paints in one style at a glance, and the file in which it is kept.

Johnson et al. 2016, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", supplement, with the
instance normalisation of Ulyanov et al. 2017 and, in the place of transposed convolutions, maps made larger and then
convolved, which leaves no checkerboards. 1,679,235 parameters, named as in PyTorch's example fast_neural_style, so that
weights which that made can be used.

Shapes: B pictures, C channels, H, W pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.base import scaled
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary
from zerokara.core.models import model_file
from zerokara.core.models.weights import read_tensors

FORMAT = "zerokara-stylist-1"
MODEL_FILE = "model.safetensors"
MIDDLE_GREY = 127.5  # of 255: what a network that has learnt nothing paints
STRIDES = 4  # two halvings: sides are filled up to a multiple of it


class _Conv(nn.Module):
    """A convolution whose border is the picture mirrored; maps may be made larger before."""

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
    """Two convolutions beside a shortcut, with no ReLU behind the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.in1 = _Conv(channels, channels, 3), nn.InstanceNorm2d(channels, affine=True)
        self.conv2, self.in2 = _Conv(channels, channels, 3), nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.in2(self.conv2(F.relu(self.in1(self.conv1(x)))))
        return out + x


class StyleNetwork(nn.Module):
    """Pictures (B, 3, H, W) from 0 to 1, of any size, to such pictures in one style; `width` is a factor on channels.

    Inside and out pixels go up to 255, as in PyTorch's example; they may leave the range by a little.
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
        nn.init.constant_(self.deconv3.conv2d.bias, MIDDLE_GREY)  # type: ignore[arg-type]  # from black it takes long

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Painted pictures (B, 3, H, W)."""
        height, width = pixels_BCHW.shape[2:]
        fill = [0, -width % STRIDES, 0, -height % STRIDES]
        y = F.pad(pixels_BCHW, fill, mode="reflect") * 255 if any(fill) else pixels_BCHW * 255
        y = F.relu(self.in1(self.conv1(y)))
        y = F.relu(self.in2(self.conv2(y)))
        y = F.relu(self.in3(self.conv3(y)))
        for block in (self.res1, self.res2, self.res3, self.res4, self.res5):
            y = block(y)
        y = F.relu(self.in4(self.deconv1(y)))
        y = F.relu(self.in5(self.deconv2(y)))
        painted: Tensor = self.deconv3(y)
        return painted[..., :height, :width] / 255


@dataclass(frozen=True, kw_only=True)
class StyleMetadata:
    """What a file of weights is."""

    style: str = ""
    """File name of the picture whose style it is."""
    width: float = 1.0
    update: int = 0
    command: str = ""


def save(path: Path, stylist: StyleNetwork, metadata: StyleMetadata) -> None:
    """Write weights and card as one whole file.

    Raises:
        UserError: the disk is full or refuses; the old file is as it was.
    """
    model_file.write(path, stylist.state_dict(), dataclasses.asdict(metadata), FORMAT)


def load(word: str) -> tuple[StyleNetwork, StyleMetadata]:
    """The network of a run's folder, of its file, or of a file that PyTorch's example made; on the CPU.

    Raises:
        UserError: none there, a damaged one, or one of something else.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise UserError(
                f"{path} has no {MODEL_FILE}: give the folder of a run of generative.fast_style that has saved."
            )
        path /= MODEL_FILE
    if path.suffix == ".safetensors":
        fields, weights = model_file.read(path, FORMAT, "network of generative.fast_style")
        metadata = model_file.parse_metadata(StyleMetadata, fields, path)
        return model_file.fill(StyleNetwork(metadata.width), weights, path), metadata
    # Old files of the example carry running means, which instance normalisation has no use for.
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if ".running_" not in name}
    stylist = StyleNetwork()
    try:
        stylist.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise UserError(
            f"{path} holds no network of generative.fast_style ({error_summary(error)}): give the folder of such a run."
        ) from None
    return stylist.eval(), StyleMetadata(style=path.stem)


@torch.no_grad()
def paint(stylist: StyleNetwork, compute: Compute, pixels_BCHW: Tensor) -> Tensor:
    """Painted pictures (B, 3, H, W) from 0 to 1, float32, with the hardware that was chosen."""
    with compute.autocast():
        painted: Tensor = stylist(compute.layout(pixels_BCHW.to(compute.torch_device)))
    return painted.float().clamp(0, 1)
