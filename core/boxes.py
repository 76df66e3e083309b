"""Boxes and the regions that they cut out: overlap, suppression, the code of a regression, RoI pooling, warped crops.

A box is (x1, y1, x2, y2) in pixels, edges and not centres of pixels: the left half of an image of W x H is
(0, 0, W / 2, H), and a box is x2 - x1 wide.

Shapes: N, M boxes, R regions, K classes, B images, C channels, H, W pixels, h, w cells of a feature map, P bins along a
side, S pixels along a side of a crop.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CODE_STD = (0.1, 0.1, 0.2, 0.2)
"""What codes are divided by, so that a network sees numbers near 1 (the code of Fast R-CNN)."""
_MOST_SCALE = math.log(1000 / 16)  # a code says at most so much more width or height: no exp of a wild number


def area(boxes_N4: Tensor) -> Tensor:
    """Areas (N,), 0 where a box has no inside."""
    return (boxes_N4[:, 2:] - boxes_N4[:, :2]).clamp(min=0).prod(1)


def iou(one_N4: Tensor, other_M4: Tensor) -> Tensor:
    """Intersection over union (N, M) of each with each; 0 where both have no inside."""
    corner = torch.maximum(one_N4[:, None, :2], other_M4[None, :, :2])
    opposite = torch.minimum(one_N4[:, None, 2:], other_M4[None, :, 2:])
    both_NM = (opposite - corner).clamp(min=0).prod(2)
    return both_NM / (area(one_N4)[:, None] + area(other_M4)[None] - both_NM).clamp(min=1e-9)


def clip(boxes_N4: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) without what lies outside of an image."""
    most = boxes_N4.new_tensor([width, height, width, height])
    return torch.minimum(boxes_N4.clamp(min=0), most)


def mirror(boxes_N4: Tensor, size: float, axis: int = 0) -> Tensor:
    """Boxes (N, 4) in the mirrored image: left to right (axis 0, `size` its width) or upside down (1, its height)."""
    mirrored = boxes_N4.clone()
    mirrored[:, axis], mirrored[:, axis + 2] = size - boxes_N4[:, axis + 2], size - boxes_N4[:, axis]
    return mirrored


def encode(from_N4: Tensor, to_N4: Tensor) -> Tensor:
    """How to move and stretch boxes into others: codes (N, 4) of R-CNN (Girshick et al. 2014, appendix C).

    (dx, dy) is the way between centres in widths and heights of the first box, (dw, dh) the logarithm of the stretch;
    all of it over `CODE_STD`.
    """
    size, to_size = from_N4[:, 2:] - from_N4[:, :2], to_N4[:, 2:] - to_N4[:, :2]
    way = (to_N4[:, :2] + to_size / 2 - from_N4[:, :2] - size / 2) / size
    return torch.cat([way, (to_size / size).log()], 1) / from_N4.new_tensor(CODE_STD)


def decode(boxes_N4: Tensor, codes_NK4: Tensor) -> Tensor:
    """The boxes (N, K, 4) that codes (N, K, 4) make of boxes (N, 4): the inverse of `encode` for each class."""
    codes_NK4 = codes_NK4 * boxes_N4.new_tensor(CODE_STD)
    size_N12 = (boxes_N4[:, 2:] - boxes_N4[:, :2])[:, None]
    centre = boxes_N4[:, None, :2] + size_N12 / 2 + codes_NK4[..., :2] * size_N12
    half = size_N12 * codes_NK4[..., 2:].clamp(max=_MOST_SCALE).exp() / 2
    return torch.cat([centre - half, centre + half], 2)


