"""What style transfer minimises, as pure functions; and luminance, by which a picture keeps its colours.

Gatys et al. 2016, "Image Style Transfer Using Convolutional Neural Networks", section 2, with its N and M of a layer as
C and H * W. The paper's sums over all activations are means here, so that a weight says the same at every size, and a
Gram matrix is divided by H * W at once, so that pictures of two sizes can be compared.

Shapes: B pictures, C channels, H, W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the Y of YIQ


def content_loss(features_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Equation 1 over the number of activations: half the mean squared difference (scalar)."""
    return 0.5 * (features_BCHW - target_BCHW).square().mean()


def gram(features_BCHW: Tensor) -> Tensor:
    """Equation 3 over H * W: the mean over positions of every product of two channels (B, C, C)."""
    features_BCP = features_BCHW.flatten(2)
    return features_BCP @ features_BCP.transpose(1, 2) / features_BCP.shape[2]


def style_loss(gram_BCC: Tensor, target_BCC: Tensor) -> Tensor:
    """Equation 4, E of a layer: the sum of squared differences over 4 C^2, mean over pictures (scalar)."""
    return 0.25 * (gram_BCC - target_BCC).square().mean()


def total_variation(pixels_BCHW: Tensor) -> Tensor:
    """Mean squared difference of neighbours below each other, and of those side by side, added (scalar)."""
    below = pixels_BCHW[:, :, 1:] - pixels_BCHW[:, :, :-1]
    beside = pixels_BCHW[..., 1:] - pixels_BCHW[..., :-1]
    return below.square().mean() + beside.square().mean()


def luminance(pixels_BCHW: Tensor) -> Tensor:
    """How bright pixels are (B, 1, H, W); of grey ones, themselves."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    weight_C = torch.tensor(LUMA, dtype=pixels_BCHW.dtype, device=pixels_BCHW.device)
    return (pixels_BCHW * weight_C.view(1, 3, 1, 1)).sum(1, keepdim=True)


def matched(style_B1HW: Tensor, content_B1HW: Tensor) -> Tensor:
    """A style's luminance brought to mean and deviation of the content's.

    Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer", section 4.
    """
    deviation = style_B1HW.std(correction=0).clamp(min=1e-6)
    scale = content_B1HW.std(correction=0) / deviation
    return (style_B1HW - style_B1HW.mean()) * scale + content_B1HW.mean()


def with_luminance(colours_B3HW: Tensor, luminance_B1HW: Tensor) -> Tensor:
    """A picture's colours under another luminance: the same I and Q of YIQ, another Y."""
    return colours_B3HW + (luminance_B1HW - luminance(colours_B3HW))
