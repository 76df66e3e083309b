"""Mean and standard deviation of training images, by which what sees them is fed."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_moments(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and deviation (C,), float32, of every channel of uint8 images (N, C, H, W) scaled to [0, 1].

    The levels are counted, so the sums are exact and no image becomes floats. A channel of one level has the deviation
    1e-3, not 0: it can be divided by.
    """
    counts = torch.stack([torch.bincount(row, minlength=256) for row in images_NCHW.transpose(0, 1).flatten(1)])
    counts_CL = counts.double()
    level_L = torch.arange(256, dtype=torch.float64) / 255
    mean_C = (counts_CL @ level_L) / counts_CL.sum(1)
    variance_C = (counts_CL @ level_L.square()) / counts_CL.sum(1) - mean_C.square()
    return mean_C.float(), variance_C.clamp(min=0).sqrt().clamp(min=1e-3).float()
