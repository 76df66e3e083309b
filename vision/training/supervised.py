"""Supervised training step for image and pixel labels, shared by vision.classify and vision.segment.

Shapes: B images of a batch, b images of one gradient accumulation step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zerokara.core import schedules
from zerokara.core.compute import Compute
from zerokara.core.distributed import World
from zerokara.core.ema import Ema
from zerokara.core.optim import GroupSettings, make_optimizer
from zerokara.core.training_loop import NetworkT
from zerokara.vision.training.epochs import EpochTraining, HasTrainingSet

if TYPE_CHECKING:
    from zerokara.vision.classification.config import Config as ClassifyConfig
    from zerokara.vision.segmentation.config import Config as SegmentConfig


class SupervisedTraining(EpochTraining[NetworkT]):
    """Supervised training with a schedule, gradient accumulation, gradient clipping and averaged weights."""

    config: ClassifyConfig | SegmentConfig

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
