"""Tests of saliency maps with functions whose relevant pixels are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from zerokara.agents.viewing.saliency import saliency


def noise() -> np.ndarray:
    """(4, 84, 84) uint8 without uniform areas, because blurring does not change those."""
    return np.random.default_rng(0).integers(0, 256, (4, 84, 84), np.uint8)


def square(top: int, left: int, side: int = 8) -> tuple[slice, slice]:
    return slice(top, top + side), slice(left, left + side)


@pytest.mark.parametrize(("top", "left"), [(10, 60), (50, 20), (38, 38)])
def test_the_relevant_block_has_the_highest_saliency(top: int, left: int) -> None:
    block = square(top, left)
    weight = np.zeros((84, 84), np.float32)
    weight[block] = np.indices((8, 8)).sum(axis=0) % 2  # a checkerboard: sums over a blurred block hardly change

    def values(obs_PCHW: np.ndarray) -> Tensor:
        sum_P = torch.from_numpy((obs_PCHW[:, -1].astype(np.float32) * weight).sum(axis=(1, 2)))
        return torch.stack([sum_P, torch.zeros_like(sum_P)], dim=1)

    heat_HW = saliency(values, noise())
    assert heat_HW.shape == (84, 84)
    row, column = np.unravel_index(heat_HW.argmax(), heat_HW.shape)
    assert abs(row - (top + 3.5)) <= 8
    assert abs(column - (left + 3.5)) <= 8
    far = np.ones((84, 84), bool)
    far[max(0, top - 20) : top + 28, max(0, left - 20) : left + 28] = False
    assert heat_HW[far].max() < 0.01 * heat_HW.max()


def test_saliency_is_half_the_squared_change_of_all_values() -> None:
    """Blurring at any position changes Q from (0, 0) to (3, 4): 1/2 (9 + 16) = 12.5, everywhere."""
    obs = noise()

    def values(obs_PCHW: np.ndarray) -> Tensor:
        changed_P = torch.tensor([float((picture != obs).any()) for picture in obs_PCHW])
        return changed_P[:, None] * torch.tensor([3.0, 4.0])

    np.testing.assert_allclose(saliency(values, obs), 12.5)


def test_uniform_areas_have_no_saliency_and_cost_no_forward_pass() -> None:
    obs = np.zeros((4, 84, 84), np.uint8)
    obs[:, 40:44, 40:44] = 255
    batch_sizes = []

    def values(obs_PCHW: np.ndarray) -> Tensor:
        batch_sizes.append(len(obs_PCHW))
        return torch.from_numpy(obs_PCHW.reshape(len(obs_PCHW), -1).astype(np.float32).std(axis=1))[:, None]

    heat_HW = saliency(values, obs)
    assert heat_HW[:10].max() == 0
    assert heat_HW[42, 42] > 0
    assert sum(batch_sizes) < 1 + 17 * 17 / 2


def test_rows_and_columns_of_rectangular_inputs_are_not_swapped() -> None:
    obs = np.random.default_rng(0).integers(0, 256, (3, 40, 80), np.uint8)

    def values(obs_PCHW: np.ndarray) -> Tensor:
        pixel = obs_PCHW[:, :, 20, 70].astype(np.float32)
        return torch.from_numpy(pixel)

    assert saliency(values, obs).argmax() == 20 * 80 + 70
