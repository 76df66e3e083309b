"""Tests of the order of the training images."""

from __future__ import annotations

import torch

from zerokara.core.distributed import World
from zerokara.core.epoch_order import EpochOrder


def test_batches_are_those_of_the_orders_of_seed_epoch_and_rollbacks() -> None:
    order = EpochOrder(14, 4, seed=3)
    for rollbacks in (0, 2):  # the same epoch again, in another order
        for update in range(7):
            epoch, index = divmod(update, 3)
            random = torch.Generator().manual_seed(3 * 7_919 + rollbacks * 104_729 + epoch)
            expected = torch.randperm(14, generator=random)[index * 4 : index * 4 + 4]
            assert torch.equal(order.batch(update, rollbacks), expected)


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    order = EpochOrder(3, 4, seed=0)
    assert order.updates_per_epoch == 1
    assert sorted(order.batch(5).tolist()) == [0, 1, 2]


def test_processes_divide_a_batch() -> None:
    index_B = EpochOrder(14, 5, seed=0).batch(1)
    shards = [index_B[World(rank=rank, size=2).batch_shard].tolist() for rank in range(2)]
    assert [len(shard) for shard in shards] == [3, 2]
    assert sorted(shards[0] + shards[1]) == sorted(index_B.tolist())
    assert torch.equal(index_B[World().batch_shard], index_B)
