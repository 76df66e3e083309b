"""Supervised training step for image and pixel labels, and results of a run, of vision.classify and vision.segment.

Shapes: B images of a batch, b images of one gradient accumulation step.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from zerokara.core import schedules
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.ema import Ema
from zerokara.core.models.model_file import MODEL_FILE, Metadata
from zerokara.core.optim import GroupSettings, make_optimizer
from zerokara.core.report import write_json
from zerokara.core.run import Run
from zerokara.core.training_loop import NetworkT
from zerokara.vision.training.epochs import EpochTraining, HasTrainingSet

if TYPE_CHECKING:
    from zerokara.vision.classification.config import Config as ClassifyConfig
    from zerokara.vision.segmentation.config import Config as SegmentConfig


class HasValidationSet(HasTrainingSet, Protocol):
    """Data with a training set and a validation set."""

    @property
    def validation(self) -> Sized:
        """Validation images."""


class SupervisedTraining(EpochTraining[NetworkT]):
    """Supervised training with a schedule, gradient accumulation, gradient clipping and averaged weights."""

    config: ClassifyConfig | SegmentConfig
    data: HasValidationSet
    metadata: Metadata[Any]

    def __init__(
        self,
        config: ClassifyConfig | SegmentConfig,
        data: HasTrainingSet,
        compute: Compute,
        world: World,
        build: Callable[[], NetworkT],
    ) -> None:
        super().__init__(config, data, compute, world, build, ("train/loss", "train/accuracy", "train/grad_norm"))
        self.optimizer = make_optimizer(
            config.optimizer,
            self.network,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            outputs=self.output_weights(),
            **self.group_settings(),
        )
        half_life = config.ema_half_life_updates
        self.ema = Ema(self.network, half_life_steps=half_life) if half_life else None

    def output_weights(self) -> Sequence[Tensor]:
        """Return the weights of the output layers, which Muon leaves to AdamW. Empty: the last matrix."""
        return ()

    def group_settings(self) -> GroupSettings:
        """Return the settings of `make_optimizer` for biases and output layers. Empty: their defaults."""
        return {}

    def frozen_parameters(self) -> Sequence[Tensor]:
        """Return the parameters that require gradients and that the current update does not change."""
        return ()

    @abstractmethod
    def losses(self, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy (scalars) of training images, by `parallel.forward`."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        config = self.config
        warmup = round(config.warmup_epochs * self.updates_per_epoch)
        if config.schedule == "constant":
            return config.learning_rate * schedules.linear(self.updates + 1, 0, 1, 0, warmup)
        decay = schedules.warmup_linear if config.schedule == "linear" else schedules.warmup_cosine
        return config.learning_rate * decay(self.updates + 1, warmup, self.total_updates)

    def update(self, index_B: Tensor) -> None:
        """Do one gradient step on the images `index_B`. Each process computes the gradient of its shard."""
        chunks = self.shard(index_B).chunk(self.config.accumulation_steps)
        self.set_learning_rates()
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.compute.torch_device)
        for number, index_b in enumerate(chunks, 1):
            # The last chunk may be smaller, and so may the shard of a process.
            fraction = len(index_b) * self.world.size / len(index_B)
            with self.parallel.no_sync(on=number < len(chunks)):
                loss, accuracy = self.losses(index_b)
                self.parallel.backward(loss * fraction)
            sums += torch.stack([loss.detach(), accuracy]) * fraction
        # Of a compiled loss in several processes they have gradients of 0, and momentum and weight decay would go on.
        for parameter in self.frozen_parameters():
            parameter.grad = None
        norm = nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.config.max_grad_norm, norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network)
        self.end_update(*sums, norm)


def save_result(
    training: SupervisedTraining[Any],
    run: Run,
    metrics: Mapping[str, float],
    protocol: Mapping[str, Any],
    **tables: Any,
) -> None:
    """Log the metrics of a finished run, and write them to model.safetensors and result.json.

    Args:
        training: final state, with the selected weights.
        run: run folder.
        metrics: results on validation and test images.
        protocol: conditions of the metrics besides those that every run has.
        tables: further contents of result.json.
    """
    config = training.config
    run.log_results(training.updates, config, metrics)
    metadata = dataclasses.replace(training.metadata, figures=metrics)
    metadata.save(run.path(MODEL_FILE), training.evaluation_network.state_dict())
    conditions = {
        "train_images": len(training.data.train),
        "validation_images": len(training.data.validation),
        "seed": config.seed,
        "epochs": training.epoch,
        "weights": "averaged" if training.ema is not None else config.select,
        "views": config.tta_views,
        "hours": training.trained_hours,
        **protocol,
    }
    write_json(run.path("result.json"), {"figures": metrics, **tables, "protocol": conditions})
