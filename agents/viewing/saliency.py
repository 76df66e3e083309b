"""Perturbation-based saliency of a Q-network: the change of its Q-values if a part of the input is blurred.

Greydanus et al. 2018, "Visualizing and Understanding Atari Agents", equations 1 and 2: around a position p the input is
mixed with its blurred version, and the saliency of p is the resulting change of the network's output, here of all
Q-values: S(p) = 1/2 ||Q(x) - Q(x blurred at p)||^2. Unlike a gradient, it measures the effect of a visible change of
the input. Blurring does not change uniform areas, so their saliency is 0.

Shapes: P positions, C channels, H, W pixels, A actions.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from torch import Tensor

STRIDE = 5  # pixels between positions, as in the paper
MASK_SIGMA = 5.0  # pixels, as in the paper
BLUR_SIGMA = 3.0  # pixels, as in the paper
BATCH = 64  # perturbed inputs per forward pass: larger batches are not faster and need more memory


def saliency(values: Callable[[np.ndarray], Tensor], obs_CHW: np.ndarray) -> np.ndarray:
    """Return the saliency of the neighborhood of each pixel, (H, W) float32, >= 0.

    Args:
        values: Q-values (P, A) of observations (P, C, H, W) uint8, such as `agents.qlearning.policy.Policy.values`.
        obs_CHW: uint8; a position is blurred in all frames at once.
    """
    height, width = obs_CHW.shape[1:]
    rows, columns = np.arange(0, height, STRIDE), np.arange(0, width, STRIDE)
    blurred_CHW = np.stack([cv2.GaussianBlur(channel, (0, 0), BLUR_SIGMA) for channel in obs_CHW])
    difference_CHW = blurred_CHW.astype(np.float32) - obs_CHW
    down_RH = np.exp(-((rows[:, None] - np.arange(height)) ** 2) / (2 * MASK_SIGMA**2)).astype(np.float32)
    across_RW = np.exp(-((columns[:, None] - np.arange(width)) ** 2) / (2 * MASK_SIGMA**2)).astype(np.float32)
    mask_PHW = (down_RH[:, None, :, None] * across_RW[None, :, None, :]).reshape(-1, height, width)
    q_A = values(obs_CHW[None])[0].numpy(force=True)
    score_P = np.zeros(len(mask_PHW), np.float32)
    # If no pixel changes by half a gray level, the rounded input is the same and the score is 0.
    changed_P = np.flatnonzero((mask_PHW * np.abs(difference_CHW).max(axis=0)).max(axis=(1, 2)) > 0.5)
    for first in range(0, len(changed_P), BATCH):
        indices = changed_P[first : first + BATCH]
        perturbed_PCHW = np.rint(obs_CHW + mask_PHW[indices, None] * difference_CHW).astype(np.uint8)
        q_PA = values(perturbed_PCHW).numpy(force=True)
        score_P[indices] = ((q_PA - q_A) ** 2).sum(axis=1) / 2
    # Interpolate linearly between the positions.
    y_HW, x_HW = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return cv2.remap(
        score_P.reshape(len(rows), len(columns)),
        (x_HW / STRIDE).astype(np.float32),
        (y_HW / STRIDE).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
