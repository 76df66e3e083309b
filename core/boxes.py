"""Operations on bounding boxes: IoU, non-maximum suppression, box regression targets, RoI pooling, crops.

A box is (x1, y1, x2, y2) in pixels. Coordinates are edges, not centers, of pixels: the left half of an image of W x H
is (0, 0, W / 2, H), and the width of a box is x2 - x1.

Shapes: N, M boxes, R regions, K classes, B images, C channels, H, W pixels, h, w cells of a feature map, P bins along a
side, S pixels along a side of a crop.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CODE_STD = (0.1, 0.1, 0.2, 0.2)
"""Standard deviations by which regression targets are divided, so that they are near 1 (Fast R-CNN's code)."""
_MAX_LOG_SCALE = math.log(1000 / 16)  # limit of a decoded width or height, to avoid overflow of exp


def area(boxes_N4: Tensor) -> Tensor:
    """Compute areas (N,) of boxes; 0 for an empty box."""
    return (boxes_N4[:, 2:] - boxes_N4[:, :2]).clamp(min=0).prod(1)


def iou(one_N4: Tensor, other_M4: Tensor) -> Tensor:
    """Compute the intersection over union (N, M) of every pair of boxes; 0 if both are empty."""
    corner = torch.maximum(one_N4[:, None, :2], other_M4[None, :, :2])
    opposite = torch.minimum(one_N4[:, None, 2:], other_M4[None, :, 2:])
    both_NM = (opposite - corner).clamp(min=0).prod(2)
    return both_NM / (area(one_N4)[:, None] + area(other_M4)[None] - both_NM).clamp(min=1e-9)


def clip(boxes_N4: Tensor, height: float, width: float) -> Tensor:
    """Clip boxes (..., 4) to an image."""
    limits = boxes_N4.new_tensor([width, height, width, height])
    return torch.minimum(boxes_N4.clamp(min=0), limits)


def flip(boxes_N4: Tensor, size: float, axis: int = 0) -> Tensor:
    """Flip boxes (N, 4) like their image.

    Args:
        boxes_N4: boxes.
        size: width of the image if axis is 0, else its height.
        axis: 0 flips left to right, 1 flips top to bottom.
    """
    flipped = boxes_N4.clone()
    flipped[:, axis], flipped[:, axis + 2] = size - boxes_N4[:, axis + 2], size - boxes_N4[:, axis]
    return flipped


def encode(from_N4: Tensor, to_N4: Tensor) -> Tensor:
    """Compute regression targets (N, 4) that transform boxes into other boxes (Girshick et al. 2014, appendix C).

    (dx, dy) is the distance between the centers in widths and heights of the first box, (dw, dh) the logarithm of the
    ratio of the sizes. All four are divided by `CODE_STD`.
    """
    size, to_size = from_N4[:, 2:] - from_N4[:, :2], to_N4[:, 2:] - to_N4[:, :2]
    offset = (to_N4[:, :2] + to_size / 2 - from_N4[:, :2] - size / 2) / size
    return torch.cat([offset, (to_size / size).log()], 1) / from_N4.new_tensor(CODE_STD)


def decode(boxes_N4: Tensor, codes_NK4: Tensor) -> Tensor:
    """Apply regression outputs (N, K, 4) to boxes (N, 4) and return boxes (N, K, 4): inverse of `encode` per class."""
    codes_NK4 = codes_NK4 * boxes_N4.new_tensor(CODE_STD)
    size_N12 = (boxes_N4[:, 2:] - boxes_N4[:, :2])[:, None]
    center_N12 = boxes_N4[:, None, :2] + size_N12 / 2 + codes_NK4[..., :2] * size_N12
    half = size_N12 * codes_NK4[..., 2:].clamp(max=_MAX_LOG_SCALE).exp() / 2
    return torch.cat([center_N12 - half, center_N12 + half], 2)


def nms(boxes_N4: Tensor, score_N: Tensor, max_iou: float) -> Tensor:
    """Greedy non-maximum suppression. Return the indices of the kept boxes, highest score first.

    A box is removed if its IoU with a kept box of higher score is above `max_iou`. Of equal scores the first counts as
    higher. The greedy result is the unique fixed point of this rule. All boxes are updated at once until nothing
    changes; the number of iterations is at most the length of the longest chain of boxes that suppress each other
    (Zheng et al. 2021, "Cluster-NMS").
    """
    order_N = score_N.argsort(descending=True, stable=True)
    sorted_N4 = boxes_N4[order_N]
    over_NN = (iou(sorted_N4, sorted_N4) > max_iou).triu(1).to(sorted_N4.dtype)  # row: higher score than column
    kept_N = torch.ones_like(over_NN[0]) if len(over_NN) else over_NN.new_zeros(0)
    while True:
        updated_N = ((kept_N @ over_NN) == 0).to(kept_N.dtype)
        if torch.equal(updated_N, kept_N):
            return order_N[kept_N > 0]
        kept_N = updated_N


def select_detections(
    boxes_NK4: Tensor, score_NK: Tensor, *, min_score: float, nms_iou: float, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Select detections from scored boxes: non-maximum suppression per class, then the highest scores of all classes.

    Args:
        boxes_NK4: one box per region and class.
        score_NK: one score per region and class.
        min_score: boxes with a score up to this are ignored.
        nms_iou: maximum IoU of two detections of the same class.
        max_detections: maximum number of detections.

    Returns:
        Boxes (D, 4), scores (D,) and classes (D,) int64, highest score first.
    """
    detections: list[tuple[Tensor, Tensor, Tensor]] = []
    for label in range(score_NK.shape[1]):
        high_N = torch.nonzero(score_NK[:, label] > min_score).flatten()
        boxes, scores = boxes_NK4[high_N, label], score_NK[high_N, label]
        kept = nms(boxes, scores, nms_iou)
        detections.append((boxes[kept], scores[kept], torch.full_like(kept, label)))
    boxes_D4, score_D, label_D = (torch.cat(parts) for parts in zip(*detections, strict=True))
    best = score_D.argsort(descending=True, stable=True)[:max_detections]
    return boxes_D4[best], score_D[best], label_D[best]


def roi_pool(maps_BChw: Tensor, boxes_R4: Tensor, image_R: Tensor, bins: int, scale: tuple[float, float]) -> Tensor:
    """RoI max pooling of each region of a feature map to (C, P, P) float32 (Girshick 2015, "Fast R-CNN", section 2.1).

    A region is rounded to whole cells, at least one. Of n cells, bin i covers those from floor(i n / P) to
    ceil((i + 1) n / P). The maximum over any interval of cells is the larger of the maxima over two intervals of length
    2^k. The maxima over intervals of length 2^k are computed once for all regions, so that a bin of any size costs four
    look-ups (a sparse table).

    Args:
        maps_BChw: feature maps of B images.
        boxes_R4: regions, in pixels of the images.
        image_R: index of the image of each region, int64.
        bins: P.
        scale: feature map cells per pixel, along x and y.

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

    def table_rows(x_RP: Tensor, y_RP: Tensor) -> Tensor:
        """Return the rows (R, P, P) in the concatenated tables of the intervals that begin at these cells."""
        table_RPP = level_xyRP[1][:, :, None] * levels[0] + level_xyRP[0][:, None, :]
        row_RPP = (table_RPP * batch + image_R[:, None, None]) * height + y_RP[:, :, None]
        return row_RPP * width + x_RP[:, None, :]

    pooled = None
    for x_RP in (begin_xyRP[0], last_xyRP[0]):
        for y_RP in (begin_xyRP[1], last_xyRP[1]):
            # The gradient of `embedding` is summed in a fixed order, so that runs on the CPU are reproducible.
            values = F.embedding(table_rows(x_RP, y_RP), tables)
            pooled = values if pooled is None else torch.maximum(pooled, values)
    assert pooled is not None
    return pooled.permute(0, 3, 1, 2)


def _running_maxima(maps_BhwC: Tensor, levels_x: int, levels_y: int) -> Tensor:
    """Compute rows (levels_y levels_x B h w, C): the maximum over 2^j rows and 2^i columns starting at each cell."""
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
    """Shift a map by `by` cells. The end is filled with the start; intervals that leave the map are never used."""
    return torch.cat([maps_BhwC.narrow(axis, by, maps_BhwC.shape[axis] - by), maps_BhwC.narrow(axis, 0, by)], axis)


def crop_and_resize(
    images_BCHW: Tensor, boxes_R4: Tensor, image_R: Tensor, side: int, context: int, fill_C: Tensor
) -> Tensor:
    """Crop regions and resize them to squares (R, C, S, S), float from 0 to 1.

    This is the warping of R-CNN (Girshick et al. 2014, appendix A): bilinear interpolation without antialiasing.

    Args:
        images_BCHW: uint8.
        boxes_R4: regions, in pixels.
        image_R: index of the image of each region, int64.
        side: S.
        context: pixels on each side of the square that show the surroundings of the box.
        fill_C: color outside of the image, from 0 to 1.
    """
    height, width = images_BCHW.shape[2:]
    inside = side - 2 * context
    steps_S = (torch.arange(side, device=boxes_R4.device) + 0.5 - context) / inside
    low, high, fraction, outside = [], [], [], []
    for axis, pixels in ((0, width), (1, height)):
        begin_R1, end_R1 = boxes_R4[:, axis, None], boxes_R4[:, axis + 2, None]
        position_RS = begin_R1 + steps_S * (end_R1 - begin_R1)
        outside.append((position_RS < 0) | (position_RS > pixels))
        center_RS = (position_RS - 0.5).clamp(0, pixels - 1)  # the center of pixel i is at i + 0.5
        low.append(center_RS.floor().long())
        high.append((low[-1] + 1).clamp(max=pixels - 1))
        fraction.append((center_RS - low[-1])[..., None])
    image_R11 = image_R[:, None, None]

    def pixels_at(y_RS: Tensor, x_RS: Tensor) -> Tensor:
        return images_BCHW[image_R11, :, y_RS[:, :, None], x_RS[:, None, :]].float()  # (R, S, S, C)

    across, along = fraction[0][:, None], fraction[1][:, :, None]
    top = torch.lerp(pixels_at(low[1], low[0]), pixels_at(low[1], high[0]), across)
    bottom = torch.lerp(pixels_at(high[1], low[0]), pixels_at(high[1], high[0]), across)
    crops_RSSC = torch.lerp(top, bottom, along) * (1 / 255)
    outside_RSS = outside[1][:, :, None] | outside[0][:, None, :]
    return torch.where(outside_RSS[..., None], fill_C, crops_RSSC).permute(0, 3, 1, 2)
