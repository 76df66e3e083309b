"""Tests of `Stacks`, on frames of one pixel whose value is their number."""

from __future__ import annotations

import numpy as np
import pytest

from zerokara.envs.stacks import Stacks


def frames(*numbers: float, dtype: type[np.generic] = np.uint8) -> np.ndarray:
    """Return one frame (1, 1, 1) for each environment."""
    return np.array(numbers, dtype)[:, None, None, None]


def pixels(obs: np.ndarray) -> list[list[float]]:
    """Return the frames of the stack of each environment, oldest first."""
    assert obs.shape[2:] == (1, 1)
    stacks: list[list[float]] = obs[:, :, 0, 0].tolist()
    return stacks


def test_stacks_do_not_cross_the_start_of_an_episode() -> None:
    stacks = Stacks.blank(2, 3, (1, 1, 1))
    assert pixels(stacks.make()) == [[0, 0, 0], [0, 0, 0]]
    stacks = stacks.push(frames(1, 11), slice(None))
    assert pixels(stacks.make()) == [[0, 0, 1], [0, 0, 11]]
    stacks = stacks.push(frames(2, 12))
    assert pixels(stacks.make()) == [[0, 1, 2], [0, 11, 12]]
    by_mask, by_index = (stacks.push(frames(3, 13), first) for first in (np.array([False, True]), np.array([1])))
    for after in (by_mask, by_index):
        assert pixels(after.make()) == [[1, 2, 3], [0, 0, 13]]
        assert pixels(after.push(frames(4, 14)).make()) == [[2, 3, 4], [0, 13, 14]]
        assert pixels(after.push(frames(4, 14)).push(frames(5, 15)).make()) == [[3, 4, 5], [13, 14, 15]]
    assert pixels(stacks.make()) == [[0, 1, 2], [0, 11, 12]], "`push` returns another object"


def test_last_observations_belong_to_the_episode_that_ended() -> None:
    stacks = Stacks.blank(3, 3, (1, 1, 1)).push(frames(1, 11, 21), slice(None)).push(frames(2, 12, 22))
    newest = frames(3, 50, 60)  # after the resets of the last two, whose last frames are 13 and 23
    last = stacks.make_last(newest, np.array([1, 2]), frames(13, 23))
    assert pixels(last) == [[1, 2, 3], [11, 12, 13], [21, 22, 23]]
    assert newest.ravel().tolist() == [3, 50, 60]
    in_its_second_step = Stacks.blank(1, 3, (1, 1, 1)).push(frames(1), slice(None))
    assert pixels(in_its_second_step.make_last(frames(50), np.array([0]), frames(2))) == [[0, 1, 2]]


def test_frames_of_several_channels_and_floats() -> None:
    stacks = Stacks.blank(1, 2, (3, 1, 2), np.float32)
    one, two = np.arange(6, dtype=np.float32).reshape(1, 3, 1, 2), np.full((1, 3, 1, 2), 0.5, np.float32)
    stacks = stacks.push(one, slice(None)).push(two)
    obs = stacks.make()
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(obs, np.concatenate([one, two], axis=1))
    np.testing.assert_array_equal(stacks.filled(obs).push(one).make(), np.concatenate([two, one], axis=1))


def test_observations_may_be_modified_and_frames_may_not() -> None:
    stacks = Stacks.blank(1, 2, (1, 1, 1)).push(frames(1), slice(None)).push(frames(2))
    stacks.make()[:] = 77
    saved = stacks.make()
    filled = stacks.filled(saved)
    saved[:] = 77
    for one in (stacks, filled):
        assert pixels(one.make()) == [[1, 2]]
        with pytest.raises(ValueError, match="read-only"):
            one.frame_N[:] = 77
        assert one.frame_N.tolist() == [[[[2]]]]
        assert pixels(one.push(frames(3)).make()) == [[2, 3]]
