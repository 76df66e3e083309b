"""Tests of the channel mean and standard deviation against direct computations."""

from __future__ import annotations

import pytest
import torch

from zerokara.core.data.moments import channel_moments


def test_by_hand() -> None:
    """Two images of two channels: one with levels 0, 255, 51, 51, and one with the constant level 255."""
    images = torch.tensor([[[[0, 255]], [[255, 255]]], [[[51, 51]], [[255, 255]]]], dtype=torch.uint8)
    mean_C, std_C = channel_moments(images)
    assert mean_C.tolist() == pytest.approx([0.35, 1.0])
    squares = (0.35**2 + 0.65**2 + 2 * 0.15**2) / 4
    assert std_C.tolist() == pytest.approx([squares**0.5, 1e-3]), (
        "the standard deviation of a constant channel is not 0"
    )
    assert mean_C.dtype == std_C.dtype == torch.float32


def test_equals_the_floating_point_computation() -> None:
    images = torch.randint(256, (7, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean_C, std_C = channel_moments(images)
    scaled = images.double() / 255
    torch.testing.assert_close(mean_C, scaled.mean((0, 2, 3)).float())
    torch.testing.assert_close(std_C, scaled.transpose(0, 1).flatten(1).std(1, correction=0).float())
