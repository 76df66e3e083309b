"""Images in the observations of Gymnasium environments: which part is the image, its layout and range, conversion.

An image is an array (H, W), (H, W, 1), (H, W, 3), (1, H, W) or (3, H, W) of any numeric type. The range that the space
declares, or that the setting obs_range names, is mapped to 0 to 255. An observation with other values is an error,
because a guess would train on wrong images: 200 of a float array times 255 would become 56.

Shapes: H, W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from gymnasium import spaces

MIN_SIDE = 4  # pixels; a smaller array is not an image
TOLERANCE = 1e-3  # of the range: floats may exceed it by rounding


class ObservationError(Exception):
    """An observation is not an image of the declared format. The message continues "<environment> ..."."""


@dataclass(frozen=True)
class ImageFormat:
    """Position and format of the image in an observation."""

    key: str | None
    """Key of a Dict observation; None: the observation is the image."""
    shape: tuple[int, ...]
    channels_first: bool
    low: float
    high: float

    def __str__(self) -> str:
        where = "observation" if self.key is None else f"observation[{self.key!r}]"
        return where if (self.low, self.high) in ((0, 255), (0, 1)) else f"{where}, {self.low:g} to {self.high:g}"

    def read(self, obs: Any) -> np.ndarray:
        """Return the image of an observation, uint8 (H, W), (H, W, 1) or (H, W, 3).

        Raises:
            ObservationError: another shape or type than declared, NaN or Inf, or values outside of the range.
        """
        where = "an observation" if self.key is None else f"observation[{self.key!r}]"
        try:
            image = np.asarray(obs if self.key is None else obs[self.key])
        except (KeyError, TypeError, ValueError) as error:
            raise ObservationError(f"returned {where} that cannot be read ({type(error).__name__}: {error}).") from None
        if image.shape != self.shape or image.dtype.kind not in "uif":
            raise ObservationError(
                f"returned {where} of shape {image.shape} and type {image.dtype}, but declares {self.shape} numbers."
            )
        if image.dtype != np.uint8 or (self.low, self.high) != (0, 255):
            image = self._to_uint8(image, where)
        return np.moveaxis(image, 0, -1) if self.channels_first else image

    def _to_uint8(self, image: np.ndarray, where: str) -> np.ndarray:
        """Map the range to 0 to 255."""
        low, high = float(image.min()), float(image.max())
        if not np.isfinite([low, high]).all():
            raise ObservationError(f"returned {where} with NaN or Inf.")
        margin = TOLERANCE * (self.high - self.low)
        if low < self.low - margin or high > self.high + margin:
            raise ObservationError(
                f"returned {where} with values from {low:g} to {high:g}, outside of the range {self.low:g} to "
                f"{self.high:g}: name the right one with obs_range (as in --obs-range 0 255)."
            )
        if (self.low, self.high) == (0, 255) and 0 < high <= 1 and image.dtype.kind == "f" and (image % 1).any():
            raise ObservationError(
                f"returned {where} with fractions from {low:g} to {high:g}, but declares 0 to 255: name the right "
                f"range with obs_range (as in --obs-range 0 1)."
            )
        scaled = (image - self.low) * (255 / (self.high - self.low))
        return np.rint(scaled).clip(0, 255).astype(np.uint8)


def find_image(space: spaces.Space[Any], obs_key: str, obs_range: tuple[float, float] | None) -> ImageFormat | None:
    """Find the image in the observations of a space. Returns None if there is none.

    Args:
        space: observation space.
        obs_key: key of the image in a Dict; empty: the only image among its values.
        obs_range: values of black and white; None: the bounds of the space.

    Raises:
        ObservationError: the key does not exist or is not that of an image, several values are images, or the range is
            not known.
    """
    if obs_key:
        part = find_part(space, obs_key)
        if not is_image(part):
            raise ObservationError(f"has an observation {obs_key!r} that is not an image: {part}.")
        return _format(part, obs_key, obs_range)
    if not isinstance(space, spaces.Dict):
        return _format(space, None, obs_range) if is_image(space) else None
    images = [key for key, part in space.spaces.items() if is_image(part)]
    if len(images) > 1:
        raise ObservationError(
            f"has the images {', '.join(images)} in its observations: choose one with obs_key "
            f"(as in --obs-key {images[0]})."
        )
    return _format(space[images[0]], images[0], obs_range) if images else None


def find_part(space: spaces.Space[Any], obs_key: str) -> spaces.Space[Any]:
    """Return the part of a Dict that a key names.

    Raises:
        ObservationError: the space is not a Dict, or has no such key.
    """
    if not isinstance(space, spaces.Dict):
        raise ObservationError(f"has observations {space} without keys: remove obs_key (--obs-key).")
    if obs_key not in space.spaces:
        raise ObservationError(
            f"has no observation {obs_key!r}: choose obs_key (--obs-key) from {', '.join(space.spaces)}."
        )
    return space[obs_key]


def is_image(space: spaces.Space[Any]) -> bool:
    """Return True if the values of a space have the shape and type of an image."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3) or space.dtype == bool:
        return False
    shape = space.shape
    sides = shape if len(shape) == 2 else shape[:2] if shape[2] in (1, 3) else shape[1:] if shape[0] in (1, 3) else ()
    return bool(sides) and min(sides) >= MIN_SIDE


