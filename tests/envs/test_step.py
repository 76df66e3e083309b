"""Tests of `Step`: its frames cannot be written into, observations can."""

from __future__ import annotations

import numpy as np
import pytest

from zerokara.envs import Step


def stack() -> np.ndarray:
    """Return an observation (1, 4, 1, 1): four frames of one channel, the newest is 3."""
    return np.arange(4, dtype=np.uint8).reshape(1, 4, 1, 1)


def test_first_step_hands_out_the_newest_frames_read_only() -> None:
    step = Step.first(stack(), 1)
    assert step.frame.tolist() == [[[[3]]]]
    with pytest.raises(ValueError, match="read-only"):
        step.frame[:] = 9
    step.obs[:] = 9
    assert step.frame.tolist() == [[[[9]]]], "frames are not copied"


def test_frame_is_a_read_only_observation_where_the_environment_hands_out_none() -> None:
    no_N = np.zeros(1, bool)
    step = Step(stack, np.zeros(1, np.float32), no_N, no_N, no_N, None)
    assert step.frame.shape == (1, 4, 1, 1)
    assert np.shares_memory(step.frame, step.obs)
    with pytest.raises(ValueError, match="read-only"):
        step.frame[:] = 9
    step.obs[:] = 9
