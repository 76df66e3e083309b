"""Tests of image sets and of holding out images."""

from __future__ import annotations

import pytest
import torch

from zerokara.core.config import UserError
from zerokara.core.data import ImageSet, hold_out


def numbered(counts: list[int], order_seed: int = 0) -> ImageSet:
    """Create 1x1 images whose pixel is their index, `counts[k]` of class k, in random order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(order_seed))]
    images = torch.arange(len(labels)).to(torch.uint8).reshape(-1, 1, 1, 1)
    return ImageSet(images, labels, tuple(map(str, range(len(counts)))), "numbers")


def test_take_keeps_images_and_labels_together() -> None:
    images = numbered([3, 3])
    for index in (torch.tensor([4, 0]), [4, 0]):
        selected = images.take(index)
        assert selected.images.flatten().tolist() == [4, 0]
        assert selected.labels.tolist() == [int(images.labels[4]), int(images.labels[0])]
    assert images.take(images.labels == 1).labels.tolist() == [1, 1, 1]
    assert (len(images.take(slice(1, 4))), images.take(slice(1, 4)).shape) == (3, (1, 1, 1))
    assert len(images.take([])) == 0


def test_inconsistent_tensors_are_rejected() -> None:
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"\(N, C, H, W\) uint8"):
        ImageSet(images.float(), labels, ("a", "b"), "")
    with pytest.raises(ValueError, match=r"labels must be \(2,\)"):
        ImageSet(images, labels[:1], ("a", "b"), "")
    with pytest.raises(ValueError, match="indices of 1 classes"):
        ImageSet(images, labels, ("a",), "")
    with pytest.raises(ValueError, match="indices of 2 classes"):
        ImageSet(images, labels - 1, ("a", "b"), "")


def test_hold_out_is_stratified() -> None:
    """A fifth of 24, 27, 24, 25, ... is 4.8, 5.4, 4.8, 5, 4.6, 4.4, 4.8, 5, 0.2, 0: the largest four are rounded up."""
    images = numbered([24, 27, 24, 25, 23, 22, 24, 25, 1, 0])
    rest, held_out = hold_out(images, 39, seed=3)
    assert torch.bincount(held_out.labels, minlength=10).tolist() == [5, 5, 5, 5, 5, 4, 5, 5, 0, 0]
    assert sorted(rest.images.flatten().tolist() + held_out.images.flatten().tolist()) == list(range(195))
    for part in (rest, held_out):
        assert part.labels.tolist() == images.labels[part.images.flatten().long()].tolist()


def test_hold_out_depends_only_on_the_seed() -> None:
    images = numbered([50, 50])
    first, same, other = (hold_out(images, 20, seed)[1].images.flatten().tolist() for seed in (0, 0, 1))
    assert first == same != other
    assert first == sorted(first), "the order of the set is preserved"


@pytest.mark.parametrize("number", [0, 100, 101, -1])
def test_both_parts_must_have_images(number: int) -> None:
    with pytest.raises(UserError, match="at least 1 and at most 99"):
        hold_out(numbered([50, 50]), number, 0)
