"""Tests of the generated digits: deterministic, legible, and disjoint training and test images."""

from __future__ import annotations

import torch

from zerokara.core.data import load
from zerokara.core.data.glyphs import draw


def test_sizes_and_classes() -> None:
    train, test = load("glyphs", "train"), load("glyphs", "test")
    assert (train.shape, len(train), len(test), train.classes) == ((1, 28, 28), 12_000, 2_000, tuple("0123456789"))
    assert torch.bincount(train.labels).tolist() == [1200] * 10
    assert torch.bincount(test.labels).tolist() == [200] * 10
    assert train.labels[:100].unique().tolist() == list(range(10)), "the classes are shuffled"
    train_images = {image.numpy().tobytes() for image in train.images}
    assert len(train_images) == 12_000
    assert not train_images & {image.numpy().tobytes() for image in test.images}


def test_digits_are_visible_and_complete() -> None:
    images = load("glyphs", "test").images.squeeze(1)
    assert int(images.flatten(1).max(1).values.min()) > 100, "the strokes are bright"
    foreground = (images > 32).float().mean((1, 2))
    assert float(foreground.min()) > 0.02
    assert float(foreground.max()) < 0.5
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert float((border > 64).any(1).float().mean()) < 0.01, "less than 1 % touch the edge"


def test_drawing_depends_on_the_seed() -> None:
    (first, labels), (same, labels_same), (other, _) = draw(50, 0), draw(50, 0), draw(50, 1)
    assert (first == same).all()
    assert (labels == labels_same).all()
    assert (first != other).any()


def test_nearest_neighbor_error_is_small_but_not_zero() -> None:
    """1-NN on raw pixels has an error of 0.5 to 20 %: the set is learnable but not trivial."""
    train, test = load("glyphs", "train"), load("glyphs", "test").take(slice(0, 500))
    distance = torch.cdist(test.images.flatten(1).float(), train.images.flatten(1).float())
    error = float((train.labels[distance.argmin(1)] != test.labels).float().mean())
    assert 0.005 < error < 0.2
