"""Tests of box operations against values computed by hand and against slow reference loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from zerokara.core.boxes import area, clip, crop_and_resize, decode, encode, flip, iou, nms, roi_pool, select_detections


def random_boxes(number: int, width: float = 60, height: float = 40) -> Tensor:
    corner = torch.rand(number, 2) * torch.tensor([width * 0.7, height * 0.7])
    return torch.cat([corner, corner + 1 + torch.rand(number, 2) * torch.tensor([width * 0.3, height * 0.3])], 1)


def test_iou_by_hand() -> None:
    one = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 9]])
    other = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4], [5, 5, 5, 9]])
    expected = torch.tensor([[1, 50 / 150, 0, 4 / 100, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(iou(one, other), expected)
    assert area(one).tolist() == [100, 0]
    assert iou(one, other[:0]).shape == (2, 0)


def test_clip_and_flip() -> None:
    boxes = torch.tensor([[-3.0, 2, 70, 50], [1, 2, 3, 4]])
    assert clip(boxes, 40, 60).tolist() == [[0, 2, 60, 40], [1, 2, 3, 4]]
    assert flip(boxes[1:], 60).tolist() == [[57, 2, 59, 4]]
    assert flip(boxes[1:], 40, axis=1).tolist() == [[1, 36, 3, 38]]
    assert torch.equal(flip(flip(boxes, 60), 60), boxes)


def test_encode_by_hand_and_decode_is_its_inverse() -> None:
    # Half a width to the right, a quarter of a height up, twice the width, the same height.
    code = encode(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[0.0, -5, 20, 15]]))
    torch.testing.assert_close(code, torch.tensor([[0.5 / 0.1, -0.25 / 0.1, math.log(2) / 0.2, 0]]))
    boxes, targets = random_boxes(50), random_boxes(50)
    codes = torch.stack([encode(boxes, targets), torch.zeros(50, 4)], 1)
    torch.testing.assert_close(decode(boxes, codes)[:, 0], targets, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(decode(boxes, codes)[:, 1], boxes, atol=1e-4, rtol=1e-4)
    large = decode(boxes, torch.full((50, 1, 4), 1e4))
    assert large.isfinite().all()


def test_nms_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [20, 20, 30, 30]])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.1])
    assert nms(boxes, scores, 0.5).tolist() == [1, 3]
    assert nms(boxes, scores, 0.75).tolist() == [1, 3]  # 9 / 11 each
    assert nms(boxes, scores, 0.9).tolist() == [1, 0, 2, 3]
    # The middle box is suppressed, so it does not suppress the last one.
    chain = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert nms(chain, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []
    assert nms(boxes[[0, 0]], torch.tensor([0.5, 0.5]), 0.5).tolist() == [0]


def test_nms_equals_the_greedy_algorithm() -> None:
    for limit in (0.1, 0.3, 0.6):
        boxes, scores = random_boxes(120), torch.rand(120)
        overlaps, remaining, expected = iou(boxes, boxes), scores.argsort(descending=True).tolist(), []
        while remaining:
            expected.append(remaining[0])
            remaining = [i for i in remaining[1:] if overlaps[expected[-1], i] <= limit]
        assert nms(boxes, scores, limit).tolist() == expected


def test_pick_treats_each_class_separately() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [40, 0, 50, 10]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.6], [0.05, 0.7]])
    kept_boxes, score, label = select_detections(
        boxes[:, None].expand(-1, 2, -1), scores, min_score=0.1, nms_iou=0.5, max_detections=2
    )
    assert list(zip(score.tolist(), label.tolist(), strict=True)) == [(pytest.approx(0.9), 0), (pytest.approx(0.7), 1)]
    assert kept_boxes.tolist() == [boxes[0].tolist(), boxes[2].tolist()]
    assert (
        len(select_detections(boxes[:, None].expand(-1, 2, -1), scores, min_score=1, nms_iou=0.5, max_detections=2)[0])
        == 0
    )


def slow_roi_pool(maps: Tensor, boxes: Tensor, image: Tensor, bins: int, scale: tuple[float, float]) -> Tensor:
    """Compute RoI max pooling by its definition, bin by bin."""
    _, channels, height, width = maps.shape
    out = torch.empty(len(boxes), channels, bins, bins)
    for row, (box, image_index) in enumerate(zip(boxes.tolist(), image.tolist(), strict=True)):
        ranges = []
        for axis, cells in ((0, width), (1, height)):
            first = min(max(math.floor(box[axis] * scale[axis] + 0.5), 0), cells - 1)
            number = max(min(math.floor(box[axis + 2] * scale[axis] + 0.5), cells) - first, 1)
            ranges.append(
                [(first + i * number // bins, first + math.ceil((i + 1) * number / bins)) for i in range(bins)]
            )
        for i, (top, bottom) in enumerate(ranges[1]):
            for j, (left, right) in enumerate(ranges[0]):
                out[row, :, i, j] = maps[image_index, :, top:bottom, left:right].amax((1, 2))
    return out


def test_roi_pooling_by_hand() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    boxes = torch.tensor([[0.0, 0, 16, 16], [4, 4, 12, 8], [15, 15, 15.5, 15.5], [-9, -9, -5, -5]])
    pooled = roi_pool(maps, boxes, torch.zeros(4, dtype=torch.int64), 2, (0.25, 0.25))
    assert pooled[0, 0].tolist() == [[5, 7], [13, 15]]
    assert pooled[1, 0].tolist() == [[5, 6], [5, 6]]  # one row of two cells
    assert pooled[2, 0].tolist() == [[15, 15], [15, 15]]  # a region smaller than a cell is one cell
    assert pooled[3, 0].tolist() == [[0, 0], [0, 0]]  # outside: the nearest cell


@pytest.mark.parametrize(("bins", "height", "width"), [(1, 9, 13), (3, 5, 7), (6, 20, 30), (7, 4, 3)])
def test_roi_pooling_equals_its_definition(bins: int, height: int, width: int) -> None:
    maps = torch.randn(3, 5, height, width, requires_grad=True)
    boxes, image = random_boxes(40) - 2, torch.randint(3, (40,))
    scale = (width / 60, height / 40)
    fast, slow = roi_pool(maps, boxes, image, bins, scale), slow_roi_pool(maps, boxes, image, bins, scale)
    assert torch.equal(fast, slow)
    weight = torch.randn_like(fast)
    (one,) = torch.autograd.grad((fast * weight).sum(), maps)
    (other,) = torch.autograd.grad((slow * weight).sum(), maps)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_roi_pooling_without_regions() -> None:
    assert roi_pool(torch.rand(1, 3, 4, 4), torch.zeros(0, 4), torch.zeros(0).long(), 2, (1, 1)).shape == (0, 3, 2, 2)


def test_crop_of_the_same_size_copies_the_image() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2, 3, 12, 16), dtype=np.uint8))
    boxes = torch.tensor([[3.0, 2, 11, 10], [0, 0, 8, 8]])
    crops = crop_and_resize(images, boxes, torch.tensor([1, 0]), 8, 0, torch.zeros(3))
    torch.testing.assert_close(crops[0], images[1, :, 2:10, 3:11] / 255)
    torch.testing.assert_close(crops[1], images[0, :, :8, :8] / 255)


def test_crop_shows_the_context_and_the_fill_color_outside() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(1, 3, 12, 16), dtype=np.uint8))
    inside = crop_and_resize(images, torch.tensor([[4.0, 4, 8, 8]]), torch.tensor([0]), 8, 2, torch.zeros(3))
    torch.testing.assert_close(inside[0], images[0, :, 2:10, 2:10] / 255)
    fill = torch.tensor([0.25, 0.5, 0.75])
    corner = crop_and_resize(images, torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0]), 8, 2, fill)[0]
    torch.testing.assert_close(corner[:, 2:, 2:], images[0, :, :6, :6] / 255)
    assert torch.equal(corner[:, :2], fill[:, None, None].expand(3, 2, 8))
    assert torch.equal(corner[:, :, 1], fill[:, None].expand(3, 8))
