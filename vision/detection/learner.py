"""Training of a detector: data, loss, update step, checkpoint state and evaluation.

Shapes: N images, B images per update, C channels, H, W pixels, R regions, K classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core import checkpoint, schedules
from zerokara.core.compute import Compute
from zerokara.core.data.boxes import BoxSet, load_boxes, split
from zerokara.core.data.moments import channel_moments
from zerokara.core.distributed import World
from zerokara.core.divergence import is_finite, pop_means
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.optim import make_optimizer
from zerokara.core.programs import command
from zerokara.core.progress import loading
from zerokara.core.stopwatch import Stopwatch
from zerokara.vision.detection.batches import Batch, CropBatches, ImageBatches, all_candidates
from zerokara.vision.detection.config import Config
from zerokara.vision.detection.detector import Detections, Detector, DetectorMetadata
from zerokara.vision.detection.proposals import Proposals
from zerokara.vision.detection.scoring import AveragePrecision, precision

CONTEXT_FRACTION = 16 / 227  # of the side of a crop, on each side (R-CNN, appendix A)


@dataclass(frozen=True)
class Data:
    """Training, validation and test images. Test images are used only once, after training."""

    train: BoxSet
    validation: BoxSet
    test: BoxSet

    @classmethod
    def load(cls, config: Config) -> Data:
        """Read the data set and split it.

        Raises:
            UserError: the data set is missing, damaged or too small.
        """
        folder = Path(config.data_dir) if config.data_dir else None
        with loading(config.quiet) as progress:
            boxes = load_boxes(config.data, image_side=config.image_side, data_dir=folder, progress=progress)
        return cls(*split(boxes, config.split_seed))


@dataclass(frozen=True)
class Scored:
    """Detections and average precision on a set of images."""

    found: list[Detections]
    precision: AveragePrecision
    network_seconds: float
    """Median per image, without the time for proposals."""


def loss(
    logits_RK: Tensor, codes_RK4: Tensor, label_R: Tensor, target_R4: Tensor, box_weight: float
) -> tuple[Tensor, Tensor]:
    """Multi-task loss of Fast R-CNN (section 2.3, equations 1 to 3): cross-entropy plus smooth L1, means over regions.

    Args:
        logits_RK: (R, K + 1), background first.
        codes_RK4: predicted box codes (R, K, 4). Only those of the true class count; background regions have none.
        label_R: true class, 0 is the background.
        target_R4: true box codes.
        box_weight: lambda, the weight of the smooth L1 loss.

    Returns:
        The weighted sum, and the smooth L1 loss without its weight.
    """
    classes = F.cross_entropy(logits_RK, label_R)
    foreground_R = torch.nonzero(label_R).flatten()
    own_R4 = codes_RK4[foreground_R, label_R[foreground_R] - 1]
    boxes = F.smooth_l1_loss(own_R4, target_R4[foreground_R], reduction="sum") / len(label_R)
    return classes + box_weight * boxes, boxes


class Training:
    """Training state, saved in a checkpoint, and its update step."""

    def __init__(
        self,
        config: Config,
        metadata: DetectorMetadata,
        train: BoxSet,
        proposals: Sequence[Proposals],
        compute: Compute,
        world: World,
    ) -> None:
        self.config, self.metadata, self.train, self.compute, self.world = config, metadata, train, compute, world
        torch.manual_seed(config.seed)
        self.detector = compute.module(Detector(metadata))
        self.detector.net.freeze_norm(config.freeze_batch_norm)
        self.detector.train()
        world.broadcast(self.detector)
        self.optimizer = make_optimizer(
            config.optimizer,
            self.detector.net,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        seed = config.seed * 1_000_003 + world.rank
        self.generator = torch.Generator().manual_seed(seed)  # samples regions
        self.augment_generator = torch.Generator(compute.torch_device).manual_seed(seed)
        self.augment = config.augment()
        candidates = all_candidates(train, proposals)
        self.batches: ImageBatches | CropBatches
        if config.method == "rcnn":
            self.batches = CropBatches(config, metadata, candidates, self.generator)
        else:
            self.batches = ImageBatches(config, train, candidates, self.generator)
        self.images = train.images.to(compute.torch_device)
        self.updates = 0
        self.last_map: float | None = None  # of the last evaluation on validation images
        self.stopwatch = Stopwatch()
        # Sums since the last `read_metrics`, on the device: loss, box loss, accuracy, gradient norm, number of updates.
        self._sums = torch.zeros(5, device=compute.torch_device)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        config = self.config
        return config.learning_rate * schedules.warmup_cosine(self.updates + 1, config.warmup_updates, config.updates)

    def indices(self) -> Tensor:
        """Return the indices (B,) of the images of the next update: a function of seed and update, so not saved."""
        number, size = len(self.train), min(self.config.images_per_update, len(self.train))
        epoch, index = divmod(self.updates, max(1, number // size))
        shuffle = torch.Generator().manual_seed(self.config.seed * 7_919 + epoch)
        return torch.randperm(number, generator=shuffle)[index * size : (index + 1) * size]

    def update(self) -> None:
        """Take one gradient step."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("lr_factor", 1.0)
        batch = self.batches.sample(self.images, self.indices()[self.world.rank :: self.world.size])
        pixels = self.augment(batch.pixels, self.augment_generator).clamp(0, 1)
        x_BCHW = self.compute.layout(self.metadata.normalize(pixels))
        with self.compute.autocast():
            logits, codes = self.detector.net(x_BCHW, batch.boxes, batch.image)
        weight = config.box_loss if config.method == "fast-rcnn" else 0.0
        total, box_loss = loss(logits, codes, batch.label, batch.codes, weight)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.world.mean_gradients(self.detector.net.parameters())
        norm = nn.utils.clip_grad_norm_(self.detector.net.parameters(), config.max_grad_norm)
        self.optimizer.step()
        accuracy = (logits.detach().argmax(1) == batch.label).float().mean()
        self._sums += torch.stack(
            [total.detach(), box_loss.detach(), accuracy, norm.detach(), torch.ones_like(accuracy)]
        )
        self.updates += 1

    def example(self) -> Batch:
        """Sample a batch as for an update and leave the state of the generator unchanged."""
        before = self.generator.get_state()
        batch = self.batches.sample(self.images, self.indices())
        self.generator.set_state(before)
        return batch

    def score(self, boxes: BoxSet, proposals: Sequence[Proposals]) -> Scored:
        """Evaluate the detector on images."""
        found, seconds = detect_all(self.detector, boxes, proposals, self.compute)
        return Scored(found, precision(boxes, found), statistics.median(seconds))

    def read_metrics(self) -> dict[str, Tensor]:
        """Return the means of the training metrics since the last call, as tensors on the device."""
        names = ("loss", "box_loss", "accuracy", "grad_norm")
        return pop_means(self._sums, [f"train/{name}" for name in names])

    def is_finite(self) -> bool:
        """Return True if all weights are finite. Synchronizes with the device."""
        return is_finite(self.detector)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "light_generator": self.augment_generator.get_state(),
            "rng": checkpoint.rng_state(),
            "sums": self._sums,
            "updates": self.updates,
            "last_map": self.last_map,
            "hours": self.stopwatch(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.augment_generator.set_state(state["light_generator"])
        checkpoint.set_rng_state(state["rng"])
        self._sums.copy_(state["sums"])
        self.updates, self.last_map, self.stopwatch.hours = state["updates"], state["last_map"], state["hours"]


def detect_all(
    detector: Detector, boxes: BoxSet, proposals: Sequence[Proposals], compute: Compute
) -> tuple[list[Detections], list[float]]:
    """Return the detections in every image and the seconds per image, without the time for proposals."""
    found, seconds = [], []
    for index, each in enumerate(proposals):
        start = time.perf_counter()
        canvas = boxes.images[index].to(compute.torch_device)
        found.append(
            detector.detect(canvas, each.boxes.to(compute.torch_device), compute)
        )  # synchronizes with the device
        seconds.append(time.perf_counter() - start)
    return found, seconds


def make_metadata(config: Config, train: BoxSet, pretrained: ClassifierMetadata | None) -> DetectorMetadata:
    """Return the metadata of the detector that a config describes.

    Images are normalized with mean and standard deviation of the pretrained classifier; without one, with those of the
    training images.
    """
    if pretrained is not None and pretrained.channels == 3:
        mean, std = pretrained.mean, pretrained.std
    else:
        mean, std = (tuple(value_C.tolist()) for value_C in channel_moments(train.images))
    return DetectorMetadata(
        method=config.method,
        backbone=config.backbone,
        options=config.options(),
        classes=train.classes,
        image_side=config.image_side,
        mean=mean,
        std=std,
        stride=config.stride,
        bins=config.bins,
        units=config.hidden_units,
        dropout=config.dropout,
        crop_side=config.crop_side,
        crop_context=round(CONTEXT_FRACTION * config.crop_side),
        proposals=config.proposals,
        search=config.search(),
        nms_iou=config.nms_iou,
        detections=config.detections,
        data=train.source,
        command=command(),
    )
