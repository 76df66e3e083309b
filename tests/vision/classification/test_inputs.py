"""Tests of the preprocessing of user images: inversion, detection and centering of digits, resizing."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from tests.classifiers import DIGITS
from zerokara.core.data.glyphs import draw
from zerokara.vision.classification.inputs import center_digit, has_bright_border, prepare


def photograph(
    digit_HW: np.ndarray, *, scale: int = 8, ink: int = 60, shade: float = 0.5, noise: float = 5
) -> np.ndarray:
    """Return an RGB image of the digit (light on black) as ink on unevenly lit paper, off the center of the image."""
    rng = np.random.default_rng(0)
    big = cv2.resize(digit_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) / 255.0
    big = np.pad(big, ((90, 10), (20, 120)))
    light = 1 - shade * np.linspace(0, 1, big.shape[1])
    grayscale = (235 * (1 - big) + ink * big) * light + rng.normal(0, noise, big.shape)
    return np.repeat(grayscale.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1])


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return draw(20, seed=5)[0]


def test_bright_border_is_detected() -> None:
    paper = np.full((40, 60), 200, np.uint8)
    assert not has_bright_border(paper // 10 * 0 + np.eye(40, 60, dtype=np.uint8) * 255)
    paper[20, 30:33] = 40  # three dark pixels of 2,400
    assert has_bright_border(paper)
    assert not has_bright_border(255 - paper)


def test_image_of_the_networks_size_is_only_inverted(digits: np.ndarray) -> None:
    image = digits[0][..., None]
    assert np.array_equal(prepare(image, DIGITS).pixels_CHW[0], digits[0])
    assert prepare(image, DIGITS).steps == "unchanged"
    inverted = prepare(255 - image, DIGITS)
    assert np.array_equal(inverted.pixels_CHW[0], digits[0])
    assert inverted.steps == "inverted"
    assert np.array_equal(prepare(255 - image, DIGITS, as_is=True).pixels_CHW[0], 255 - digits[0])


def test_photographed_digits_match_the_clean_digits(digits: np.ndarray) -> None:
    """The digit extracted from shaded, noisy paper correlates with the digit extracted from the clean image."""
    for digit in digits:
        prepared = prepare(photograph(digit), DIGITS)
        assert prepared.steps == "inverted, digit cropped and centered"
        clean = center_digit(cv2.resize(digit, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC), (28, 28))
        assert clean is not None
        shifted = [np.roll(prepared.pixels_CHW[0], (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert max(correlation(image, clean) for image in shifted) > 0.93  # a center of mass may be rounded differently
        assert prepared.pixels_CHW.max() == 255


def test_size_and_center_of_mass_are_as_in_mnist(digits: np.ndarray) -> None:
    for digit in digits:
        image = prepare(photograph(digit), DIGITS).pixels_CHW[0].astype(float)
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1)
        for axis, mass in ((0, image.sum(1)), (1, image.sum(0))):
            assert (mass * np.arange(28)).sum() / mass.sum() == pytest.approx(13.5, abs=0.6), axis


def test_a_thin_pen_is_thickened() -> None:
    paper = np.full((300, 300, 1), 255, np.uint8)
    cv2.line(paper, (150, 50), (150, 250), (0,), 3)
    image = prepare(paper, DIGITS).pixels_CHW[0]
    assert (image > 128).sum(1).max() >= 2
    assert image[14].max() == 255


def test_dirt_is_removed(digits: np.ndarray) -> None:
    clean, dirty = photograph(digits[1]), photograph(digits[1])
    dirty[5:11, 5:11] = 30
    both = [prepare(image, DIGITS).pixels_CHW for image in (clean, dirty)]
    assert correlation(*both) > 0.99


def test_blank_image_reports_that_no_ink_was_found() -> None:
    blank = prepare(np.full((50, 80, 3), 230, np.uint8), DIGITS)
    assert "no ink found" in blank.steps
    assert blank.pixels_CHW.shape == (1, 28, 28)


def test_image_is_resized_center_cropped_and_inverted_for_other_networks() -> None:
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[..., 0] = 250
    photo[:, :10] = 7  # outside of the center crop
    metadata = dataclasses.replace(
        DIGITS, channels=3, image_size=(20, 20), classes=("cat", "dog"), mean=(0.5,) * 3, std=(0.2,) * 3
    )
    prepared = prepare(photo, metadata)
    assert prepared.pixels_CHW.shape == (3, 20, 20)
    assert prepared.steps == "resized, center-cropped"
    assert prepared.pixels_CHW[0].min() == 250
    assert prepared.pixels_CHW[1].max() == 0
    wide = prepare(photo, dataclasses.replace(metadata, image_size=(20, 30)))
    assert wide.pixels_CHW.shape == (3, 20, 30)
    assert wide.steps == "resized"
    clothes = dataclasses.replace(DIGITS, classes=("shirt", "boot"), mean=(0.29,))
    white = np.full((28, 28, 1), 255, np.uint8)
    white[5:20, 5:20] = 90
    assert prepare(white, clothes).steps == "inverted"
    assert prepare(white, dataclasses.replace(clothes, mean=(0.6,))).steps == "unchanged"
