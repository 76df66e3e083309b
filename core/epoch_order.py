"""Random order of the training images in each epoch, which is divided into the batches of the updates.

    order = EpochOrder(len(images), batch_size, seed)
    index_B = order.batch(update)[world.batch_shard]  # the images of this process

The order is a function of the seed and the epoch, so that a checkpoint does not hold it.

Shapes: N training images, B images of an update.
"""

from __future__ import annotations

import torch
from torch import Tensor


def epoch_generator(seed: int, epoch: int, rollbacks: int = 0) -> torch.Generator:
    """Return the random generator of an epoch; the order of the images is the first thing drawn from it.

    Args:
        seed: seed of the run.
        epoch: number of epochs before.
        rollbacks: number of times that the run went back to an earlier checkpoint: it then has other orders.
    """
    return torch.Generator().manual_seed(seed * 7_919 + rollbacks * 104_729 + epoch)


class EpochOrder:
    """Order of the training images in every epoch.

    Args:
        images: N, the number of training images.
        batch_size: B. The images of an incomplete last batch are left out of that epoch. A set that is smaller than a
            batch is one batch.
        seed: seed of the run.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._last: tuple[tuple[int, int], Tensor] | None = None  # epoch and rollbacks, and their order

    @property
    def updates_per_epoch(self) -> int:
        """Number of whole batches in an epoch."""
        return max(1, self.images // self.batch_size)

    def of_epoch(self, epoch: int, rollbacks: int = 0) -> Tensor:
        """Return the order (N,) of the images in an epoch."""
        if self._last is None or self._last[0] != (epoch, rollbacks):
            generator = epoch_generator(self.seed, epoch, rollbacks)
            self._last = (epoch, rollbacks), torch.randperm(self.images, generator=generator)
        return self._last[1]

    def batch(self, update: int, rollbacks: int = 0) -> Tensor:
        """Return the indices (B,) of the images of an update, that of all processes together.

        Args:
            update: number of updates before.
            rollbacks: as for `epoch_generator`.
        """
        epoch, index = divmod(update, self.updates_per_epoch)
        return self.of_epoch(epoch, rollbacks)[index * self.batch_size : (index + 1) * self.batch_size]
