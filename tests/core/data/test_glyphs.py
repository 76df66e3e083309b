"""The drawn digits: the same for everyone, readable, and none of the test digits among those learnt."""

from __future__ import annotations

import torch

from zerokara.core.data import load
from zerokara.core.data.glyphs import draw


def test_the_set() -> None:
    train, test = load("glyphs", "train"), load("glyphs", "test")
    assert (train.shape, len(train), len(test), train.classes) == ((1, 28, 28), 12_000, 2_000, tuple("0123456789"))
    assert torch.bincount(train.labels).tolist() == [1200] * 10
    assert torch.bincount(test.labels).tolist() == [200] * 10
    assert train.labels[:100].unique().tolist() == list(range(10)), "they are mixed"
    learnt = {image.numpy().tobytes() for image in train.images}
    assert len(learnt) == 12_000
    assert not learnt & {image.numpy().tobytes() for image in test.images}


def test_every_digit_is_there_and_whole() -> None:
    images = load("glyphs", "test").images.squeeze(1)
    assert int(images.flatten(1).max(1).values.min()) > 100, "the strokes are bright"
    inked = (images > 32).float().mean((1, 2))
    assert float(inked.min()) > 0.02
    assert float(inked.max()) < 0.5
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert float((border > 64).any(1).float().mean()) < 0.01, "hardly any touches the edge"


def test_the_same_seed_draws_the_same() -> None:
    (first, labels), (again, labels_again), (other, _) = draw(50, 0), draw(50, 0), draw(50, 1)
    assert (first == again).all()
    assert (labels == labels_again).all()
    assert (first != other).any()


def test_nearest_neighbours_tell_them_apart_but_not_all() -> None:
    """A set that a first try can learn, and that leaves something to learn: 1-NN on raw pixels errs, but seldom."""
    train, test = load("glyphs", "train"), load("glyphs", "test").take(slice(0, 500))
    distance = torch.cdist(test.images.flatten(1).float(), train.images.flatten(1).float())
    wrong = float((train.labels[distance.argmin(1)] != test.labels).float().mean())
    assert 0.005 < wrong < 0.2
