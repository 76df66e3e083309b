"""Image and mask move together, and what comes from outside is unlabelled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zerokara.core.augment import affine_maps
from zerokara.core.data import UNLABELLED
from zerokara.vision.segmentation.augment import JointAugment, window


def pair(batch: int = 4, size: tuple[int, int] = (12, 16)) -> tuple[Tensor, Tensor]:
    """Images that show their mask: a pixel of class k is k / 10 in every channel."""
    mask = (torch.arange(size[0])[:, None] // 4 * 4 + torch.arange(size[1]) // 4)[None].expand(batch, -1, -1)
    mask = (mask % 10).to(torch.uint8).contiguous()
    return (mask / 10)[:, None].expand(-1, 3, -1, -1).contiguous(), mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def map_of(scale: float = 1.0, right: float = 0.0, down: float = 0.0) -> Tensor:
    zero = torch.zeros(1)
    return affine_maps(zero, zero, torch.tensor([scale]), torch.tensor([right]), torch.tensor([down]))


def test_nothing_is_nothing() -> None:
    x, mask = pair()
    x_, mask_ = JointAugment()(x, mask, seeded())
    assert torch.equal(x, x_)
    assert torch.equal(mask.long(), mask_)


def test_a_shift_by_hand() -> None:
    """Two to the right and one down: what comes in from outside is unlabelled, and the image's edge goes on."""
    x, mask = pair(1, (4, 6))
    mask = torch.arange(24, dtype=torch.uint8).view(1, 4, 6)
    x = (mask / 100)[:, None]
    x_, mask_ = window(x, mask, map_of(right=2.0, down=1.0), (4, 6))
    expected = torch.full((1, 4, 6), UNLABELLED, dtype=torch.uint8)
    expected[0, 1:, 2:] = mask[0, :3, :4]
    assert torch.equal(mask_, expected)
    assert torch.allclose(x_[0, 0, 1:, 2:], x[0, 0, :3, :4], atol=1e-5)
    assert torch.allclose(x_[0, 0, 1:, 0], x[0, 0, :3, 0], atol=1e-5)


def test_a_window_by_hand() -> None:
    """Twice as large, and the middle cut out: every pixel of the middle four times."""
    mask = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    _, mask_ = window(mask[:, None].float(), mask, map_of(scale=2.0), (4, 4))
    assert mask_[0].tolist() == [[5, 5, 6, 6], [5, 5, 6, 6], [9, 9, 10, 10], [9, 9, 10, 10]]


def test_unlabelled_stays_unlabelled() -> None:
    x, mask = pair()
    mask[:, :, 8:] = UNLABELLED
    augment = JointAugment(scale=(0.5, 2.0), rotation_degrees=30, flip=True)
    _, mask_ = augment(x, mask, seeded())
    assert set(mask_.unique().tolist()) <= {*mask.unique().tolist()}
    mask[:] = UNLABELLED
    assert (augment(x, mask, seeded())[1] == UNLABELLED).all()


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.0), (1.0, 3.0)])
def test_image_and_mask_go_together(scale: tuple[float, float]) -> None:
    """Whatever is done, pixels inside a patch still have the value of their class."""
    x, mask = pair(64)
    augment = JointAugment(scale=scale, crop_size=(8, 10), rotation_degrees=10, flip=True)
    x_, mask_ = augment(x, mask, seeded())
    assert x_.shape == (64, 3, 8, 10)
    assert mask_.dtype == torch.int64
    inside = mask_ != UNLABELLED
    near = ((x_[:, 0] * 10 - mask_).abs() < 0.5) & inside
    assert near.sum() > 0.75 * inside.sum(), "the mask is somewhere else than its image"
    assert inside.float().mean() > (0.2 if scale[0] < 1 else 0.8)


def test_half_are_mirrored_and_draws_are_the_generators() -> None:
    x, mask = pair(200)
    x = x + torch.arange(16) / 1000  # left and right differ
    augment = JointAugment(flip=True)
    x_, mask_ = augment(x, mask, seeded(1))
    turned = (x_ == x.flip(3)).flatten(1).all(1)
    assert 60 < int(turned.sum()) < 140
    assert torch.equal(mask_[turned], mask.flip(2)[turned].long())
    assert torch.equal(mask_[~turned], mask[~turned].long())
    again = augment(x, mask, seeded(1))
    assert torch.equal(again[0], x_)
    assert not torch.equal(augment(x, mask, seeded(2))[0], x_)


def test_colours_change_within_their_bounds_and_masks_do_not() -> None:
    x, mask = pair(50)
    x = x * 0.5 + torch.tensor([0.3, 0.2, 0.1]).view(1, 3, 1, 1)
    x_, mask_ = JointAugment(colour=0.2)(x, mask, seeded())
    assert torch.equal(mask_, mask.long())
    grayscale = x.mean(1, keepdim=True)
    most = (grayscale + (x - grayscale).abs() * 1.2) * 1.2
    assert (x_ <= most.clamp(max=1) + 1e-6).all()
    assert (x_.mean((1, 2, 3)) - x.mean((1, 2, 3))).abs().max() > 0.02
    assert not torch.equal(JointAugment(brightness=0.1, contrast=0.1)(x, mask, seeded())[0], x)
