"""What a segmenter minimises: cross-entropy over labelled pixels, rare classes counted for more.

Shapes: B batch, N images, H, W pixels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.data.masks import UNLABELLED


def pixel_loss(logits_BKHW: Tensor, target_BHW: Tensor, weight_K: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood of the labelled pixels, a scalar in nats; 0 where there is none.

    Args:
        logits_BKHW: of every pixel.
        target_BHW: int64, classes or UNLABELLED.
        weight_K: weights of the classes in the mean; None: all the same.
    """
    total = F.cross_entropy(logits_BKHW, target_BHW, weight_K, ignore_index=UNLABELLED, reduction="sum")
    labelled_BHW = target_BHW != UNLABELLED
    if weight_K is None:
        return total / labelled_BHW.sum().clamp(min=1)
    # Nothing that waits for the device: unlabelled pixels take the first weight, times nothing.
    weights_BHW = weight_K[torch.where(labelled_BHW, target_BHW, 0)] * labelled_BHW
    return total / weights_BHW.sum().clamp(min=torch.finfo(weight_K.dtype).tiny)


def median_frequency(masks_NHW: Tensor, classes: int, power: float = 1.0) -> Tensor:
    """Weights (K,) of classes by how rare they are: Eigen and Fergus 2015, section 6.3.2, as SegNet uses it.

    The frequency of a class is its share of the pixels of those images that show it; its weight is the median of all
    frequencies, divided by its own. Unlabelled pixels are not pixels here (Eigen and Fergus do not say). A class that
    no image shows weighs 0.

    Args:
        masks_NHW: uint8, classes or UNLABELLED.
        classes: K.
        power: to which weights are raised: 1 balances, 0 makes them all the same.
    """
    counts_NK = torch.stack([torch.bincount(mask.flatten(), minlength=256)[:classes] for mask in masks_NHW.long()])
    counts_NK = counts_NK.double()
    pixels_N1 = counts_NK.sum(1, keepdim=True)
    shown_K = (pixels_N1 * (counts_NK > 0)).sum(0)
    there_K = shown_K > 0
    frequency_K = counts_NK.sum(0) / shown_K.clamp(min=1)
    median = frequency_K[there_K].quantile(0.5)
    return torch.where(there_K, (median / frequency_K.clamp(min=1e-12)) ** power, 0.0).float()
