"""Where a Q-network looks: what it would no longer know if a place in its picture were blurred.

Greydanus et al. 2018, "Visualizing and Understanding Atari Agents", equations 1 and 2: around a place p the picture is
mixed with its own blur, and the place matters as much as that changes the network's answer, here all Q-values:
S(p) = 1/2 ||Q(x) - Q(x blurred at p)||^2. Unlike a gradient it shows what a visible change of the picture does. What
is flat already cannot be blurred, so an empty place never matters.

Shapes: P places, C channels, H, W pixels, A actions.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from torch import Tensor

STRIDE = 5  # pixels between places, as in the paper
MASK_SIGMA = 5.0  # pixels, as in the paper
BLUR_SIGMA = 3.0  # pixels, as in the paper
BATCH = 64  # pictures that the network sees at once: more is no faster, and needs memory


def saliency(values: Callable[[np.ndarray], Tensor], obs_CHW: np.ndarray) -> np.ndarray:
    """How much each pixel's neighbourhood matters, (H, W) float32, from 0 up.

    Args:
        values: Q-values (P, A) of observations (P, C, H, W) uint8, as `agents.qlearning.learner.Policy.values`.
        obs_CHW: uint8; a place is blurred in all of its frames at once.
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
    # Where no pixel changes by half a grey level, the picture stays as it is and the score is 0.
    changed_P = np.flatnonzero((mask_PHW * np.abs(difference_CHW).max(axis=0)).max(axis=(1, 2)) > 0.5)
    for first in range(0, len(changed_P), BATCH):
        places = changed_P[first : first + BATCH]
        perturbed_PCHW = np.rint(obs_CHW + mask_PHW[places, None] * difference_CHW).astype(np.uint8)
        q_PA = values(perturbed_PCHW).numpy(force=True)
        score_P[places] = ((q_PA - q_A) ** 2).sum(axis=1) / 2
    # From the places to the pixels between them, linearly.
    y_HW, x_HW = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return cv2.remap(
        score_P.reshape(len(rows), len(columns)),
        (x_HW / STRIDE).astype(np.float32),
        (y_HW / STRIDE).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
