"""What every reader gives: an image set, and the way to hold some of it out.

Shapes: N images, C colours (1 grey, 3 RGB), H, W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zerokara.core.config import UserError

Split = Literal["train", "test"]
Progress = Callable[[str, int, int], None]
"""What is done, how much of it, and of how much in all (0: unknown): bytes when downloading, else images."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size, on the CPU: what is small goes to the device once, as it is."""

    images: Tensor
    """(N, C, H, W) uint8."""
    labels: Tensor
    """(N,) int64, indices into `classes`."""
    classes: tuple[str, ...]
    """Names of the classes."""
    source: str
    """Where the images came from, in words, for logs."""

    def __post_init__(self) -> None:
        """Check that images, labels and classes belong together.

        Raises:
            ValueError: other shapes or types, or a label without a class.
        """
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, got {tuple(self.images.shape)} {self.images.dtype}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({len(self.images)},) int64, got {tuple(self.labels.shape)}")
        if len(self) and (int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes)):
            raise ValueError(f"labels must be indices of {len(self.classes)} classes")

    def __len__(self) -> int:
        """How many images."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor | slice | Sequence[int]) -> ImageSet:
        """The images of a slice, of indices (n,), or of a mask (N,) of bools, in that order."""
        chosen = index if isinstance(index, slice | Tensor) else torch.tensor(list(index), dtype=torch.int64)
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen])


def hold_out(images: ImageSet, number: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split into the rest and `number` held-out images, both in the order of the set.

    Every class gives its share, to within one image; which ones depends on the seed alone.

    Raises:
        UserError: there are not more than `number` images, or `number` is not at least 1.
    """
    if not 0 < number < len(images):
        raise UserError(
            f"{number:,} images cannot be held out of the {len(images):,} of {images.source}: "
            f"hold out at least 1 and at most {max(len(images) - 1, 0):,}."
        )
    labels_N = images.labels.numpy()
    counts_K = np.bincount(labels_N, minlength=len(images.classes))
    # Whole shares first, then one more for those that lost most by rounding down: the method of largest remainders.
    quota_K, lost_K = np.divmod(counts_K * number, len(images))
    quota_K[np.argsort(-lost_K, kind="stable")[: number - quota_K.sum()]] += 1
    rng = np.random.default_rng(seed)
    held_N = np.zeros(len(images), bool)
    for label, quota in enumerate(quota_K):
        held_N[rng.permutation(np.flatnonzero(labels_N == label))[:quota]] = True
    held = torch.from_numpy(held_N)
    return images.take(~held), images.take(held)


def check_enough(asked: int, there: int) -> None:
    """Refuse --train-images that are more than there are.

    Raises:
        UserError: as said.
    """
    if asked > there:
        raise UserError(f"--train-images {asked} is more than the {there:,} that there are: give fewer.")


def image_set(images_NCHW: np.ndarray, labels_N: np.ndarray, classes: tuple[str, ...], source: str) -> ImageSet:
    """An image set of arrays; images (N, C, H, W) uint8 are copied only where they must be."""
    return ImageSet(
        torch.from_numpy(np.require(images_NCHW, requirements=("C", "W"))),
        torch.from_numpy(labels_N.astype(np.int64)),
        classes,
        source,
    )
