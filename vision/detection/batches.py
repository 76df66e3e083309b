"""Sample training batches: regions of images with their class labels and box regression targets.

Fast R-CNN (section 2.3) samples many regions of few images, so that these share one forward pass of the backbone.
R-CNN (section 2.3 of its paper) samples regions of all training images.

Shapes: B images, C channels, H, W pixels, P proposals, n true boxes, M = n + P candidates, R regions, N indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zerokara.core.boxes import encode, flip, iou
from zerokara.core.data.boxes import BoxSet
from zerokara.vision.detection.config import Config
from zerokara.vision.detection.detector import DetectorMetadata
from zerokara.vision.detection.proposals import Proposals


class Batch(NamedTuple):
    """Images, regions of them, and the labels and regression targets of the regions."""

    pixels: Tensor  # (B, C, H, W) float from 0 to 1
    boxes: Tensor  # (R, 4) float32, pixels
    image: Tensor  # (R,) int64, index of the image in the batch
    label: Tensor  # (R,) int64, 0 is the background
    codes: Tensor  # (R, 4) float32, regression targets from region to true box


@dataclass(frozen=True)
class Candidates:
    """Regions of one image that may be sampled: the true boxes, then the proposals. On the CPU."""

    boxes: Tensor  # (M, 4)
    overlap: Tensor  # (M,) highest IoU with a true box
    label: Tensor  # (M,) class of that true box, from 0; 0 if the image has no true box
    target: Tensor  # (M, 4) that true box

    @classmethod
    def of(cls, truth_n4: Tensor, label_n: Tensor, proposals_P4: Tensor) -> Candidates:
        """Match true boxes and proposals with the true box of highest IoU. True boxes are candidates too."""
        boxes_M4 = torch.cat([truth_n4, proposals_P4])
        if not len(truth_n4):
            zeros = torch.zeros(len(boxes_M4))
            return cls(boxes_M4, zeros, zeros.long(), boxes_M4)
        overlap_M, match_M = iou(boxes_M4, truth_n4).max(1)
        return cls(boxes_M4, overlap_M, label_n[match_M], truth_n4[match_M])

    def foreground(self, config: Config) -> Tensor:
        """Return the indices of foreground candidates (IoU of at least `foreground_iou`)."""
        return torch.nonzero(self.overlap >= config.foreground_iou).flatten()

    def background(self, config: Config) -> Tensor:
        """Return the indices of background candidates (IoU from `background_iou` to `foreground_iou`).

        If there are none in that range, return all candidates below `foreground_iou`.
        """
        low = self.overlap < config.foreground_iou
        near = torch.nonzero(low & (self.overlap >= config.background_iou)).flatten()
        return near if len(near) else torch.nonzero(low).flatten()


def all_candidates(boxes: BoxSet, proposals: Sequence[Proposals]) -> list[Candidates]:
    """Return the candidates of every image."""
    return [
        Candidates.of(truth, label, each.boxes)
        for truth, label, each in zip(boxes.boxes, boxes.labels, proposals, strict=True)
    ]


def sample(indices_N: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Sample `number` indices without replacement; all of them if there are fewer."""
    return indices_N[torch.randperm(len(indices_N), generator=generator)[:number]]


