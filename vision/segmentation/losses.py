"""Loss of semantic segmentation: cross-entropy over labeled pixels, optionally weighted by class.

Shapes: B batch, N images, H, W pixels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zerokara.core.data.masks import UNLABELED


def pixel_loss(logits_BKHW: Tensor, target_BHW: Tensor, weight_K: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood of the labeled pixels: a scalar in nats, 0 if no pixel is labeled.

    Args:
        logits_BKHW: logits of every pixel.
        target_BHW: int64, class indices or UNLABELED.
        weight_K: weights of the classes in the mean; None: equal weights.
    """
    total = F.cross_entropy(logits_BKHW, target_BHW, weight_K, ignore_index=UNLABELED, reduction="sum")
    if weight_K is None:
        return total / (target_BHW != UNLABELED).sum().clamp(min=1)
    return total / total_weight(target_BHW, weight_K).clamp(min=torch.finfo(weight_K.dtype).tiny)


def total_weight(target_BHW: Tensor, weight_K: Tensor) -> Tensor:
    """Sum (scalar) of the class weights of all labeled pixels, by which `pixel_loss` divides."""
    labeled_BHW = target_BHW != UNLABELED
    # Selecting the labeled pixels would synchronize with the device. Instead, unlabeled pixels get weight_K[0] * 0.
    return (weight_K[torch.where(labeled_BHW, target_BHW, 0)] * labeled_BHW).sum()


def median_frequency_weights(masks_NHW: Tensor, classes: int, power: float = 1.0) -> Tensor:
    """Class weights (K,) by median frequency balancing: Eigen and Fergus 2015, section 6.3.2, as used for SegNet.

    The frequency of a class is the number of its pixels, divided by the number of pixels in all images that contain
    the class. Its weight is the median of all frequencies, divided by its own frequency. Unlabeled pixels are not
    counted (Eigen and Fergus do not specify this). The weight of a class that is in no image is 0.

    Args:
        masks_NHW: uint8, class indices or UNLABELED.
        classes: K.
        power: exponent of the weights; 1: full balancing, 0: equal weights.
    """
    counts_NK = torch.stack([torch.bincount(mask.flatten(), minlength=256)[:classes] for mask in masks_NHW.long()])
    counts_NK = counts_NK.double()
    pixels_N1 = counts_NK.sum(1, keepdim=True)
    # Pixels in all images that contain the class.
    available_K = (pixels_N1 * (counts_NK > 0)).sum(0)
    present_K = available_K > 0
    frequency_K = counts_NK.sum(0) / available_K.clamp(min=1)
    median = frequency_K[present_K].quantile(0.5)
    return torch.where(present_K, (median / frequency_K.clamp(min=1e-12)) ** power, 0.0).float()
