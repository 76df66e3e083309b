"""Tests of the differentiable augmentation against the published formulas, at every position, and of version 0.1."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from zerokara.generative.gan.diffaugment import augment

IMAGES = 4_000  # so many that every position occurs
SIDES = [
    (28, 28),
    (29, 30),
    (31, 36),
    (32, 44),
    (33, 48),
    (64, 28),
]  # even and odd holes, and halves of pixels


def draw(size: tuple[int, int], kind: str, **version: str) -> Tensor:
    """Augment images of ones; return where they are still one, (N, H, W) bool."""
    x = torch.ones(IMAGES, 1, *size)
    return augment(x, [kind], torch.Generator().manual_seed(3), **version)[:, 0] > 0  # type: ignore[arg-type]


def published_cutout(size: Sequence[int]) -> Tensor:
    """Zhao et al. 2020, rand_cutout: side int(n / 2 + 1/2), centers 0 to n - (side is odd), clamped indices."""
    generator, expected = torch.Generator().manual_seed(3), torch.ones(IMAGES, *size, dtype=torch.bool)
    cut = []
    for length in size:
        side = int(length * 0.5 + 0.5)
        center_N1 = torch.randint(0, length + (1 - side % 2), (IMAGES, 1), generator=generator)
        assert len(center_N1.unique()) == length + (1 - side % 2), "not every position occurs"
        cut.append((torch.arange(side) + center_N1 - side // 2).clamp(0, length - 1))
    expected[torch.arange(IMAGES)[:, None, None], cut[0][:, :, None], cut[1][:, None, :]] = False
    return expected


@pytest.mark.parametrize("size", SIDES, ids=str)
def test_cutout_equals_the_published_one_at_every_position(size: tuple[int, int]) -> None:
    assert torch.equal(draw(size, "cutout"), published_cutout(size))


@pytest.mark.parametrize("size", SIDES, ids=str)
def test_cutout_is_symmetric(size: tuple[int, int]) -> None:
    """The rows and the columns that are cut out, as a set, are those of mirrored images."""
    hole = ~draw(size, "cutout")
    for lines in (hole.any(2), hole.any(1)):
        found = {tuple(row) for row in lines.unique(dim=0).tolist()}
        assert found == {row[::-1] for row in found}


@pytest.mark.parametrize("size", SIDES, ids=str)
def test_translation_moves_by_every_number_of_pixels_up_to_an_eighth(size: tuple[int, int]) -> None:
    """Zhao et al. 2020, rand_translation: up to int(n / 8 + 1/2) pixels in each direction."""
    there = draw(size, "translation")
    for length, lines in zip(size, (there.any(2), there.any(1)), strict=True):
        most = int(length * 0.125 + 0.5)
        first, last = lines.int().argmax(1), length - 1 - lines.flip(1).int().argmax(1)
        shifts = {(int(a), int(b)) for a, b in zip(first, last, strict=True)}
        expected = {(max(0, shift), length - 1 + min(0, shift)) for shift in range(-most, most + 1)}
        assert shifts == expected


def test_version_01_is_that_of_old_runs() -> None:
    """One position too few if the hole's side is even; halves are rounded to even numbers."""
    for size, side in (((28, 28), 14), ((29, 29), 14), ((31, 31), 16)):
        rows = (~draw(size, "cutout", version="0.1")).any(2)
        first, number = rows.int().argmax(1), rows.sum(1)
        assert int(number.max()) == side
        at_the_end = first + number == size[0]
        assert int(number[at_the_end].min()) == side - side // 2 + 1, "the last position is missing"
        assert int(number[first == 0].min()) == side - side // 2
    moved = draw((36, 36), "translation", version="0.1").any(2)
    assert int((~moved).sum(1).max()) == 4
    assert int((~draw((36, 36), "translation").any(2)).sum(1).max()) == 5
