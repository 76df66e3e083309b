"""Losses of style transfer as pure functions, and luminance functions that preserve an image's colors.

Gatys et al. 2016, "Image Style Transfer Using Convolutional Neural Networks", section 2. A layer's N and M of the paper
are C and H * W here. The paper's sums over activations are means here, so that weights do not depend on the image size,
and Gram matrices are divided by H * W, so that images of different sizes can be compared.

Shapes: B images, C channels, P = H * W positions, H, W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the Y of YIQ


def content_loss(features_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Half the mean squared difference of features (scalar): equation 1 divided by the number of activations."""
    return 0.5 * (features_BCHW - target_BCHW).square().mean()


def gram(features_BCHW: Tensor) -> Tensor:
    """Gram matrices (B, C, C): equation 3 divided by H * W, the mean over positions of products of channels."""
    features_BCP = features_BCHW.flatten(2)
    return features_BCP @ features_BCP.transpose(1, 2) / features_BCP.shape[2]


def style_loss(gram_BCC: Tensor, target_BCC: Tensor) -> Tensor:
    """Style loss of a layer (scalar), equation 4: sum of squared differences over 4 C^2, averaged over images."""
    return 0.25 * (gram_BCC - target_BCC).square().mean()


def total_variation(pixels_BCHW: Tensor) -> Tensor:
    """Mean squared difference of vertical neighbors plus that of horizontal neighbors (scalar)."""
    vertical = pixels_BCHW[:, :, 1:] - pixels_BCHW[:, :, :-1]
    horizontal = pixels_BCHW[..., 1:] - pixels_BCHW[..., :-1]
    return vertical.square().mean() + horizontal.square().mean()


def luminance(pixels_BCHW: Tensor) -> Tensor:
    """Compute luminance (B, 1, H, W). Grayscale pixels are unchanged."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    weight_C = torch.tensor(LUMA, dtype=pixels_BCHW.dtype, device=pixels_BCHW.device)
    return (pixels_BCHW * weight_C.view(1, 3, 1, 1)).sum(1, keepdim=True)


def match_luminance(style_B1HW: Tensor, content_B1HW: Tensor) -> Tensor:
    """Scale and shift the style's luminance to the mean and standard deviation of the content's.

    Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer", section 4.
    """
    deviation = style_B1HW.std(correction=0).clamp(min=1e-6)
    scale = content_B1HW.std(correction=0) / deviation
    return (style_B1HW - style_B1HW.mean()) * scale + content_B1HW.mean()


def with_luminance(pixels_B3HW: Tensor, luminance_B1HW: Tensor) -> Tensor:
    """Replace the luminance of an image and keep its colors: Y of YIQ changes, I and Q do not."""
    return pixels_B3HW + (luminance_B1HW - luminance(pixels_B3HW))
