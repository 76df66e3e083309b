"""Tests of joint augmentation: image and mask stay aligned, and pixels outside of the image are unlabeled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zerokara.core.augment import affine_maps
from zerokara.core.data import UNLABELED
from zerokara.vision.segmentation.augment import JointAugment, warp_with_masks


def pair(batch: int = 4, size: tuple[int, int] = (12, 16)) -> tuple[Tensor, Tensor]:
    """Return images and masks: a pixel of class k has the value k / 10 in every channel."""
    mask = (torch.arange(size[0])[:, None] // 4 * 4 + torch.arange(size[1]) // 4)[None].expand(batch, -1, -1)
    mask = (mask % 10).to(torch.uint8).contiguous()
    return (mask / 10)[:, None].expand(-1, 3, -1, -1).contiguous(), mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def affine_map(scale: float = 1.0, right: float = 0.0, down: float = 0.0) -> Tensor:
    zero = torch.zeros(1)
    return affine_maps(zero, zero, torch.tensor([scale]), torch.tensor([right]), torch.tensor([down]))


def test_the_defaults_change_nothing() -> None:
    x, mask = pair()
    x_, mask_ = JointAugment()(x, mask, seeded())
    assert torch.equal(x, x_)
    assert torch.equal(mask.long(), mask_)


def test_shift_against_values_by_hand() -> None:
    """Shift by two pixels to the right and one down. New pixels are unlabeled and repeat the edge of the image."""
    x, mask = pair(1, (4, 6))
    mask = torch.arange(24, dtype=torch.uint8).view(1, 4, 6)
    x = (mask / 100)[:, None]
    x_, mask_ = warp_with_masks(x, mask, affine_map(right=2.0, down=1.0), (4, 6))
    expected = torch.full((1, 4, 6), UNLABELED, dtype=torch.uint8)
    expected[0, 1:, 2:] = mask[0, :3, :4]
    assert torch.equal(mask_, expected)
    assert torch.allclose(x_[0, 0, 1:, 2:], x[0, 0, :3, :4], atol=1e-5)
    assert torch.allclose(x_[0, 0, 1:, 0], x[0, 0, :3, 0], atol=1e-5)


def test_crop_of_a_scaled_image_against_values_by_hand() -> None:
    """Scale by 2 and crop the center: every pixel of the center appears four times."""
    mask = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    _, mask_ = warp_with_masks(mask[:, None].float(), mask, affine_map(scale=2.0), (4, 4))
    assert mask_[0].tolist() == [[5, 5, 6, 6], [5, 5, 6, 6], [9, 9, 10, 10], [9, 9, 10, 10]]


def test_unlabeled_pixels_stay_unlabeled() -> None:
    x, mask = pair()
    mask[:, :, 8:] = UNLABELED
    augment = JointAugment(scale=(0.5, 2.0), rotation_degrees=30, flip=True)
    _, mask_ = augment(x, mask, seeded())
    assert set(mask_.unique().tolist()) <= {*mask.unique().tolist()}
    mask[:] = UNLABELED
    assert (augment(x, mask, seeded())[1] == UNLABELED).all()


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.0), (1.0, 3.0)])
def test_image_and_mask_stay_aligned(scale: tuple[float, float]) -> None:
    """After all geometric transforms, most pixels still have the value of their class."""
    x, mask = pair(64)
    augment = JointAugment(scale=scale, crop_size=(8, 10), rotation_degrees=10, flip=True)
    x_, mask_ = augment(x, mask, seeded())
    assert x_.shape == (64, 3, 8, 10)
    assert mask_.dtype == torch.int64
    inside = mask_ != UNLABELED
    near = ((x_[:, 0] * 10 - mask_).abs() < 0.5) & inside
    assert near.sum() > 0.75 * inside.sum(), "image and mask are not aligned"
    assert inside.float().mean() > (0.2 if scale[0] < 1 else 0.8)


def test_half_of_the_images_are_flipped_and_the_generator_decides_which() -> None:
    x, mask = pair(200)
    x = x + torch.arange(16) / 1000  # left and right differ
    augment = JointAugment(flip=True)
    x_, mask_ = augment(x, mask, seeded(1))
    flipped = (x_ == x.flip(3)).flatten(1).all(1)
    assert 60 < int(flipped.sum()) < 140
    assert torch.equal(mask_[flipped], mask.flip(2)[flipped].long())
    assert torch.equal(mask_[~flipped], mask[~flipped].long())
    again = augment(x, mask, seeded(1))
    assert torch.equal(again[0], x_)
    assert not torch.equal(augment(x, mask, seeded(2))[0], x_)


def test_color_jitter_is_bounded_and_leaves_masks_unchanged() -> None:
    x, mask = pair(50)
    x = x * 0.5 + torch.tensor([0.3, 0.2, 0.1]).view(1, 3, 1, 1)
    x_, mask_ = JointAugment(color_jitter=0.2)(x, mask, seeded())
    assert torch.equal(mask_, mask.long())
    grayscale = x.mean(1, keepdim=True)
    upper_bound = (grayscale + (x - grayscale).abs() * 1.2) * 1.2
    assert (x_ <= upper_bound.clamp(max=1) + 1e-6).all()
    assert (x_.mean((1, 2, 3)) - x.mean((1, 2, 3))).abs().max() > 0.02
    assert not torch.equal(JointAugment(brightness=0.1, contrast=0.1)(x, mask, seeded())[0], x)
