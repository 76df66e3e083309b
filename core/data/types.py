"""Image set, the return type of all readers, and its split into training and held-out images.

Shapes: N images, C channels (1 grayscale, 3 RGB), H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zerokara.core.config import UserError, format_count

Split = Literal["train", "test"]
Progress = Callable[[str, int, int], None]
"""Callback (what, done, total), such as ("images read from digits.zip", 512, 1000); total 0 is unknown."""


class Images:
    """Base class of sets of images of one size."""

    images: Tensor
    """(N, C, H, W) uint8."""

    def __post_init__(self) -> None:
        """Check shape and type of the images.

        Raises:
            ValueError: one of them is wrong.
        """
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(f"images must be (N, C, H, W) uint8, got {tuple(self.images.shape)} {self.images.dtype}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class ImageSet(Images):
    """Labeled images of one size, on the CPU as uint8. Small sets are copied to the device once, as a whole."""

    images: Tensor
    """(N, C, H, W) uint8."""
    labels: Tensor
    """(N,) int64, indices into `classes`."""
    classes: tuple[str, ...]
    """Names of the classes."""
    source: str
    """Description of the images' origin, for logs."""
    messages: tuple[str, ...] = ()
    """Lines for the user: what was converted, left out and ignored while reading."""

    def __post_init__(self) -> None:
        """Check shapes, types and labels.

        Raises:
            ValueError: a shape or dtype is wrong, or a label has no class.
        """
        super().__post_init__()
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(f"labels must be ({len(self.images)},) int64, got {tuple(self.labels.shape)}")
        if len(self) and (int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.classes)):
            raise ValueError(f"labels must be indices of {len(self.classes)} classes")

    def take(self, index: Tensor | slice | Sequence[int]) -> ImageSet:
        """Select images by a slice, indices (n,), or a boolean mask (N,). The order of the indices is kept."""
        chosen = index if isinstance(index, slice | Tensor) else torch.tensor(list(index), dtype=torch.int64)
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen])


def hold_out(images: ImageSet, number: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split a set into the rest and `number` held-out images, both in the original order.

    The split is stratified: each class contributes in proportion to its size, to within one image. The choice depends
    only on the seed.

    Raises:
        UserError: `number` is below 1, or not below the number of images.
    """
    if not 0 < number < len(images):
        raise UserError(
            f"{format_count(number, 'image')} cannot be held out of {format_count(len(images), 'image')} of "
            f"{images.source}: "
            f"hold out at least 1 and at most {max(len(images) - 1, 0):,}."
        )
    labels_N = images.labels.numpy()
    counts_K = np.bincount(labels_N, minlength=len(images.classes))
    # Largest remainder method: round down, then add one image to the classes with the largest remainders.
    quota_K, remainder_K = np.divmod(counts_K * number, len(images))
    quota_K[np.argsort(-remainder_K, kind="stable")[: number - quota_K.sum()]] += 1
    rng = np.random.default_rng(seed)
    held_out_N = np.zeros(len(images), bool)
    for label, quota in enumerate(quota_K):
        held_out_N[rng.permutation(np.flatnonzero(labels_N == label))[:quota]] = True
    held_out = torch.from_numpy(held_out_N)
    return images.take(~held_out), images.take(held_out)


def check_enough(requested: int, available: int) -> None:
    """Check that --train-images does not exceed the number of available images.

    Raises:
        UserError: it exceeds the number.
    """
    if requested > available:
        raise UserError(
            f"--train-images {requested} is more than the {available:,} available images: give a smaller number."
        )


def image_set(
    images_NCHW: np.ndarray,
    labels_N: np.ndarray,
    classes: tuple[str, ...],
    source: str,
    messages: tuple[str, ...] = (),
) -> ImageSet:
    """Create an image set from NumPy arrays. Images (N, C, H, W) uint8 are copied only if necessary."""
    return ImageSet(
        torch.from_numpy(np.require(images_NCHW, requirements=("C", "W"))),
        torch.from_numpy(labels_N.astype(np.int64)),
        classes,
        source,
        messages,
    )
