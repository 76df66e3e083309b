"""Tests of a run's batches: each image once per epoch with its label, in an order that seed and epoch decide."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.generative.dcgan import make_learner
from zerokara.generative.gan.config import KIND, PRESETS, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.session import Session

SMALL = ("--generator-width", "0.05", "--discriminator-width", "0.05", "--latent-dim", "4", "--batch-size", "4")
IMAGES = 14  # three batches of 4, and 2 images that an epoch leaves out


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Session whose images have the value of their index in every pixel, and labels that follow from it."""
    monkeypatch.chdir(tmp_path)
    index_N = torch.arange(IMAGES)
    pixels = index_N.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    images = ImageSet(pixels, index_N % 3, ("a", "b", "c"), "encoded images")
    config = parse(Config, PRESETS, [*SMALL, "--name", "run"], "")
    learner = make_learner(config, images.shape, 3, Compute(device="cpu", threads=1), World())
    with Run(config, kind=KIND, name="run", resume=False, quiet=True, world=World()) as run:
        return Session(run, Data(images, images, ()), learner)


def epoch(session: Session, number: int) -> list[int]:
    """Return the indices of an epoch's images, after a check of their labels."""
    indices = []
    for batch in range(3):
        session.learner.updates = 3 * number + batch
        pixels_BCHW, label_B = session.next_batch()
        index_B = pixels_BCHW[:, 0, 0, 0].long()
        assert torch.equal(label_B, index_B % 3)
        indices += index_B.tolist()
    return indices


def test_an_epoch_has_each_image_once_in_another_order_than_the_last(session: Session) -> None:
    first, second = epoch(session, 0), epoch(session, 1)
    assert len(set(first)) == len(set(second)) == 12
    assert first != second
    assert first != sorted(first)
    assert epoch(session, 0) == first, "the order is a function of seed and epoch, so that a resumed run repeats it"
    session.rollbacks = 1
    session._order = (-1, torch.empty(0))
    assert epoch(session, 0) != first


def test_processes_share_a_batch_without_overlap(session: Session) -> None:
    whole = epoch(session, 0)
    shards = []
    for rank in range(2):
        session.world = World(rank=rank, size=2)
        shards.append(epoch(session, 0))
    assert [len(shard) for shard in shards] == [6, 6]
    assert sorted(shards[0] + shards[1]) == sorted(whole)


def test_is_due_at_multiples(session: Session) -> None:
    session.learner.updates = 30
    assert [session.is_due(every) for every in (1, 15, 30, 20, 60, 0)] == [True, True, True, False, False, False]
