"""Model files of segmentation networks: weights in safetensors format, with architecture and preprocessing as metadata.

network, metadata = load(Path("runs/segment-camvid/model.safetensors"))
logits_BKHW = network(metadata.normalize(pixels_BCHW))

Shapes: B batch, C channels, H, W pixels, K classes.
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
    """Metadata of a segmentation network: architecture, classes and input normalization."""

    network: str
    backbone: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]  # (H, W) of the training images
    mean: tuple[float, ...]  # of each channel; pixels are 0 to 1
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone: width, stem, ...
    hidden_units: int | None = None
    dropout: float = 0.5
    decoder_channels: int = 0
    data: str = ""  # description of the training data
    command: str = ""  # command line that trained the network
    figures: Mapping[str, float] = field(default_factory=dict)  # metrics, such as test mean IoU

    def build(self) -> Segmenter:
        """Create the network with randomly initialized weights."""
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
        """Normalize images in [0, 1] to mean 0 and standard deviation 1 over the training set, per channel."""
        mean, std = (
            torch.tensor(values, dtype=images_BCHW.dtype, device=images_BCHW.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images_BCHW - mean) / std


def save(path: Path, weights: Mapping[str, Tensor], metadata: SegmenterMetadata) -> None:
    """Write weights and metadata to a file, atomically.

    Raises:
        UserError: the file cannot be written (disk full, permissions); an existing file is unchanged.
    """
    model_file.write(path, weights, dataclasses.asdict(metadata), FORMAT)


def load(path: Path) -> tuple[Segmenter, SegmenterMetadata]:
    """Load a segmentation network, in evaluation mode, float32 on the CPU, and its metadata.

    Raises:
        UserError: the file is missing or damaged, contains another kind of network, or has another version of the
            format.
    """
    fields, weights = model_file.read(path, FORMAT, "segmenter")
    metadata = model_file.parse_metadata(SegmenterMetadata, fields, path)
    return model_file.fill(metadata.build(), weights, path), metadata
