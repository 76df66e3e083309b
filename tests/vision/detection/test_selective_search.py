"""Selective search on images with known objects."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from zerokara.core.data.boxes import load_boxes
from zerokara.vision.detection.selective_search import (
    SearchSettings,
    _Regions,
    best_overlaps,
    propose,
    recall,
    segments,
)

QUICK = SearchSettings(colours=("rgb",), scales=(50.0,), similarities=("ctsf",))


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Return an image of rectangles and a two-colored disc on a shaded background, and their boxes.

    The box of the disc is found only by merging its two halves.
    """
    rng = np.random.default_rng(0)
    background = np.linspace(180, 220, 160)[None, :, None] + rng.normal(0, 2, (120, 160, 3))
    picture = background.clip(0, 255).astype(np.uint8)
    boxes = [(12, 10, 47, 40), (100, 15, 140, 60), (20, 70, 60, 110)]
    for (x1, y1, x2, y2), color in zip(boxes, ((200, 30, 30), (20, 60, 190), (30, 150, 60)), strict=True):
        picture[y1:y2, x1:x2] = color
    cv2.circle(picture, (110, 90), 20, (120, 40, 120), -1)
    picture[90:112, 88:132][(picture[90:112, 88:132] == (120, 40, 120)).all(2)] = (160, 60, 150)
    return picture, np.array([*boxes, (90, 70, 131, 111)])


def test_objects_are_proposed() -> None:
    picture, truth = scene()
    boxes = propose(picture, SearchSettings())
    assert recall(boxes, truth, 0.8) == 1.0
    assert recall(propose(picture, QUICK, max_proposals=60), truth, 0.7) == 1.0
    assert boxes.dtype == np.int32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (160, 120)).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 8
    assert len(np.unique(boxes, axis=0)) == len(boxes)


def test_proposals_are_deterministic_and_keys_are_unique() -> None:
    picture, _ = scene()
    assert np.array_equal(propose(picture, QUICK), propose(picture.copy(), QUICK))
    assert np.array_equal(propose(picture, QUICK, max_proposals=9), propose(picture, QUICK)[:9])
    assert QUICK.key() == dataclasses.replace(QUICK).key()
    assert QUICK.key() != dataclasses.replace(QUICK, sigma=0.9).key()


def test_a_uniform_image_is_one_region() -> None:
    boxes = propose(np.full((40, 60, 3), 90, np.uint8), QUICK)
    assert boxes.tolist() == [[0, 0, 60, 40]]


def test_merging_by_hand() -> None:
    """Three stripes, the first two similar: they are merged first, then all."""
    labels = np.repeat([0, 1, 2], 4)[None].repeat(6, 0)
    space = np.repeat([60, 62, 200], 4).astype(np.uint8)[None, :, None].repeat(6, 0).repeat(3, 2)
    texture = np.zeros((72, 24), np.int64)
    regions = _Regions(labels, space, texture)
    assert regions.boxes.tolist() == [[0, 0, 4, 6], [4, 0, 8, 6], [8, 0, 12, 6]]
    assert regions.sizes.tolist() == [24, 24, 24]
    assert regions.neighbors == [{1}, {0, 2}, {1}]
    np.testing.assert_allclose(regions.color.sum(1), 1)
    assert regions.group((1, 1, 1, 1)).tolist() == [*regions.boxes.tolist(), [0, 0, 8, 6], [0, 0, 12, 6]]


def test_segment_labels_have_no_gaps() -> None:
    picture, _ = scene()
    labels = segments(picture, 100, 0.8)
    assert labels.shape == (120, 160)
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert np.bincount(labels.ravel()).min() >= 100


def test_recall_by_hand() -> None:
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10]])
    proposals = np.array([[0, 0, 10, 8], [25, 0, 35, 10], [50, 50, 60, 60]])
    np.testing.assert_allclose(best_overlaps(proposals, truth), [0.8, 50 / 150])
    assert recall(proposals, truth, 0.5) == 0.5
    assert recall(proposals, truth, 0.3) == 1.0
    assert recall(proposals[:0], truth, 0.5) == 0.0
    assert np.isnan(recall(proposals, truth[:0], 0.5))


def test_most_blood_cells_are_proposed(data_dir: Path) -> None:
    boxes = load_boxes("bccd", image_side=320, data_dir=data_dir).take([0, 100, 200])
    best = [best_overlaps(propose(boxes.picture(i), SearchSettings()), boxes.boxes[i].numpy()) for i in range(3)]
    assert (np.concatenate(best) >= 0.5).mean() > 0.85


@pytest.mark.parametrize("side", [(1, 1), (3, 200)])
def test_very_small_and_narrow_images(side: tuple[int, int]) -> None:
    assert propose(np.zeros((*side, 3), np.uint8), QUICK).shape[1] == 4