def _format(space: spaces.Space[Any], key: str | None, obs_range: tuple[float, float] | None) -> ImageFormat:
    assert isinstance(space, spaces.Box)
    channels_first = len(space.shape) == 3 and space.shape[2] not in (1, 3)
    if obs_range is not None:
        low, high = obs_range
    elif space.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        low, high = float(space.low.min()), float(space.high.max())
        # The largest numbers of a type are no bounds of an image either.
        limit = np.finfo(space.dtype).max if space.dtype.kind == "f" else min(np.iinfo(space.dtype).max, 2**15)
        if not (np.isfinite([low, high]).all() and max(abs(low), abs(high)) < limit and low < high):
            raise ObservationError(
                f"declares no range of its images ({space.low.min():g} to {space.high.max():g}): name the values of "
                f"black and white with obs_range (as in --obs-range 0 255)."
            )
    return ImageFormat(key, space.shape, channels_first, low, high)


def make_frame(image: np.ndarray, size: int, grayscale: bool) -> np.ndarray:
    """Convert an image to one frame (F, size, size) uint8: grayscale (F = 1) or RGB (F = 3).

    Colors are converted first and the image is then resized with OpenCV's INTER_AREA, as in Gymnasium's
    AtariPreprocessing.

    Args:
        image: uint8 (H, W), (H, W, 1) or (H, W, 3).
        size: height and width of the frame in pixels.
        grayscale: one channel instead of three.
    """
    image = np.ascontiguousarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if grayscale and image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    elif not grayscale and image.ndim == 2:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))
    if image.shape[:2] != (size, size):
        image = np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))
    return image[None] if grayscale else image.transpose(2, 0, 1)


def read_rendered(picture: Any) -> np.ndarray:
    """Return a rendered image (H, W, 3) as uint8; floats are 0 to 1.

    Raises:
        ObservationError: it is not such an image.
    """
    image = np.asarray(picture) if isinstance(picture, np.ndarray | list | tuple) else None
    if image is None or image.ndim != 3 or image.shape[2] != 3 or image.dtype.kind not in "uif":
        raise ObservationError(f"renders {_describe(picture)}, expected an array (H, W, 3) of uint8.")
    if image.dtype == np.uint8:
        return image
    high = 1.0 if image.dtype.kind == "f" else 255.0
    try:
        return ImageFormat(None, image.shape, False, 0.0, high)._to_uint8(image, "an image")
    except ObservationError:
        raise ObservationError(
            f"renders an image of {image.dtype} with values from {image.min():g} to {image.max():g}, expected uint8 or "
            f"floats from 0 to 1."
        ) from None


def _describe(picture: object) -> str:
    if isinstance(picture, np.ndarray):
        return f"{picture.shape} of {picture.dtype}"
    return f"a {type(picture).__name__}"


def parse_kwargs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of an environment as plain values that JSON keeps: tuples become lists.

    Raises:
        ObservationError: a value that a run cannot save.
    """
    plain = (str, int, float, bool, type(None))

    def check(value: Any) -> Any:
        if isinstance(value, plain):
            return value
        if isinstance(value, list | tuple):
            return [check(part) for part in value]
        if isinstance(value, Mapping):
            return {str(key): check(part) for key, part in value.items()}
        raise ObservationError(
            f"cannot get the argument {value!r}: only numbers, texts, True, False, None and lists and dicts of them "
            f"can be saved with a run."
        )

    return {name: check(value) for name, value in settings.items()}
