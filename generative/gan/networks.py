"""Generator and discriminator.

Radford et al. 2016, section 3: no pooling, no hidden fully connected layers, BatchNorm in both, ReLU in the generator
and tanh at its end, LeakyReLU in the discriminator. At 64x64 in colour they are the pair of PyTorch's tutorial:
3,576,704 and 2,765,568 parameters.

Shapes: B batch, Z numbers of a latent, K classes, C channels, H, W pixels, F numbers in the last feature map.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from zerokara.core.backbones.dcgan import halvings, layout
from zerokara.core.backbones.r3 import Block, channels_of, init, resampled
from zerokara.core.backbones.registry import make_backbone
from zerokara.core.backbones.small_maps import Double
from zerokara.core.config import UserError

Upsample = Literal["deconvolution", "resize"]
Norm = Literal["batch", "none"]


def map_sizes(image_size: tuple[int, int], doublings: int) -> list[tuple[int, int]]:
    """(H, W) of the generator's maps from coarse to the image: each at most twice the one before, rounded up."""
    sizes = [image_size]
    for _ in range(doublings):
        height, width = sizes[0]
        sizes.insert(0, (-(-height // 2), -(-width // 2)))
    return sizes


def init_weights(module: nn.Module) -> None:
    """The paper's initialisation of one layer, for `nn.Module.apply`: N(0, .02), BatchNorm's gains N(1, .02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def init_weights_of_plain_layers(module: nn.Module) -> None:
    """He initialisation for leaky ReLU, for layers that nothing normalises; for `nn.Module.apply`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        inputs = module.weight[0].numel()
        if isinstance(module, nn.ConvTranspose2d):  # weights (in, out, 4, 4), and a pixel is reached by 2x2 taps
            inputs = module.in_channels * 4
        nn.init.normal_(module.weight, std=(2 / inputs) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class FromLatents(nn.Module):
    """What every generator is: latents (B, Z) and labels in, images (B, C, H, W) from -1 to 1 out.

    Attributes:
        latent: Z.
        classes: K, 0 for a generator without labels. A label is joined to the latent as a one-hot vector.
        project: the layer that takes them.
    """

    project: nn.Linear

    def __init__(self, latent: int, classes: int) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes

    def joined(self, z_BZ: Tensor, label_B: Tensor | None) -> Tensor:
        """Latents with their labels (B, Z + K); those that have them already as they are."""
        if label_B is None:
            return z_BZ
        return torch.cat([z_BZ, F.one_hot(label_B, self.classes).to(z_BZ.dtype)], 1)


class Generator(FromLatents):
    """The paper's: a product, and convolutions that double the map.

    Args:
        latent: Z.
        image_channels: C.
        image_size: (H, W); sides that do not halve evenly are cut to size on the way up.
        width: factor on the channels.
        classes: K, 0 for a generator without labels.
        upsample: transposed convolutions, or enlargement and a 3x3 convolution, which leaves no checkerboard
            (Odena et al. 2016).
        norm: BatchNorm, or none; then layers have biases and begin as He et al. 2015 say.
    """

    def __init__(
        self,
        latent: int,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        width: float = 1.0,
        classes: int = 0,
        upsample: Upsample = "deconvolution",
        norm: Norm = "batch",
    ) -> None:
        super().__init__(latent, classes)
        self.upsample = upsample
        widths = [channels for channels, _ in layout(image_size, width)][::-1]
        self.sizes = map_sizes(image_size, len(widths))
        height, columns = self.sizes[0]
        # The paper's first layer is a transposed convolution of a 1x1 map, which is this product: row (y, x, channel).
        self.project = nn.Linear(latent + classes, height * columns * widths[0], bias=norm == "none")
        self.ups, self.norms = nn.ModuleList(), nn.ModuleList()
        for into, out in zip(widths, [*widths[1:], image_channels], strict=True):
            self.norms.append(nn.BatchNorm2d(into) if norm == "batch" else nn.Identity())
            bias = norm == "none"
            self.ups.append(
                Double(into, out, bias=bias)
                if upsample == "deconvolution"
                else nn.Conv2d(into, out, 3, padding=1, bias=bias)
            )
        self.apply(init_weights if norm == "batch" else init_weights_of_plain_layers)

    def forward(self, z_BZ: Tensor, label_B: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) of latents and labels, or of latents (B, Z + K) that labels are joined to already."""
        x: Tensor = self.project(self.joined(z_BZ, label_B)).unflatten(1, (*self.sizes[0], -1)).permute(0, 3, 1, 2)
        for norm, up, (height, columns) in zip(self.norms, self.ups, self.sizes[1:], strict=True):
            x = F.relu(norm(x))
            if self.upsample == "resize":
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = up(x)[:, :, :height, :columns]
        image_BCHW: Tensor = x.tanh()
        return image_BCHW


class R3Generator(FromLatents):
    """R3GAN's (Huang et al. 2024): the trunk `r3` the other way round, with a learnt map that the latent scales.

    It ends in tanh, which theirs does not, since an image is from -1 to 1 here.

    Args:
        latent: Z.
        image_channels: C.
        image_size: (H, W).
        width: factor on the channels.
        classes: K, 0 for a generator without labels.
    """

    def __init__(
        self, latent: int, image_channels: int, image_size: tuple[int, int], *, width: float = 1.0, classes: int = 0
    ) -> None:
        super().__init__(latent, classes)
        self.sizes = [image_size, *halvings(image_size, "r3")][::-1]
        widths = channels_of(len(self.sizes), width)[::-1]
        self.basis = nn.Parameter(torch.randn(widths[0], *self.sizes[0]))
        self.project = nn.Linear(latent + classes, widths[0], bias=False)
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
        """As `Generator`."""
        scale_BC = self.project(self.joined(z_BZ, label_B))
        x: Tensor = self.blocks[0](self.basis * scale_BC[:, :, None, None])
        for block, narrow, size in zip(self.blocks[1:], self.narrow, self.sizes[1:], strict=True):
            x = block(resampled(narrow(x), size))
        image_BCHW: Tensor = self.paint(x).tanh()
        return image_BCHW


class Discriminator(nn.Module):
    """A trunk of `core.backbones` and one layer: logits (B,) float32, higher for images that look real.

    With labels it is a projection discriminator (Miyato and Koyama 2018, equation 3): a class adds weights of its own
    to the layer's.

    Args:
        backbone: name of the trunk; it sees pixels from 0 to 1, as it does under a Q-network.
        image_channels: C.
        image_size: (H, W).
        classes: K, 0 for a discriminator without labels.
        spectral: divide every layer's weights by their largest singular value (Miyato et al. 2018).
        options: of the backbone.

    Raises:
        UserError: no such backbone or option; spectral normalisation of layers that begin at zero.
    """

    def __init__(
        self,
        backbone: str,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        classes: int = 0,
        spectral: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.backbone = make_backbone(backbone, image_channels, image_size, **options)
        self.head = nn.Linear(self.backbone.features, 1, bias=False)
        self.class_weights = nn.Embedding(classes, self.backbone.features) if classes else None
        for layer in (self.head, self.class_weights):
            if layer is not None:
                init_weights(layer)
        if spectral:
            if any(parameter.ndim > 1 and not parameter.any() for parameter in self.backbone.parameters()):
                raise UserError(
                    f"--spectral divides weights by their largest singular value, and layers of --backbone {backbone} "
                    f"begin at zero: leave one of the two out."
                )
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    spectral_norm(module)

    def forward(self, x_BCHW: Tensor, label_B: Tensor | None = None) -> Tensor:
        """Logits (B,) of images from -1 to 1."""
        # Rows (y, x, channel): how a map lies in memory where it is channels last.
        features_BF = self.backbone((x_BCHW + 1) / 2).permute(0, 2, 3, 1).flatten(1)
        score_B: Tensor = self.head(features_BF).squeeze(1).float()
        if self.class_weights is not None:
            assert label_B is not None, "a class-conditional discriminator needs labels"
            own_BF = self.class_weights(label_B)
            score_B = score_B + (features_BF.float() * own_BF.float()).sum(1)
        return score_B

    def mixes_images(self) -> bool:
        """Whether a score depends on the other images of its batch."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules())
