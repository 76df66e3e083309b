"""Trained segmenters as files: safetensors with a card that says what is inside and how to feed it.

network, card = load(Path("runs/segment-camvid/model.safetensors"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerokara.core.models import model_file
from zerokara.vision.segmentation.networks import Segmenter, make_segmenter

FORMAT = "zerokara-segmenter-1"


@dataclass(frozen=True, kw_only=True)
class SegmenterMetadata:
    """What a file of weights is: enough to build its network, and to feed it."""

    network: str
    backbone: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]  # (H, W) of the images it learnt from
    mean: tuple[float, ...]  # of each channel, in pixels of 0 to 1
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone: width and the like
    hidden_units: int | None = None
    dropout: float = 0.5
    decoder_channels: int = 0
    data: str = ""  # what it learnt from, in words
    command: str = ""  # what made it
    figures: Mapping[str, float] = field(default_factory=dict)  # what was measured of it

    def build(self) -> Segmenter:
        """The network without its weights."""
        return make_segmenter(
            self.network,
            backbone=self.backbone,
            channels=self.channels,
            image_size=self.image_size,
            classes=len(self.classes),
            hidden_units=self.hidden_units,
            dropout=self.dropout,
            decoder_channels=self.decoder_channels,
            **self.options,
        )

    def normalize(self, images_BCHW: Tensor) -> Tensor:
        """Images scaled to [0, 1] as the network expects them: mean 0 and deviation 1 over its training set."""
        mean, std = (
            torch.tensor(values, dtype=images_BCHW.dtype, device=images_BCHW.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images_BCHW - mean) / std


def save(path: Path, weights: Mapping[str, Tensor], metadata: SegmenterMetadata) -> None:
    """Write weights and card as one whole file.

    Raises:
        UserError: the disk is full or refuses; the old file is as it was.
    """
    model_file.write(path, weights, dataclasses.asdict(metadata), FORMAT)


def load(path: Path) -> tuple[Segmenter, SegmenterMetadata]:
    """The network of a file, in evaluation mode, float32 on the CPU, and its card.

    Raises:
        UserError: no such file, a damaged one, one that is no segmenter, or from another version.
    """
    fields, weights = model_file.read(path, FORMAT, "segmenter")
    metadata = model_file.parse_metadata(SegmenterMetadata, fields, path)
    return model_file.fill(metadata.build(), weights, path), metadata
