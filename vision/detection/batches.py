"""What an update learns from: regions of training pictures, and what they should be called.

Fast R-CNN (section 2.3) takes many regions of few pictures, so that they share one pass of the eye; R-CNN (section 2.3
of its own paper) takes them from wherever they are.

Shapes: B pictures, C channels, H, W pixels, P proposals, n true boxes, M = n + P candidates, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zerokara.core.boxes import encode, iou, mirror
from zerokara.core.data.boxes import BoxSet
from zerokara.vision.detection.config import Config
from zerokara.vision.detection.detector import DetectorMetadata
from zerokara.vision.detection.proposals import Proposals


class Batch(NamedTuple):
    """Pictures as the eye sees them, regions of them, and what is right about each."""

    pixels: Tensor  # (B, C, H, W) float from 0 to 1
    boxes: Tensor  # (R, 4) float32, pixels
    image: Tensor  # (R,) int64, which of the pictures
    label: Tensor  # (R,) int64, 0 is the background
    codes: Tensor  # (R, 4) float32, from region to true box


@dataclass(frozen=True)
class Candidates:
    """The regions of one picture that may be learnt from, the true boxes first, on the CPU."""

    boxes: Tensor  # (M, 4)
    overlap: Tensor  # (M,) with the true box that fits best
    label: Tensor  # (M,) class of that box, from 0 on; 0 where there is none
    target: Tensor  # (M, 4) that box

    @classmethod
    def of(cls, truth_n4: Tensor, label_n: Tensor, proposals_P4: Tensor) -> Candidates:
        """True boxes are candidates too: they are the best examples that there are."""
        boxes_M4 = torch.cat([truth_n4, proposals_P4])
        if not len(truth_n4):
            nothing = torch.zeros(len(boxes_M4))
            return cls(boxes_M4, nothing, nothing.long(), boxes_M4)
        overlap_M, match_M = iou(boxes_M4, truth_n4).max(1)
        return cls(boxes_M4, overlap_M, label_n[match_M], truth_n4[match_M])

    def foreground(self, config: Config) -> Tensor:
        """Places of those that show an object."""
        return torch.nonzero(self.overlap >= config.foreground_iou).flatten()

    def background(self, config: Config) -> Tensor:
        """Places of those that show none; where all are too far from any object, those too."""
        low = self.overlap < config.foreground_iou
        near = torch.nonzero(low & (self.overlap >= config.background_iou)).flatten()
        return near if len(near) else torch.nonzero(low).flatten()


def all_candidates(boxes: BoxSet, proposals: Sequence[Proposals]) -> list[Candidates]:
    """Those of every picture."""
    return [
        Candidates.of(truth, label, each.boxes)
        for truth, label, each in zip(boxes.boxes, boxes.labels, proposals, strict=True)
    ]


def draw(indices_N: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """`number` of these at random, or all where there are fewer."""
    return indices_N[torch.randperm(len(indices_N), generator=generator)[:number]]


class ImageBatches:
    """Fast R-CNN's batches, drawn with a generator on the CPU."""

    def __init__(
        self, config: Config, boxes: BoxSet, candidates: Sequence[Candidates], generator: torch.Generator
    ) -> None:
        self.config, self.candidates, self.generator = config, candidates, generator
        self.height, self.width = boxes.images.shape[2:]

    def draw(self, images_NCHW: Tensor, index_B: Tensor) -> Batch:
        """Regions of the pictures at these places; at most a quarter of them show objects."""
        config, device = self.config, images_NCHW.device
        number = max(1, config.regions_per_update // config.images_per_update)
        pictures, boxes, images, labels, targets = [], [], [], [], []
        for row, index in enumerate(index_B.tolist()):
            each = self.candidates[index]
            shown = draw(each.foreground(config), round(number * config.foreground), self.generator)
            others = draw(each.background(config), number - len(shown), self.generator)
            chosen = torch.cat([shown, others])
            regions, target = each.boxes[chosen], each.target[chosen]
            picture = images_NCHW[index]
            for axis, size in self.flips():
                picture = picture.flip(2 - axis)
                regions, target = mirror(regions, size, axis), mirror(target, size, axis)
            pictures.append(picture)
            boxes.append(regions)
            images.append(torch.full((len(chosen),), row))
            labels.append(torch.cat([each.label[shown] + 1, torch.zeros_like(others)]))
            targets.append(target)
        boxes_R4 = torch.cat(boxes)
        parts = (boxes_R4, torch.cat(images), torch.cat(labels), encode(boxes_R4, torch.cat(targets)))
        pixels = torch.stack(pictures).float() * (1 / 255)
        return Batch(pixels, *(part.to(device) for part in parts))

    def flips(self) -> list[tuple[int, float]]:
        """Along which axes a picture is mirrored this time, and its size along them."""
        coins = (torch.rand(2, generator=self.generator) < 0.5).tolist()
        allowed = {"none": (False, False), "horizontal": (True, False), "both": (True, True)}[self.config.flip]
        sizes = (float(self.width), float(self.height))
        return [(axis, sizes[axis]) for axis in (0, 1) if coins[axis] and allowed[axis]]


class CropBatches:
    """R-CNN's batches: a region is a warped crop, a picture of its own."""

    def __init__(
        self, config: Config, metadata: DetectorMetadata, candidates: Sequence[Candidates], generator: torch.Generator
    ) -> None:
        self.config, self.metadata, self.candidates, self.generator = config, metadata, candidates, generator
        pools: tuple[list[Tensor], list[Tensor]] = ([], [])
        for index, each in enumerate(candidates):
            for pool, found in zip(pools, (each.foreground(config), each.background(config)), strict=True):
                pool.append(torch.stack([torch.full_like(found, index), found], 1))
        self.shown, self.others = (torch.cat(pool) for pool in pools)  # rows of picture and candidate

    def draw(self, images_NCHW: Tensor, index_B: Tensor) -> Batch:
        """Crops of all training pictures; a quarter of them show objects. `place_B` says only how many share it."""
        config, device = self.config, images_NCHW.device
        number = max(1, config.regions_per_update * len(index_B) // config.images_per_update)
        rows = []
        for pool, count in ((self.shown, round(number * config.foreground)), (self.others, number)):
            if len(pool):
                rows.append(pool[torch.randint(len(pool), (count,), generator=self.generator)])
        shown = len(rows[0]) if len(self.shown) else 0
        row_R2 = torch.cat(rows)[:number]
        each = [self.candidates[picture] for picture in row_R2[:, 0].tolist()]
        at = row_R2[:, 1].tolist()
        boxes_R4 = torch.stack([one.boxes[index] for one, index in zip(each, at, strict=True)])
        label_R = torch.stack([one.label[index] + 1 for one, index in zip(each, at, strict=True)])
        label_R[shown:] = 0
        crops = self.metadata.crops(images_NCHW, boxes_R4.to(device), row_R2[:, 0].to(device))
        for axis, allowed in ((3, config.flip != "none"), (2, config.flip == "both")):
            coin_R = torch.rand(len(crops), generator=self.generator) < 0.5
            if allowed:
                crops = torch.where(coin_R.to(device).view(-1, 1, 1, 1), crops.flip(axis), crops)
        whole, whose = self.metadata.whole_crops(len(crops), device)
        return Batch(crops, whole, whose, label_R.to(device), torch.zeros(len(crops), 4, device=device))
