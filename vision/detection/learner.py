"""Training of a detector: data, loss, update step, checkpoint state and evaluation.

Shapes: N images, B images per update, C channels, H, W pixels, R regions, K classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
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
from zerokara.core.data.reading_rules import rules_of
from zerokara.core.distributed import World
from zerokara.core.epoch_order import EpochOrder
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.normalization import expected_moments
from zerokara.core.optim import make_optimizer
from zerokara.core.programs import command
from zerokara.core.progress import loading
from zerokara.core.run import Run
from zerokara.core.run_inputs import resumed_extra
from zerokara.core.sharding import evaluate_shards
from zerokara.core.stopwatch import LogInterval
from zerokara.core.training_loop import TrainingState
from zerokara.vision.detection.batches import Batch, CropBatches, ImageBatches, all_candidates
from zerokara.vision.detection.config import NORMALIZATION, Config
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
        with loading(config.quiet) as progress, rules_of(config):
            boxes = load_boxes(
                config.data,
                image_side=config.image_side,
                data_dir=folder,
                background=config.background,
                progress=progress,
            )
        return cls(*split(boxes, config.split_seed, named=config.named_splits))

    def messages(self, config: Config) -> list[str]:
        """Return lines on the split, on what was left out of the data, and on what else the user should know."""
        train = self.train
        sizes = f"{len(train):,} training, {len(self.validation):,} validation and {len(self.test):,} test images"
        rule = "by the names of folders and files" if train.splits and config.named_splits else "chosen by --split-seed"
        return [f"{sizes}, {rule}", *train.messages]


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


class Training(TrainingState[Detector]):
    """Training state of a detector and its update."""

    config: Config

    def __init__(
        self,
        config: Config,
        metadata: DetectorMetadata,
        train: BoxSet,
        proposals: Sequence[Proposals],
        compute: Compute,
        world: World,
    ) -> None:
        names = ("loss", "box_loss", "accuracy", "grad_norm")
        super().__init__(config, compute, world, lambda: Detector(metadata), [f"train/{name}" for name in names])
        self.metadata, self.train = metadata, train
        self.detector = self.network
        self.detector.net.freeze_norm(config.freeze_batch_norm)
        self.detector.train()
        self.optimizer = make_optimizer(
            config.optimizer,
            self.detector.net,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
        self.region_generator = torch.Generator().manual_seed(world.process_seed(config.seed))
        self.augment = config.augment()
        candidates = all_candidates(train, proposals)
        self.batches: ImageBatches | CropBatches
        if config.method == "rcnn":
            self.batches = CropBatches(config, metadata, candidates, self.region_generator)
        else:
            self.batches = ImageBatches(config, train, candidates, self.region_generator)
        self.images = train.images.to(compute.torch_device)
        self.order = EpochOrder(len(train), config.images_per_update, config.seed)
        self.last_map: float | None = None  # of the last evaluation on validation images

    @property
    def trained_network(self) -> nn.Module:
        """The detector without R-CNN's SVMs."""
        return self.detector.net

    @property
    def total_updates(self) -> int:
        """Length of the run in updates."""
        return self.config.updates

    @property
    def is_validation_due(self) -> bool:
        """True if a validation follows this update. R-CNN has no class scores before its SVMs are trained.

        The last update is not followed by a validation, because the run is evaluated at its end.
        """
        config = self.config
        due = self.updates % config.validate_every_updates == 0
        return config.method == "fast-rcnn" and due and self.updates < config.updates

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        config = self.config
        return config.learning_rate * schedules.warmup_cosine(self.updates + 1, config.warmup_updates, config.updates)

    def update(self) -> None:
        """Take one gradient step."""
        self.set_learning_rates()
        batch = self.batches.sample(self.images, self.order.batch(self.updates)[self.world.batch_shard])
        pixels = self.augment(batch.pixels, self.generator).clamp(0, 1)
        x_BCHW = self.compute.layout(self.metadata.normalize(pixels))
        total, box_loss, logits = self.parallel.forward(self._forward, x_BCHW, batch)
        self.optimizer.zero_grad(set_to_none=True)
        share = self._share(len(batch.label))
        self.parallel.backward(total * share)
        norm = nn.utils.clip_grad_norm_(self.detector.net.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        accuracy = (logits.detach().argmax(1) == batch.label).float().mean()
        self.end_update(total * share, box_loss * share, accuracy * share, norm)

    def _forward(self, x_BCHW: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss and the smooth L1 loss in it (scalars), and the logits (R, K + 1)."""
        with self.compute.autocast():
            logits, codes = self.detector.net(x_BCHW, batch.boxes, batch.image)
        weight = self.config.box_loss if self.config.method == "fast-rcnn" else 0.0
        return (*loss(logits, codes, batch.label, batch.codes, weight), logits)

    def _share(self, regions: int) -> Tensor | float:
        """Return the regions of this process divided by their mean over the processes.

        A mean over the regions of a process times this number has, as its mean over the processes, that over all
        regions. An image with few proposals has fewer regions than others.
        """
        if self.world.size == 1:
            return 1.0
        number = torch.tensor(float(regions), device=self.compute.torch_device)
        return number / self.world.mean(number)

    def example(self) -> Batch:
        """Sample a batch as for an update and leave the state of the generator unchanged."""
        before = self.region_generator.get_state()
        batch = self.batches.sample(self.images, self.order.batch(self.updates))
        self.region_generator.set_state(before)
        return batch

    @property
    def evaluating(self) -> World:
        """Processes that divide the images of an evaluation. Only the main process has R-CNN's SVMs, at its end."""
        return self.world if self.config.method == "fast-rcnn" else World()

    def score_in_processes(self, run: Run, boxes: BoxSet, proposals: Sequence[Proposals]) -> Scored:
        """Evaluate the main process's detector, each process of `evaluating` on its shard of the images.

        Raises:
            Stopped: a signal interrupted the evaluation in one of the processes.
        """

        def evaluate(shard: slice) -> tuple[list[Detections], list[float]]:
            own = boxes.take(range(len(boxes))[shard])
            return detect_all(self.detector, own, proposals[shard], self.compute)

        self.evaluating.broadcast(self.detector)
        parts = evaluate_shards(self.evaluating, run, len(boxes), evaluate)
        found = [detections for of_shard, _ in parts for detections in of_shard]
        seconds = [each for _, of_shard in parts for each in of_shard]
        return Scored(found, precision(boxes, found), statistics.median(seconds))

    def interval_metrics(self, interval: LogInterval) -> dict[str, float]:
        """Return the updates per second."""
        return {"speed/updates_per_s": interval.per_second(self.updates)}

    def progress_fields(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Return loss, accuracy, the last mAP on validation images, and the speed."""
        return {
            "loss": scalars.get("train/loss", float("nan")),
            "accuracy": scalars.get("train/accuracy", float("nan")),
            "val mAP": float("nan") if self.last_map is None else self.last_map,
            "updates/s": scalars.get("speed/updates_per_s", float("nan")),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for a checkpoint. The keys are those of older releases."""
        state = super().state_dict()
        detector = state.pop("network")
        return {
            **state,
            "detector": detector,
            "light_generator": state["generator"],
            "generator": self.region_generator.get_state(),
            "last_map": self.last_map,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict({**state, "network": state["detector"], "generator": state["light_generator"]})
        self.region_generator.set_state(state["generator"])
        self.last_map = state["last_map"]

    def load_processes(self, states: Mapping[int, dict[str, Any]]) -> str:
        """Restore the state from checkpoints of other processes. Regions are sampled anew, too."""
        with checkpoint.drawn_anew(self.region_generator, lambda: self.updates):
            return super().load_processes(states)


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

    Images are normalized with mean and standard deviation of the pretrained classifier or published weights; without
    them, with those of the training images. A resumed run keeps those that `save_normalization` saved.
    """
    if saved := resumed_extra(config).get(NORMALIZATION):
        mean, std = tuple(saved["mean"]), tuple(saved["std"])
    elif config.published_normalization:
        mean, std = expected_moments(config)
    elif pretrained is not None and pretrained.channels == 3:
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
        background=config.background,
        data=train.source,
        command=command(),
    )


def save_normalization(run: Run, metadata: DetectorMetadata) -> None:
    """Save mean and standard deviation of the inputs in config.json. All processes must call this."""
    if NORMALIZATION not in run.extra:
        run.save_extra(**{NORMALIZATION: {"mean": metadata.mean, "std": metadata.std}})
