"""Generators and discriminators.

Radford et al. 2016, section 3: no pooling, no hidden fully connected layers, BatchNorm in both networks, ReLU in the
generator with tanh at its output, LeakyReLU in the discriminator. For RGB images of 64x64 they are the networks of
PyTorch's DCGAN tutorial, with 3,576,704 and 2,765,568 parameters.

Shapes: B batch, Z latent dimension, K classes, C channels, H, W pixels, F features (the flattened last feature map).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zerokara.core.backbones.dcgan import halvings, layout
from zerokara.core.backbones.r3 import Block, init, resize_bilinear, stage_channels
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.backbones.small_maps import Double
from zerokara.core.config import UserError
from zerokara.generative.gan.config import InputRange, Norm, Upsample


def map_sizes(image_size: tuple[int, int], doublings: int) -> list[tuple[int, int]]:
    """Return (H, W) of the generator's feature maps, from coarse to the image. Each is half the next, rounded up."""
    sizes = [image_size]
    for _ in range(doublings):
        height, width = sizes[0]
        sizes.insert(0, (-(-height // 2), -(-width // 2)))
    return sizes


def init_weights(module: nn.Module) -> None:
    """Initialize a layer as in the paper, for `nn.Module.apply`: weights N(0, .02), BatchNorm's gains N(1, .02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def init_weights_without_norm(module: nn.Module) -> None:
    """Initialize a layer without normalization (He et al. 2015), for `nn.Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        inputs = module.weight[0].numel()
        if isinstance(module, nn.ConvTranspose2d):  # weights (in, out, 4, 4); 2x2 of them reach each pixel
            inputs = module.in_channels * 4
        nn.init.normal_(module.weight, std=(2 / inputs) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class LatentGenerator(nn.Module):
    """Base class of generators: from latent vectors (B, Z) and labels (B,) to images (B, C, H, W) from -1 to 1.

    Attributes:
        latent_dim: Z.
        classes: K, 0 for an unconditional generator. Labels are concatenated to the latent vector as one-hot vectors.
        project: first layer, which takes the latent vector and the label.
    """

    project: nn.Linear

    def __init__(self, latent_dim: int, classes: int) -> None:
        super().__init__()
        self.latent_dim, self.classes = latent_dim, classes

    def with_labels(self, z_BZ: Tensor, label_B: Tensor | None) -> Tensor:
        """Concatenate latent vectors and one-hot labels (B, Z + K). Without labels, return the latent vectors."""
        if label_B is None:
            return z_BZ
        return torch.cat([z_BZ, F.one_hot(label_B, self.classes).to(z_BZ.dtype)], 1)


class Generator(LatentGenerator):
    """Generator of the DCGAN paper: a linear layer, followed by transposed convolutions with stride 2.

    Args:
        latent_dim: Z.
        image_channels: C.
        image_size: (H, W). Feature maps are cropped where a side is not divisible by 2.
        width: multiplier on the channels.
        classes: K, 0 for an unconditional generator.
        upsample: transposed convolutions, or nearest-neighbor resizing and a 3x3 convolution, which avoids
            checkerboard artifacts (Odena et al. 2016).
        norm: BatchNorm or none. Without it, layers have biases and are initialized as in He et al. 2015.
    """

    def __init__(
        self,
        latent_dim: int,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        width: float = 1.0,
        classes: int = 0,
        upsample: Upsample = "deconvolution",
        norm: Norm = "batch",
    ) -> None:
        super().__init__(latent_dim, classes)
        self.upsample = upsample
        widths = [channels for channels, _ in layout(image_size, width)][::-1]
        self.sizes = map_sizes(image_size, len(widths))
        height, columns = self.sizes[0]
        # Equal to the paper's first layer, a transposed convolution of a 1x1 map. Output order: (y, x, channel).
        self.project = nn.Linear(latent_dim + classes, height * columns * widths[0], bias=norm == "none")
        self.ups, self.norms = nn.ModuleList(), nn.ModuleList()
        for into, out in zip(widths, [*widths[1:], image_channels], strict=True):
            self.norms.append(nn.BatchNorm2d(into) if norm == "batch" else nn.Identity())
            bias = norm == "none"
            self.ups.append(
                Double(into, out, bias=bias)
                if upsample == "deconvolution"
                else nn.Conv2d(into, out, 3, padding=1, bias=bias)
            )
        self.apply(init_weights if norm == "batch" else init_weights_without_norm)

    def forward(self, z_BZ: Tensor, label_B: Tensor | None = None) -> Tensor:
        """Generate images (B, C, H, W) from latent vectors and labels, or from both concatenated (B, Z + K)."""
        x: Tensor = self.project(self.with_labels(z_BZ, label_B)).unflatten(1, (*self.sizes[0], -1)).permute(0, 3, 1, 2)
        for norm, up, (height, columns) in zip(self.norms, self.ups, self.sizes[1:], strict=True):
            x = F.relu(norm(x))
            if self.upsample == "resize":
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = up(x)[:, :, :height, :columns]
        image_BCHW: Tensor = x.tanh()
        return image_BCHW


class R3Generator(LatentGenerator):
    """Generator of R3GAN (Huang et al. 2024): the backbone `r3` in reverse, on a learned map scaled by the latent.

    Its output passes through tanh, unlike R3GAN's, since images range from -1 to 1 here.

    Args:
        latent_dim: Z.
        image_channels: C.
        image_size: (H, W).
        width: multiplier on the channels.
        classes: K, 0 for an unconditional generator.
    """

    def __init__(
        self, latent_dim: int, image_channels: int, image_size: tuple[int, int], *, width: float = 1.0, classes: int = 0
    ) -> None:
        super().__init__(latent_dim, classes)
        self.sizes = [image_size, *halvings(image_size, "r3")][::-1]
        widths = stage_channels(len(self.sizes), width)[::-1]
        self.basis = nn.Parameter(torch.randn(widths[0], *self.sizes[0]))
        self.project = nn.Linear(latent_dim + classes, widths[0], bias=False)
        self.blocks = nn.ModuleList(Block(channels, len(widths)) for channels in widths)
        self.narrow = nn.ModuleList(
            nn.Conv2d(into, out, 1, bias=False) if into != out else nn.Identity()
            for into, out in itertools.pairwise(widths)
        )
        self.paint = nn.Conv2d(widths[-1], image_channels, 1, bias=False)
        for module in (self.project, *self.narrow, self.paint):
            if isinstance(module, nn.Conv2d | nn.Linear):
                init(module, 1.0)

    def forward(self, z_BZ: Tensor, label_B: Tensor | None = None) -> Tensor:
        """Generate images (B, C, H, W), as `Generator.forward`."""
        scale_BC = self.project(self.with_labels(z_BZ, label_B))
        x: Tensor = self.blocks[0](self.basis * scale_BC[:, :, None, None])
        for block, narrow, size in zip(self.blocks[1:], self.narrow, self.sizes[1:], strict=True):
            x = block(resize_bilinear(narrow(x), size))
        image_BCHW: Tensor = self.paint(x).tanh()
        return image_BCHW


class Discriminator(nn.Module):
    """Discriminator: a backbone of `core.backbones` and a linear layer. Returns logits (B,) float32, higher for real.

    With labels it is a projection discriminator (Miyato and Koyama 2018, equation 3): each class adds its own weights
    to those of the linear layer.

    Args:
        backbone: name of the backbone.
        image_channels: C.
        image_size: (H, W).
        classes: K, 0 for an unconditional discriminator.
        input_range: range of the backbone's input. unit: 0 to 1, as in the agents; zero padding is black. signed: -1 to
            1, as in the paper and in PyTorch's tutorial; zero padding is gray.
        spectral_norm: divide every layer's weights by their largest singular value (Miyato et al. 2018).
        options: options of the backbone.

    Raises:
        UserError: unknown backbone or option, or spectral normalization of layers that are initialized to zero.
    """

    def __init__(
        self,
        backbone: str,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        classes: int = 0,
        input_range: InputRange = "unit",
        spectral_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.input_range = input_range
        self.backbone = make_backbone(backbone, image_channels, image_size, **options)
        self.head = nn.Linear(self.backbone.features, 1, bias=False)
        self.class_weights = nn.Embedding(classes, self.backbone.features) if classes else None
        for layer in (self.head, self.class_weights):
            if layer is not None:
                init_weights(layer)
        if spectral_norm:
            if any(parameter.ndim > 1 and not parameter.any() for parameter in self.backbone.parameters()):
                raise UserError(
                    f"--spectral-norm divides weights by their largest singular value, and some layers of "
                    f"--backbone {backbone} are initialized to zero: remove one of the two options."
                )
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    parametrizations.spectral_norm(module)

    def forward(self, x_BCHW: Tensor, label_B: Tensor | None = None) -> Tensor:
        """Compute logits (B,) of images (B, C, H, W) from -1 to 1."""
        # Flattened in the order (y, x, channel), the memory layout of a channels-last map.
        features_BF = self.backbone(self.scale(x_BCHW)).permute(0, 2, 3, 1).flatten(1)
        score_B: Tensor = self.head(features_BF).squeeze(1).float()
        if self.class_weights is not None:
            assert label_B is not None, "a class-conditional discriminator needs labels"
            class_weights_BF = self.class_weights(label_B)
            score_B = score_B + (features_BF.float() * class_weights_BF.float()).sum(1)
        return score_B

    def scale(self, x_BCHW: Tensor) -> Tensor:
        """Scale images from -1 to 1 to the range of the backbone's input."""
        return x_BCHW if self.input_range == "signed" else (x_BCHW + 1) / 2

    def mixes_images(self) -> bool:
        """Return True if a score depends on the other images of its batch (BatchNorm)."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules())
