"""Tests of data augmentation: transforms of known pixels, reproducibility, and labels of mixed images."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zerokara.core.augment import Augment, affine_maps, boxes, crop, warp

KINDS: dict[str, float | int | bool] = {
    "rotation_degrees": 30.0,
    "shift": 0.2,
    "scale": 0.3,
    "shear_degrees": 20.0,
    "elastic_pixels": 1.5,
    "crop_pixels": 3,
    "flip": True,
    "brightness": 0.4,
    "contrast": 0.5,
    "cutout": 0.4,
}
MIXES = {"mixup": 0.4, "cutmix": 1.0}
ALL_TRANSFORMS = Augment(**KINDS, **MIXES)  # type: ignore[arg-type]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(number: int = 4, channels: int = 1, height: int = 12, width: int = 12) -> Tensor:
    return torch.rand(number, channels, height, width, generator=seeded(99))


def single_map(angle: float = 0, shear: float = 0, scale: float = 1, right: float = 0, down: float = 0) -> Tensor:
    return affine_maps(*(torch.tensor([float(value)]) for value in (angle, shear, scale, right, down)))


def test_default_does_not_change_images() -> None:
    x, target = random_images(), torch.eye(4)
    assert Augment()(x, seeded()) is x
    assert Augment().mix(x, target, seeded()) == (x, target)


@pytest.mark.parametrize("kind", KINDS)
def test_every_transform_changes_images_and_keeps_the_range(kind: str) -> None:
    x = random_images(8, 3, 10, 14)
    original = x.clone()
    changed = Augment(**{kind: KINDS[kind]})(x, seeded())  # type: ignore[arg-type]
    assert changed.shape == x.shape
    assert not torch.equal(changed, x)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(x, original), "the input is not modified"


def test_result_depends_only_on_the_generator() -> None:
    x, target = random_images(16, 3), torch.eye(16)
    torch.manual_seed(1)
    first = ALL_TRANSFORMS.mix(ALL_TRANSFORMS(x, seeded(7)), target, seeded(8))
    torch.manual_seed(2)
    same = ALL_TRANSFORMS.mix(ALL_TRANSFORMS(x, seeded(7)), target, seeded(8))
    other = ALL_TRANSFORMS.mix(ALL_TRANSFORMS(x, seeded(9)), target, seeded(8))
    assert torch.equal(first[0], same[0])
    assert torch.equal(first[1], same[1])
    assert not torch.equal(first[0], other[0])


def test_each_image_has_its_own_random_numbers() -> None:
    x = random_images(1).expand(8, -1, -1, -1)
    changed = dataclasses.replace(ALL_TRANSFORMS, flip=False)(x, seeded())
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 8


def test_rotation_is_clockwise() -> None:
    x = random_images(1, 2)
    rotated = warp(x, single_map(angle=math.pi / 2))
    torch.testing.assert_close(rotated, torch.rot90(x, -1, (2, 3)))


def test_rotation_of_a_non_square_image_keeps_distances_in_pixels() -> None:
    x = torch.zeros(1, 1, 5, 9)
    x[0, 0, 2, 3:6] = 1  # three pixels in a row around the center
    rotated = warp(x, single_map(angle=math.pi / 2))
    expected = torch.zeros(1, 1, 5, 9)
    expected[0, 0, 1:4, 4] = 1
    torch.testing.assert_close(rotated, expected, atol=1e-5, rtol=0)


def test_shift_is_right_and_down_in_pixels() -> None:
    x = random_images(1)
    moved = warp(x, single_map(right=2, down=3))
    torch.testing.assert_close(moved[:, :, 3:, 2:], x[:, :, :-3, :-2])
    torch.testing.assert_close(moved[:, :, 3:, 0], x[:, :, :-3, 0])  # the edge is repeated


def test_scale_and_shear_by_hand() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 1:4] = torch.tensor([0.2, 1.0, 0.6])
    # Twice as large: new columns 0 to 4 come from positions 1, 1.5, 2, 2.5, 3.
    torch.testing.assert_close(
        warp(x, single_map(scale=2))[0, 0, 2], torch.tensor([0.2, 0.6, 1.0, 0.8, 0.6]), atol=1e-5, rtol=0
    )
    upright = torch.zeros(1, 1, 5, 5)
    upright[0, 0, :, 2] = 1
    # 45 degrees: the row above the middle goes one pixel to the left, the row below one to the right.
    torch.testing.assert_close(warp(upright, single_map(shear=math.pi / 4))[0, 0], torch.eye(5), atol=1e-5, rtol=0)


def test_rotation_is_applied_before_shift() -> None:
    """The image is rotated about its center, then shifted."""
    x = random_images(1)
    combined = warp(x, single_map(angle=math.pi / 2, right=3, down=1))
    sequential = warp(warp(x, single_map(angle=math.pi / 2)), single_map(right=3, down=1))
    torch.testing.assert_close(combined, sequential, atol=1e-5, rtol=1e-5)


def test_background_of_a_digit_stays_black() -> None:
    x = torch.zeros(1, 1, 12, 12)
    x[:, :, 4:8, 4:8] = 1
    moved = warp(x, single_map(right=-6))
    assert torch.equal(moved[0, 0, :, 2:], torch.zeros(12, 10))
    assert moved[0, 0, 4:8, :2].min() > 0.99


def test_random_maps_stay_within_their_limits() -> None:
    x = torch.zeros(4000, 1, 20, 10)
    maps = Augment(rotation_degrees=15, shift=0.1)._sample_maps(x, seeded())
    angle = torch.rad2deg(torch.atan2(maps[:, 0, 1], maps[:, 0, 0]))
    assert 14.5 < angle.max() <= 15.001
    assert -15.001 <= angle.min() < -14.5
    shift = -(maps[:, :, :2].mT @ maps[:, :, 2:])[:, :, 0]  # invert the rotation
    assert shift[:, 0].abs().max() <= 1.001
    assert 1.95 < shift[:, 1].abs().max() <= 2.001
    shear = Augment(shear_degrees=20)._sample_maps(x, seeded())[:, 0, 1].neg().atan()
    assert torch.rad2deg(shear).min() < -19.5
    assert 19.5 < torch.rad2deg(shear).max() <= 20.001
    scale = Augment(scale=0.3)._sample_maps(x, seeded())[:, 0, 0].reciprocal()
    assert 0.7 <= scale.min() < 0.71
    assert 1.29 < scale.max() <= 1.3001


def test_elastic_fields_have_the_configured_deviation_and_correlation() -> None:
    field = Augment(elastic_pixels=1.5)._sample_field(torch.zeros(2000, 1, 28, 28), seeded())
    assert field is not None
    assert field.shape == (2000, 2, 28, 28)
    torch.testing.assert_close(field.std(0), torch.full((2, 28, 28), 1.5), atol=0.12, rtol=0)
    assert field.mean(0).abs().max() < 0.15
    # White noise under a Gaussian of deviation s is correlated by exp(-d^2 / 4 s^2) at distance d; s is 4 pixels here.
    for distance in (1, 4, 8):
        correlation = (field[..., distance:] * field[..., :-distance]).mean() / 1.5**2
        assert correlation.item() == pytest.approx(math.exp(-(distance**2) / 64), abs=0.03)
    cross_correlation = (field[:, 0] * field[:, 1]).mean() / 1.5**2
    assert abs(cross_correlation) < 0.03


def test_displacement_field_moves_pixels() -> None:
    x = random_images(1)
    field = torch.zeros(1, 2, 12, 12)
    field[:, 0] = 2  # each pixel is read two pixels further right
    torch.testing.assert_close(warp(x, single_map(), field)[..., :-2], x[..., 2:])


def test_crop_pads_by_repeating_the_edge() -> None:
    x = random_images(2, 3, 6, 8)
    cut = crop(x, 2, torch.tensor([[2, 2], [0, 4]]))
    assert torch.equal(cut[0], x[0])
    assert torch.equal(cut[1, :, 2:, :-2], x[1, :, :-2, 2:])
    assert torch.equal(cut[1, :, 0], torch.cat([x[1, :, 0, 2:], x[1, :, 0, -1:].expand(3, 2)], 1))


def test_crop_of_integers_is_that_of_floats() -> None:
    x = (random_images(5, 3, 6, 8) * 255).to(torch.uint8)
    corner_B2 = torch.tensor([[0, 0], [4, 1], [2, 2], [3, 4], [1, 3]])
    cut = crop(x, 2, corner_B2)
    assert cut.dtype is torch.uint8
    assert torch.equal(cut.float(), crop(x.float(), 2, corner_B2))


def test_crop_samples_all_offsets() -> None:
    x = torch.arange(49.0).view(1, 1, 7, 7).expand(2000, -1, -1, -1) / 49
    center_B = Augment(crop_pixels=2)(x, seeded())[:, 0, 3, 3]
    assert len(center_B.unique()) == 25


def test_half_of_the_images_are_flipped() -> None:
    x = random_images(2000, 1, 2, 2)
    flipped = Augment(flip=True)(x, seeded())
    flipped_mask = (flipped == x.flip(3)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) ^ flipped_mask).all()
    assert 900 < flipped_mask.sum() < 1100


def test_alternating_flips_differ_between_successive_epochs() -> None:
    x, index = random_images(2000, 1, 2, 2), torch.arange(2000)
    epochs = [Augment(flip=True)(x, seeded(e), index_B=index, epoch=e) for e in range(3)]
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])
    flipped_mask = (epochs[0] == x.flip(3)).flatten(1).all(1)
    assert 900 < flipped_mask.sum() < 1100
    for every in (2, 10):  # independent of the order of the data set, for example of alternating classes
        assert abs(flipped_mask[::every].float().mean() - 0.5) < 0.1
    shuffle = torch.randperm(2000, generator=seeded())
    assert torch.equal(Augment(flip=True)(x[shuffle], seeded(5), index_B=shuffle), epochs[0][shuffle])


def test_brightness_shifts_all_pixels_and_contrast_scales_around_the_mean() -> None:
    x = 0.4 + 0.2 * random_images(500)
    shifted = Augment(brightness=0.3)(x, seeded())
    added = (shifted - x).flatten(1)
    assert added.std(1).max() < 1e-5
    assert 0.28 < added.max() <= 0.3001
    assert -0.3001 <= added.min() < -0.28
    scaled = Augment(contrast=0.5)(x, seeded())
    torch.testing.assert_close(scaled.mean((1, 2, 3)), x.mean((1, 2, 3)))
    factor = scaled.flatten(1).std(1) / x.flatten(1).std(1)
    assert 0.5 <= factor.min() < 0.52
    assert 1.48 < factor.max() <= 1.5001


def test_cutout_fills_a_square_with_the_mean_color() -> None:
    x = 0.25 + 0.5 * random_images(300, 3, 20, 20)
    cut = Augment(cutout=0.3)(x, seeded())
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    hole = cut != x
    torch.testing.assert_close(cut[hole], mean[hole])
    area = hole[:, 0].flatten(1).sum(1)
    assert area.max() == 36
    assert area.min() >= 9  # a quarter of the square, in a corner
    assert (area < 36).any()


def test_boxes_by_hand() -> None:
    masks = boxes(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0.5, 0.5]), 4, 8)
    expected = torch.zeros(2, 4, 8, dtype=torch.bool)
    expected[0, 1:3, 2:6] = True
    expected[1, 0:1, 6:8] = True
    assert torch.equal(masks, expected)


def test_labels_are_mixed_in_the_proportion_of_the_images() -> None:
    """Each image has a constant color, so the mean of a mixed image must equal the color given by its label."""
    color = torch.linspace(0, 1, 64)
    x, target = color.view(-1, 1, 1, 1).expand(-1, 3, 6, 6), torch.eye(64)
    for augment in (Augment(mixup=0.4), Augment(cutmix=1.0), Augment(mixup=0.4, cutmix=1.0)):
        mixed, labels = augment.mix(x, target, seeded(3))
        torch.testing.assert_close(labels.sum(1), torch.ones(64))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), labels @ color)
        assert not torch.equal(labels, target)
    _, partner = (Augment(mixup=0.4).mix(x, target, seeded(3))[1] - target).max(1)
    assert len(partner.unique()) > 55, "each image is the partner of one other"


def test_cutmix_labels_are_fractions_of_the_area() -> None:
    x = torch.arange(32.0).view(-1, 1, 1, 1).expand(-1, 1, 10, 10) / 32
    mixed, labels = Augment(cutmix=1.0).mix(x, torch.eye(32), seeded())
    own_fraction = (mixed == x).flatten(1).float().mean(1)
    torch.testing.assert_close(labels.diagonal(), own_fraction)
    assert own_fraction.min() < 0.3


def test_mixup_fractions_follow_the_beta_distribution() -> None:
    x, target = torch.zeros(4000, 1, 1, 1), torch.arange(4000.0)[:, None]
    x[:2000] = 1
    alpha = 0.2
    mixed, _ = Augment(mixup=alpha).mix(x, target, seeded())
    fraction = mixed[(mixed > 0) & (mixed < 1)]  # of the half whose partner has the other color
    assert 1600 < len(fraction) <= 2100
    assert fraction.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)  # of Beta(a, a)
    assert Augment(mixup=0.01).mix(x, target, seeded())[0].isfinite().all()


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 20),
    width=st.integers(8, 20),
    seed=st.integers(0, 1000),
)
def test_any_shape_is_supported(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    x = torch.rand(batch, channels, height, width, generator=seeded(seed))
    changed, target = ALL_TRANSFORMS.mix(ALL_TRANSFORMS(x, seeded(seed)), torch.eye(batch), seeded(seed))
    assert changed.shape == x.shape
    assert changed.dtype == x.dtype
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    torch.testing.assert_close(target.sum(1), torch.ones(batch))


def test_reflected_padding_by_hand() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    corner = torch.tensor([[0, 4]])  # two pixels down and two to the left
    reflected = crop(x, 2, corner, "reflect")
    assert reflected.flatten().tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert crop(x, 2, corner).flatten().tolist() == [2, 2, 2, 2, 2, 2, 2, 2, 2]
    generators = seeded(4), seeded(4)
    images = random_images(6, 2)
    at_random = Augment(crop_pixels=3, crop_padding="reflect")(images, generators[0])
    corner_B2 = torch.randint(7, (6, 2), generator=generators[1])
    assert torch.equal(at_random, crop(images, 3, corner_B2, "reflect"))