class ImageBatches:
    """Batches of Fast R-CNN: whole images with regions. Samples with a generator on the CPU."""

    def __init__(
        self, config: Config, boxes: BoxSet, candidates: Sequence[Candidates], generator: torch.Generator
    ) -> None:
        self.config, self.candidates, self.generator = config, candidates, generator
        self.height, self.width = boxes.images.shape[2:]

    def sample(self, images_NCHW: Tensor, index_B: Tensor) -> Batch:
        """Sample regions of the images with these indices; at most `foreground_fraction` of them are foreground."""
        config, device = self.config, images_NCHW.device
        number = max(1, config.regions_per_update // config.images_per_update)
        pixels, boxes, images, labels, targets = [], [], [], [], []
        for row, index in enumerate(index_B.tolist()):
            candidates = self.candidates[index]
            positive = sample(candidates.foreground(config), round(number * config.foreground_fraction), self.generator)
            negative = sample(candidates.background(config), number - len(positive), self.generator)
            chosen = torch.cat([positive, negative])
            regions, target = candidates.boxes[chosen], candidates.target[chosen]
            image = images_NCHW[index]
            for axis, size in self.sample_flips():
                image = image.flip(2 - axis)
                regions, target = flip(regions, size, axis), flip(target, size, axis)
            pixels.append(image)
            boxes.append(regions)
            images.append(torch.full((len(chosen),), row))
            labels.append(torch.cat([candidates.label[positive] + 1, torch.zeros_like(negative)]))
            targets.append(target)
        boxes_R4 = torch.cat(boxes)
        parts = (boxes_R4, torch.cat(images), torch.cat(labels), encode(boxes_R4, torch.cat(targets)))
        return Batch(torch.stack(pixels).float() * (1 / 255), *(part.to(device) for part in parts))

    def sample_flips(self) -> list[tuple[int, float]]:
        """Sample the axes (0: x, 1: y) along which an image is flipped; return each with the size of the image."""
        coins = (torch.rand(2, generator=self.generator) < 0.5).tolist()
        allowed = {"none": (False, False), "horizontal": (True, False), "both": (True, True)}[self.config.flip]
        sizes = (float(self.width), float(self.height))
        return [(axis, sizes[axis]) for axis in (0, 1) if coins[axis] and allowed[axis]]


class CropBatches:
    """Batches of R-CNN: each region is a warped crop, an image with one region."""

    def __init__(
        self, config: Config, metadata: DetectorMetadata, candidates: Sequence[Candidates], generator: torch.Generator
    ) -> None:
        self.config, self.metadata, self.candidates, self.generator = config, metadata, candidates, generator
        pools: tuple[list[Tensor], list[Tensor]] = ([], [])
        for image, each in enumerate(candidates):
            for pool, found in zip(pools, (each.foreground(config), each.background(config)), strict=True):
                pool.append(torch.stack([torch.full_like(found, image), found], 1))
        # Rows are (index of the image, index of the candidate).
        self.foreground, self.background = (torch.cat(pool) for pool in pools)

    def sample(self, images_NCHW: Tensor, index_B: Tensor) -> Batch:
        """Sample crops of all training images; `foreground_fraction` of them are foreground.

        Args:
            images_NCHW: all training images.
            index_B: only its length matters; it sets the number of regions of this process.
        """
        config, device = self.config, images_NCHW.device
        number = max(1, config.regions_per_update * len(index_B) // config.images_per_update)
        pools = ((self.foreground, round(number * config.foreground_fraction)), (self.background, number))
        rows = []
        for pool, count in pools:
            if len(pool):
                rows.append(pool[torch.randint(len(pool), (count,), generator=self.generator)])
        positives = len(rows[0]) if len(self.foreground) else 0
        row_R2 = torch.cat(rows)[:number]
        candidates = [self.candidates[image] for image in row_R2[:, 0].tolist()]
        indices = row_R2[:, 1].tolist()
        boxes_R4 = torch.stack([each.boxes[index] for each, index in zip(candidates, indices, strict=True)])
        label_R = torch.stack([each.label[index] + 1 for each, index in zip(candidates, indices, strict=True)])
        label_R[positives:] = 0
        crops = self.metadata.crops(images_NCHW, boxes_R4.to(device), row_R2[:, 0].to(device))
        for axis, allowed in ((3, config.flip != "none"), (2, config.flip == "both")):
            coin_R = torch.rand(len(crops), generator=self.generator) < 0.5
            if allowed:
                crops = torch.where(coin_R.to(device).view(-1, 1, 1, 1), crops.flip(axis), crops)
        whole, image_R = self.metadata.whole_crops(len(crops), device)
        return Batch(crops, whole, image_R, label_R.to(device), torch.zeros(len(crops), 4, device=device))
