"""Vectors in the observations of Gymnasium environments: CartPole's four numbers, the RAM of an Atari game.

Numbers are concatenated in the order of Gymnasium's `flatten`; a number of a discrete space becomes one-hot. They are
float32. A range that is given, or that a space of integers declares (bytes: 0 to 255), is mapped to 0 to 1; other
numbers are used as they are.

Shapes: D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from zerokara.envs.observations import TOLERANCE, ObservationError, find_part, is_image

MAX_INTEGER = 2**15  # larger bounds are those of the type, not of the numbers


@dataclass(frozen=True)
class VectorFormat:
    """Position and format of the vector in an observation."""

    key: str | None
    """Key of a Dict observation; None: the whole observation is the vector."""
    space: spaces.Space[Any]
    size: int  # D
    bounds: tuple[float, float] | None = None
    """Numbers that become 0 and 1; None: they are used as they are."""

    def __str__(self) -> str:
        where = "" if self.key is None else f" observation[{self.key!r}]"
        scaled = "" if self.bounds is None else f", {self.bounds[0]:g} to {self.bounds[1]:g} scaled to 0 to 1"
        return f"vector{where} of {self.size} numbers{scaled}"

    def read(self, obs: Any) -> np.ndarray:
        """Return the vector of an observation, (D,) float32.

        Raises:
            ObservationError: another shape or type than declared, NaN or Inf, or numbers outside of the range.
        """
        where = "an observation" if self.key is None else f"observation[{self.key!r}]"
        try:
            parts = _numbers(self.space, obs if self.key is None else obs[self.key])
            with np.errstate(over="ignore"):  # a number beyond float32 becomes Inf, which is refused below
                vector = np.concatenate(parts).astype(np.float32)
        except ObservationError as error:
            raise ObservationError(f"returned {where} {error}") from None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ObservationError(f"returned {where} that cannot be read ({type(error).__name__}: {error}).") from None
        if not np.isfinite(vector).all():
            raise ObservationError(f"returned {where} with NaN or Inf.")
        if self.bounds is None:
            return vector
        low, high = self.bounds
        margin = TOLERANCE * (high - low)
        if vector.min() < low - margin or vector.max() > high + margin:
            raise ObservationError(
                f"returned {where} with numbers from {vector.min():g} to {vector.max():g}, outside of the range "
                f"{low:g} to {high:g}: name the right one with obs_range (as in --obs-range 0 255)."
            )
        return ((vector - low) / (high - low)).astype(np.float32)


def find_vector(space: spaces.Space[Any], obs_key: str, obs_range: Sequence[float] | None) -> VectorFormat:
    """Find the vector in the observations of a space.

    Args:
        space: observation space.
        obs_key: key of the vector in a Dict; empty: all values of the Dict.
        obs_range: numbers that become 0 and 1; None: the bounds of a space of integers.

    Raises:
        ObservationError: the key does not exist, or the observations have a part that is no vector.
    """
    if obs_key:
        space = find_part(space, obs_key)
    if (part := _not_numbers(space)) is not None:
        what = "an image" if is_image(part) else f"a {type(part).__name__}"
        hint = ""
        if isinstance(space, spaces.Dict):
            hint = f"choose a part of it with obs_key (as in --obs-key {next(iter(space.spaces))}), or "
        raise ObservationError(
            f"has {what} in its observations, which is not a vector of numbers: {hint}use images, with a convolutional "
            f"--backbone."
        )
    bounds = None if obs_range is None else (float(obs_range[0]), float(obs_range[1]))
    if bounds is None and isinstance(space, spaces.Box) and space.dtype.kind in "ui":
        low, high = float(space.low.min()), float(space.high.max())
        bounds = (low, high) if low < high and max(abs(low), abs(high)) < MAX_INTEGER else None
    return VectorFormat(obs_key or None, space, spaces.flatdim(space), bounds)


def _parts(space: spaces.Space[Any]) -> list[tuple[Any, spaces.Space[Any]]]:
    """Return keys and spaces of the parts of a Dict or Tuple."""
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else []


def _not_numbers(space: spaces.Space[Any]) -> spaces.Space[Any] | None:
    """Return the first part that is not a vector of numbers; None if there is none."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return next((found for _, part in _parts(space) if (found := _not_numbers(part)) is not None), None)
    is_vector = isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    return None if is_vector and not is_image(space) else space


def _numbers(space: spaces.Space[Any], value: Any) -> list[np.ndarray]:
    """Return the numbers of a value of a space, in the order of Gymnasium's `flatten`.

    Gymnasium's function converts numbers to the declared type first, in which 0.7 of a space of integers becomes 0.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return [numbers for key, part in _parts(space) for numbers in _numbers(part, value[key])]
    if not isinstance(space, spaces.Box):
        return [np.asarray(spaces.flatten(space, value)).ravel()]
    array = np.asarray(value)
    if array.shape != space.shape or array.dtype.kind not in "uifb":
        raise ObservationError(
            f"with an array of shape {array.shape} and type {array.dtype}, but declares {space.shape} numbers."
        )
    return [array.ravel()]
