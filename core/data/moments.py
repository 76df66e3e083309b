"""Mean and standard deviation of training images, for input normalization."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_moments(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean (C,) and standard deviation (C,), float32, per channel of uint8 images (N, C, H, W) over 255.

    They are computed from histograms, so that the sums are exact and images are not converted to float. The standard
    deviation is at least 1e-3, so that constant channels do not cause a division by zero.
    """
    counts = torch.stack([torch.bincount(row, minlength=256) for row in images_NCHW.transpose(0, 1).flatten(1)])
    counts_CL = counts.double()
    level_L = torch.arange(256, dtype=torch.float64) / 255
    mean_C = (counts_CL @ level_L) / counts_CL.sum(1)
    variance_C = (counts_CL @ level_L.square()) / counts_CL.sum(1) - mean_C.square()
    return mean_C.float(), variance_C.clamp(min=0).sqrt().clamp(min=1e-3).float()