def nms(boxes_N4: Tensor, score_N: Tensor, most_iou: float) -> Tensor:
    """Greedy non-maximum suppression: places of the boxes that stay, best score first.

    A box goes where a better one that stays overlaps it by more than `most_iou`. Of equal scores the first is better.
    The greedy answer is the one fixed point of that rule, and all boxes are judged at once until nothing changes, which
    takes as many rounds as the longest chain of boxes that save each other (Zheng et al. 2021, "Cluster-NMS").
    """
    order_N = score_N.argsort(descending=True, stable=True)
    sorted_N4 = boxes_N4[order_N]
    over_NN = (iou(sorted_N4, sorted_N4) > most_iou).triu(1).to(sorted_N4.dtype)  # row: better than the column
    stays_N = torch.ones_like(over_NN[0]) if len(over_NN) else over_NN.new_zeros(0)
    while True:
        again_N = ((stays_N @ over_NN) == 0).to(stays_N.dtype)
        if torch.equal(again_N, stays_N):
            return order_N[stays_N > 0]
        stays_N = again_N


def pick(
    boxes_NK4: Tensor, score_NK: Tensor, *, least_score: float, nms_iou: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections out of scored boxes, each class by itself: suppression, then the best of all classes.

    Args:
        boxes_NK4: of every region, one for each class.
        score_NK: the same; higher is better.
        least_score: what is worth looking at.
        nms_iou: overlap up to which two detections of a class may both stay.
        most: detections that are kept.

    Returns:
        Boxes (D, 4), scores (D,) and classes (D,) int64, best first.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for label in range(score_NK.shape[1]):
        high_N = torch.nonzero(score_NK[:, label] > least_score).flatten()
        boxes, scores = boxes_NK4[high_N, label], score_NK[high_N, label]
        stays = nms(boxes, scores, nms_iou)
        found.append((boxes[stays], scores[stays], torch.full_like(stays, label)))
    boxes_D4, score_D, label_D = (torch.cat(parts) for parts in zip(*found, strict=True))
    best = score_D.argsort(descending=True, stable=True)[:most]
    return boxes_D4[best], score_D[best], label_D[best]


def roi_pool(maps_BChw: Tensor, boxes_R4: Tensor, image_R: Tensor, bins: int, scale: tuple[float, float]) -> Tensor:
    """RoI max pooling: each region of a feature map as (C, P, P) float32 (Girshick 2015, "Fast R-CNN", section 2.1).

    A region is rounded to whole cells, at least one; bin i of n cells takes those from floor(i n / P) to
    ceil((i + 1) n / P). A maximum over any run of cells is the larger of two over runs of 2^k, and those of all cells
    are made once for all regions; so a bin costs four look-ups, whatever its size.

    Args:
        maps_BChw: of B images.
        boxes_R4: in pixels of the images.
        image_R: to which image each belongs, int64.
        bins: P.
        scale: cells for a pixel, along x and y.

    Returns:
        (R, C, P, P).
    """
    batch, _, height, width = maps_BChw.shape
    steps = torch.arange(bins, device=boxes_R4.device)
    begin_xyRP, level_xyRP, last_xyRP = [], [], []
    for axis, cells in ((0, width), (1, height)):
        edges_R2 = (boxes_R4[:, axis::2].double() * scale[axis] + 0.5).floor().long()
        first_R = edges_R2[:, 0].clamp(0, cells - 1)
        number_R = edges_R2[:, 1].clamp(max=cells).sub(first_R).clamp(min=1)
        begin_RP = steps * number_R[:, None] // bins
        end_RP = ((steps + 1) * number_R[:, None] + bins - 1) // bins
        length_RP = end_RP - begin_RP
        level_RP = (length_RP.float() + 0.5).log2().floor().long()
        begin_xyRP.append(first_R[:, None] + begin_RP)
        level_xyRP.append(level_RP)
        last_xyRP.append(first_R[:, None] + end_RP - 2**level_RP)
    levels = [int(level.max()) + 1 if level.numel() else 1 for level in level_xyRP]
    tables = _running_maxima(maps_BChw.float().permute(0, 2, 3, 1), levels[0], levels[1])

    def row(x_RP: Tensor, y_RP: Tensor) -> Tensor:
        """Places (R, P, P) in the tables, laid end to end, of the runs that begin at these cells."""
        table_RPP = level_xyRP[1][:, :, None] * levels[0] + level_xyRP[0][:, None, :]
        place_RPP = (table_RPP * batch + image_R[:, None, None]) * height + y_RP[:, :, None]
        return place_RPP * width + x_RP[:, None, :]

    pooled = None
    for x_RP in (begin_xyRP[0], last_xyRP[0]):
        for y_RP in (begin_xyRP[1], last_xyRP[1]):
            # The gradient of `embedding` is summed in a fixed order, so that a run repeats itself on the CPU.
            values = F.embedding(row(x_RP, y_RP), tables)
            pooled = values if pooled is None else torch.maximum(pooled, values)
    assert pooled is not None
    return pooled.permute(0, 3, 1, 2)


def _running_maxima(maps_BhwC: Tensor, levels_x: int, levels_y: int) -> Tensor:
    """Rows (levels_y levels_x B h w, C): the maximum over 2^j rows and 2^i columns from each cell on."""
    tables = []
    down = maps_BhwC
    for j in range(levels_y):
        right = down
        for i in range(levels_x):
            tables.append(right)
            if i + 1 < levels_x:
                right = torch.maximum(right, _shifted(right, 2**i, 2))
        if j + 1 < levels_y:
            down = torch.maximum(down, _shifted(down, 2**j, 1))
    return torch.stack(tables).flatten(0, 3)


def _shifted(maps_BhwC: Tensor, by: int, axis: int) -> Tensor:
    """The map from `by` cells on, its end as it was: runs that would leave the map are never looked up."""
    return torch.cat([maps_BhwC.narrow(axis, by, maps_BhwC.shape[axis] - by), maps_BhwC.narrow(axis, 0, by)], axis)


def warp(images_BCHW: Tensor, boxes_R4: Tensor, image_R: Tensor, side: int, context: int, fill_C: Tensor) -> Tensor:
    """Regions stretched to squares (R, C, S, S) float from 0 to 1 (Girshick et al. 2014, "R-CNN", appendix A).

    Bilinear, without smoothing: a region much larger than the square is sampled at points.

    Args:
        images_BCHW: uint8.
        boxes_R4: in pixels.
        image_R: to which image each belongs, int64.
        side: S.
        context: pixels of the square, on each of its sides, that show what lies around the box.
        fill_C: what is seen outside of an image, from 0 to 1.
    """
    height, width = images_BCHW.shape[2:]
    inside = side - 2 * context
    steps_S = (torch.arange(side, device=boxes_R4.device) + 0.5 - context) / inside
    low, high, share, outside = [], [], [], []
    for axis, pixels in ((0, width), (1, height)):
        begin_R1, end_R1 = boxes_R4[:, axis, None], boxes_R4[:, axis + 2, None]
        place_RS = begin_R1 + steps_S * (end_R1 - begin_R1)
        outside.append((place_RS < 0) | (place_RS > pixels))
        centre_RS = (place_RS - 0.5).clamp(0, pixels - 1)  # pixel i has its centre at i + 0.5
        low.append(centre_RS.floor().long())
        high.append((low[-1] + 1).clamp(max=pixels - 1))
        share.append((centre_RS - low[-1])[..., None])
    image_R11 = image_R[:, None, None]

    def seen(y_RS: Tensor, x_RS: Tensor) -> Tensor:
        return images_BCHW[image_R11, :, y_RS[:, :, None], x_RS[:, None, :]].float()  # (R, S, S, C)

    across, along = share[0][:, None], share[1][:, :, None]
    top = torch.lerp(seen(low[1], low[0]), seen(low[1], high[0]), across)
    bottom = torch.lerp(seen(high[1], low[0]), seen(high[1], high[0]), across)
    crops_RSSC = torch.lerp(top, bottom, along) * (1 / 255)
    nothing_RSS = outside[1][:, :, None] | outside[0][:, None, :]
    return torch.where(nothing_RSS[..., None], fill_C, crops_RSSC).permute(0, 3, 1, 2)
