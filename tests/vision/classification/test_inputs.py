"""One's own pictures: polarity, ink found and centred as MNIST has it, other sets only resized."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from zerokara.core.data.glyphs import draw
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.vision.classification.inputs import bright_border, centred_digit, prepare

CARD = ClassifierMetadata(
    backbone="deep_cnn",
    head="paper",
    classes=tuple("0123456789"),
    channels=1,
    image_size=(28, 28),
    mean=(0.13,),
    std=(0.3,),
)


def photograph(
    digit_HW: np.ndarray, *, scale: int = 8, ink: int = 60, shade: float = 0.5, noise: float = 5
) -> np.ndarray:
    """A digit (light on black) as ink on unevenly lit paper, off the middle of a larger picture, in RGB."""
    rng = np.random.default_rng(0)
    big = cv2.resize(digit_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) / 255.0
    big = np.pad(big, ((90, 10), (20, 120)))
    light = 1 - shade * np.linspace(0, 1, big.shape[1])
    grayscale = (235 * (1 - big) + ink * big) * light + rng.normal(0, noise, big.shape)
    return np.repeat(grayscale.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1])


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return draw(20, seed=5)[0]


def test_the_border_tells_dark_on_light() -> None:
    paper = np.full((40, 60), 200, np.uint8)
    assert not bright_border(paper // 10 * 0 + np.eye(40, 60, dtype=np.uint8) * 255)
    paper[20, 30:33] = 40  # three dark pixels of 2,400
    assert bright_border(paper)
    assert not bright_border(255 - paper)


def test_a_picture_of_the_networks_size_is_at_most_inverted(digits: np.ndarray) -> None:
    image = digits[0][..., None]
    assert np.array_equal(prepare(image, CARD).pixels_CHW[0], digits[0])
    assert prepare(image, CARD).done == "as it is"
    turned = prepare(255 - image, CARD)
    assert np.array_equal(turned.pixels_CHW[0], digits[0])
    assert turned.done == "inverted"
    assert np.array_equal(prepare(255 - image, CARD, as_is=True).pixels_CHW[0], 255 - digits[0])


def test_photographed_digits_look_like_the_digits(digits: np.ndarray) -> None:
    """What is found on shaded, noisy paper is what is found in the clean image."""
    for digit in digits:
        seen = prepare(photograph(digit), CARD)
        assert seen.done == "inverted, digit cut out and centred"
        clean = centred_digit(cv2.resize(digit, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC), (28, 28))
        assert clean is not None
        near = [np.roll(seen.pixels_CHW[0], (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert max(likeness(image, clean) for image in near) > 0.93  # a centre of mass may round the other way
        assert seen.pixels_CHW.max() == 255


def test_size_and_centre_are_mnists(digits: np.ndarray) -> None:
    for digit in digits:
        image = prepare(photograph(digit), CARD).pixels_CHW[0].astype(float)
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1)
        for axis, found in ((0, image.sum(1)), (1, image.sum(0))):
            assert (found * np.arange(28)).sum() / found.sum() == pytest.approx(13.5, abs=0.6), axis


def test_a_thin_pen_is_thickened() -> None:
    paper = np.full((300, 300, 1), 255, np.uint8)
    cv2.line(paper, (150, 50), (150, 250), (0,), 3)
    image = prepare(paper, CARD).pixels_CHW[0]
    assert (image > 128).sum(1).max() >= 2
    assert image[14].max() == 255


def test_dirt_is_left_out(digits: np.ndarray) -> None:
    clean, dirty = photograph(digits[1]), photograph(digits[1])
    dirty[5:11, 5:11] = 30
    found = [prepare(image, CARD).pixels_CHW for image in (clean, dirty)]
    assert likeness(*found) > 0.99


def test_an_empty_sheet_says_so() -> None:
    blank = prepare(np.full((50, 80, 3), 230, np.uint8), CARD)
    assert "no ink found" in blank.done
    assert blank.pixels_CHW.shape == (1, 28, 28)


def test_other_networks_see_the_middle_in_their_colours() -> None:
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[..., 0] = 250
    photo[:, :10] = 7  # falls outside the middle
    metadata = dataclasses.replace(
        CARD, channels=3, image_size=(20, 20), classes=("cat", "dog"), mean=(0.5,) * 3, std=(0.2,) * 3
    )
    seen = prepare(photo, metadata)
    assert seen.pixels_CHW.shape == (3, 20, 20)
    assert seen.done == "resized, middle cut out"
    assert seen.pixels_CHW[0].min() == 250
    assert seen.pixels_CHW[1].max() == 0
    oblong = prepare(photo, dataclasses.replace(metadata, image_size=(20, 30)))
    assert oblong.pixels_CHW.shape == (3, 20, 30)
    assert oblong.done == "resized"
    clothes = dataclasses.replace(CARD, classes=("shirt", "boot"), mean=(0.29,))
    white = np.full((28, 28, 1), 255, np.uint8)
    white[5:20, 5:20] = 90
    assert prepare(white, clothes).done == "inverted"
    assert prepare(white, dataclasses.replace(clothes, mean=(0.6,))).done == "as it is"
