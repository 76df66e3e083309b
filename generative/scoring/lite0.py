"""FD-Lite0: the Fréchet distance in the features of EfficientNet-Lite0, which was trained on ImageNet.

    lite0 = Lite0("--lite0", channels=3)
    scores = lite0.compare(lite0.extract(real), lite0.extract(generated))

Its definition is that of FID (Heusel et al. 2017) with another network, so its values cannot be compared with FID's.

Shapes: N images, C channels, H, W pixels, F = 1,280 features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zerokara.core.config import UserError
from zerokara.core.models import lite0
from zerokara.core.zoo import provenance
from zerokara.generative.scoring.distances import Features, compare, frechet_distance

BATCH = 25  # images of each forward pass; rounding in float32 may depend on it, so it is fixed
NAME = "fd_lite0"  # of the Fréchet distance
PREFIX = "lite0_"  # of the names of the other metrics
HASH = lite0.SHA256[:16]


def refuse_biased(extra: Mapping[str, Any], pretrained_backbone: str) -> None:
    """Refuse to score a generator whose discriminator was initialized from the weights of the score.

    Args:
        extra: `extra` of the run's config.json; {} before the run starts.
        pretrained_backbone: its --pretrained-backbone; "" if there is none.

    Raises:
        UserError: the discriminator's backbone was initialized from these weights.
    """
    if HASH in provenance.initial_provenance(extra, pretrained_backbone):
        raise UserError(
            "The discriminator's backbone was initialized from the weights of FD-Lite0, or from weights that were "
            "trained from these, so its score would be biased: leave out FD-Lite0, or train from another "
            "--pretrained-backbone."
        )


class Lite0:
    """EfficientNet-Lite0 without its classes.

    Attributes:
        protocol: hash of the weights, resizing and features, as plain values.
    """

    def __init__(self, option: str, channels: int) -> None:
        """Load the network.

        Args:
            option: the option that needs it, for messages.
            channels: of the images.

        Raises:
            UserError: the package with its weights is not installed, or images are neither RGB nor grayscale.
        """
        if channels not in (1, 3):
            raise UserError(f"{option} needs images of 1 or 3 channels, and these have {channels}: remove {option}.")
        self._backbone = lite0.load(option).backbone
        self.protocol = {
            "package": lite0.PACKAGE,
            "weights": HASH,
            "resize": lite0.RESIZE,
            "normalization": "(pixel - 127) / 128",
            "features": f"last feature map, averaged ({lite0.FEATURES} numbers)",
        }

    @torch.no_grad()
    def extract(self, images_NCHW: Tensor) -> Features:
        """Extract features (N, F) of uint8 images on the CPU.

        Every forward pass is one of `BATCH` images, so that the features of an image do not depend on the number of
        images or on their order.
        """
        features = []
        for chunk in images_NCHW.split(BATCH):
            filled = torch.cat([chunk, chunk[-1:].expand(BATCH - len(chunk), -1, -1, -1)])
            features.append(self._backbone(lite0.preprocess(filled)).double().mean((2, 3))[: len(chunk)])
        return Features(torch.cat(features))

    @staticmethod
    def compare(real: Features, fake: Features) -> dict[str, float]:
        """Compute all metrics of generated images against real ones, from their features."""
        others = {f"{PREFIX}{name}": value for name, value in compare(real, fake).items()}
        return {NAME: frechet_distance(real, fake), **others}
