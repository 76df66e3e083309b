"""Images in observations: which part is the image, layouts, types and ranges, and the answers to wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from zerokara.envs.observations import ImageFormat, ObservationError, find_image, parse_kwargs, read_rendered

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
IMAGE[0, 0] = 0, 255, 100
Range = tuple[float, float] | None


def box(low: float, high: float, shape: tuple[int, ...] = (6, 8, 3), dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def found(space: spaces.Space[Any], key: str = "", obs_range: Range = None) -> ImageFormat:
    image = find_image(space, key, obs_range)
    assert image is not None
    return image


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (box(0, 255, dtype=np.uint8), IMAGE),
        (box(0, 255, dtype=np.uint8), IMAGE.tolist()),
        (box(0, 255, dtype=np.uint8), IMAGE.astype(np.int64)),
        (box(0, 255, dtype=np.uint8), IMAGE.astype(np.float32)),
        (box(0, 255, dtype=np.int64), IMAGE.astype(np.int32)),
        (box(0, 255), IMAGE.astype(np.float64)),
        (box(0, 255), IMAGE),
        (box(0, 1), (IMAGE / 255).astype(np.float32)),
        (box(0, 1, dtype=np.float64), IMAGE / 255),
        (box(-1, 1), IMAGE / 127.5 - 1),
    ],
)
def test_any_type_of_the_declared_range_becomes_uint8(space: spaces.Box, obs: Any) -> None:
    image = found(space).read(obs)
    assert image.dtype == np.uint8
    assert np.array_equal(image, IMAGE)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 8), (6, 8)),
        ((6, 8, 1), (6, 8, 1)),
        ((1, 6, 8), (6, 8, 1)),
        ((3, 6, 8), (6, 8, 3)),
    ],
)
def test_layouts(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    obs = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    image = found(box(0, 255, shape, np.uint8)).read(obs)
    assert image.shape == expected
    if shape[0] == 3:
        assert np.array_equal(image[2, 5], obs[:, 2, 5])


@pytest.mark.parametrize(
    "space",
    [
        box(-1, 1, (4,)),
        box(0, 255, (128,), np.uint8),
        box(0, 255, (6, 8, 4), np.uint8),  # four stacked frames or RGBA: not known
        box(0, 255, (3, 2, 8), np.uint8),
        box(0, 1, (10, 10), bool),
        spaces.Discrete(5),
        spaces.Dict(direction=spaces.Discrete(4), mission=spaces.Text(10)),
    ],
)
def test_other_observations_are_no_images(space: spaces.Space[Any]) -> None:
    assert find_image(space, "", None) is None


def test_the_image_of_a_dict_is_chosen_by_its_key() -> None:
    view, depth = box(0, 255, (7, 7, 3), np.uint8), box(0, 255, (6, 8), np.uint8)
    one = spaces.Dict(image=view, direction=spaces.Discrete(4))
    assert str(found(one)) == "observation['image']"
    assert found(one).read({"image": np.ones((7, 7, 3), np.uint8), "direction": 2}).sum() == 147
    two = spaces.Dict(view=view, depth=depth, health=box(0, 1, (1,)))
    assert found(two, "depth").read({"depth": IMAGE[:, :, 0]}).shape == (6, 8)
    with pytest.raises(ObservationError, match=r"images view, depth .* --obs-key view"):
        find_image(two, "", None)
    with pytest.raises(ObservationError, match=r"no observation 'screen': .* view, depth, health"):
        find_image(two, "screen", None)
    with pytest.raises(ObservationError, match="'health' that is not an image"):
        find_image(two, "health", None)
    with pytest.raises(ObservationError, match=r"without keys: remove obs_key"):
        find_image(view, "image", None)
    with pytest.raises(ObservationError, match=r"observation\['image'\] that cannot be read \(KeyError"):
        found(one).read({"direction": 2})


def test_a_range_that_is_not_declared_must_be_named() -> None:
    for space in (box(-np.inf, np.inf), box(0, np.inf), spaces.Box(-(2**31), 2**31 - 1, (6, 8, 3), np.int32)):
        with pytest.raises(ObservationError, match=r"declares no range .* --obs-range 0 255"):
            find_image(space, "", None)
        assert np.array_equal(found(space, "", (0, 255)).read(IMAGE.astype(np.float32)), IMAGE)
    assert str(found(box(-np.inf, np.inf), "", (0, 0.5))) == "observation, 0 to 0.5"
    named = found(box(0, 255, dtype=np.uint8), "", (0, 1))
    assert np.array_equal(named.read(IMAGE / 255), IMAGE)


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        # What was multiplied by 255 and wrapped around before: 200 became 56.
        (box(0, 1), IMAGE.astype(np.float32), r"values from 0 to 255, outside of the range 0 to 1: .* --obs-range"),
        (box(0, 255, dtype=np.uint8), IMAGE.astype(np.int64) + 20, "values from 20 to 275, outside"),
        (box(0, 255, dtype=np.uint8), IMAGE / 255, r"fractions from 0 to 1, but declares 0 to 255"),
        (box(0, 255, dtype=np.uint8), IMAGE[:4], r"shape \(4, 8, 3\) and type uint8, but declares \(6, 8, 3\)"),
        (box(0, 255, dtype=np.uint8), IMAGE > 9, "type bool"),
        (box(0, 1), np.full((6, 8, 3), np.nan), "NaN or Inf"),
        (box(0, 1), np.full((6, 8, 3), np.inf), "NaN or Inf"),
        (box(0, 255, dtype=np.uint8), None, "type object"),
        (box(0, 255, dtype=np.uint8), [[1], [2, 3]], "cannot be read"),
    ],
)
def test_other_observations_than_declared_are_errors(space: spaces.Box, obs: Any, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        found(space).read(obs)


def test_a_dark_image_of_whole_numbers_is_not_taken_for_fractions() -> None:
    dark = np.zeros((6, 8, 3), np.float32)
    dark[0, 0] = 1
    assert found(box(0, 255, dtype=np.uint8)).read(dark).max() == 1
    assert found(box(0, 1)).read(dark * 1.0005).max() == 255, "rounding may exceed the range"


def test_rendered_images() -> None:
    assert read_rendered(IMAGE) is IMAGE
    assert np.array_equal(read_rendered(IMAGE / 255), IMAGE)
    assert np.array_equal(read_rendered(IMAGE.tolist()), IMAGE)
    for picture, message in (
        (None, "a NoneType"),
        (IMAGE[:, :, 0], r"\(6, 8\) of uint8"),
        (IMAGE.astype(float), "values from 0 to 255, expected uint8 or floats from 0 to 1"),
    ):
        with pytest.raises(ObservationError, match=message):
            read_rendered(picture)


def test_arguments_are_plain_values() -> None:
    assert parse_kwargs({"size": (3, 4), "map": {"a": [True, None]}}) == {"size": [3, 4], "map": {"a": [True, None]}}
    with pytest.raises(ObservationError, match="cannot get the argument"):
        parse_kwargs({"device": IMAGE})
