"""Selective search: class-independent object proposals.

    boxes_P4 = propose(image_HWC, SearchSettings())
    recall(boxes_P4, truth_N4, 0.5)

Uijlings et al. 2013, "Selective Search for Object Recognition". An image is divided into many small segments
(graph-based segmentation of Felzenszwalb and Huttenlocher 2004, from scikit-image). The two most similar neighboring
regions are merged until one is left. The bounding box of every region that occurs is a proposal. This is repeated for
several color spaces, segmentation scales and similarity measures, because no single combination covers all objects.

Shapes: H, W pixels, n segments, F histogram bins, P proposals, N boxes.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

COLOR_BINS, TEXTURE_BINS, DIRECTIONS = 25, 10, 8  # section 3.2
_SPACES: Mapping[str, int | None] = {"rgb": None, "hsv": cv2.COLOR_RGB2HSV_FULL, "lab": cv2.COLOR_RGB2LAB}
# Weights of the similarities of color, texture, size and fill (table 6 of the paper, "fast" version).
_SIMILARITIES: Mapping[str, tuple[float, float, float, float]] = {"ctsf": (1, 1, 1, 1), "tsf": (0, 1, 1, 1)}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Settings of selective search. The defaults are the "fast" version of the paper (table 6), which R-CNN uses.

    Names and order of the fields determine the names of cache files (`key`) and are saved with detectors.
    """

    colours: tuple[str, ...] = ("hsv", "lab")  # color spaces: rgb, hsv, lab
    scales: tuple[float, ...] = (50.0, 100.0)  # of the segmentation; a larger scale gives larger segments
    similarities: tuple[str, ...] = ("ctsf", "tsf")
    sigma: float = 0.8  # standard deviation of the blur before the segmentation, in pixels
    smallest_side: int = 8  # minimum side of a proposal, in pixels

    def key(self) -> str:
        """Return a hash of the settings, part of the name of the cache folder."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def propose(image_HWC: np.ndarray, settings: SearchSettings, max_proposals: int | None = None) -> np.ndarray:
    """Return proposals (P, 4) int32 as in core.boxes, most likely objects first, without duplicates.

    Regions that were merged last come first. Their ranks are multiplied by random numbers (section 3.3), so that the
    segmentations alternate; the random numbers depend only on the size of the image.

    Args:
        image_HWC: uint8, RGB.
        settings: color spaces, scales and similarities.
        max_proposals: maximum of P; None: all.
    """
    rng = np.random.default_rng(image_HWC.size)
    found: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    for color in settings.colours:
        code = _SPACES[color]
        space_HWC = image_HWC if code is None else cv2.cvtColor(image_HWC, code)
        texture = _texture_codes(space_HWC)
        for scale in settings.scales:
            labels_HW = segments(space_HWC, scale, settings.sigma)
            regions = _Regions(labels_HW, space_HWC, texture)
            for name in settings.similarities:
                boxes_P4 = regions.group(_SIMILARITIES[name])
                found.append(boxes_P4)
                ranks.append(np.arange(len(boxes_P4), 0, -1) * rng.random(len(boxes_P4)))
    boxes_P4 = np.concatenate(found)[np.argsort(np.concatenate(ranks), kind="stable")]
    large = (boxes_P4[:, 2:] - boxes_P4[:, :2]).min(1) >= settings.smallest_side
    boxes_P4 = boxes_P4[large]
    _, first = np.unique(boxes_P4, axis=0, return_index=True)
    unique_P4: np.ndarray = boxes_P4[np.sort(first)][:max_proposals]
    return unique_P4


def recall(boxes_P4: np.ndarray, truth_N4: np.ndarray, min_iou: float) -> float:
    """Return the fraction of true boxes with an IoU of at least `min_iou` with a proposal; NaN without true boxes."""
    best_N = best_overlaps(boxes_P4, truth_N4)
    return float((best_N >= min_iou).mean()) if len(best_N) else float("nan")


def best_overlaps(boxes_P4: np.ndarray, truth_N4: np.ndarray) -> np.ndarray:
    """Return for each true box the highest IoU (N,) with a proposal; their mean is the paper's ABO."""
    if not len(boxes_P4) or not len(truth_N4):
        return np.zeros(len(truth_N4))
    boxes, truth = boxes_P4.astype(np.float64), truth_N4.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    both_PN = (high - low).clip(0).prod(2)
    areas = [(array[:, 2:] - array[:, :2]).prod(1) for array in (boxes, truth)]
    best: np.ndarray = (both_PN / (areas[0][:, None] + areas[1][None] - both_PN)).max(0)
    return best


def segments(space_HWC: np.ndarray, scale: float, sigma: float) -> np.ndarray:
    """Segment an image; return labels (H, W) from 0 without gaps. No segment has fewer than `scale` pixels."""
    from skimage.segmentation import felzenszwalb  # imported here, because it is slow to import

    labels_HW = felzenszwalb(space_HWC.astype(np.float64) / 255, scale, sigma, round(scale))
    _, dense = np.unique(labels_HW, return_inverse=True)
    return dense.reshape(labels_HW.shape)


class _Regions:
    """Segments of an image with their sizes, boxes, color and texture histograms and neighbors.

    Regions 0 to n - 1 are the segments; region n + k is the result of the k-th merge; there are 2n - 1 in all.
    """

    def __init__(self, labels_HW: np.ndarray, space_HWC: np.ndarray, texture: np.ndarray) -> None:
        self.number = number = int(labels_HW.max()) + 1
        height, width = labels_HW.shape
        self.pixels = height * width
        flat = labels_HW.ravel()
        self.sizes = np.bincount(flat, minlength=number).astype(np.float64)
        self.boxes = _boxes_of(labels_HW, number)
        colors = (space_HWC.reshape(-1, 3).astype(np.int64) * COLOR_BINS) >> 8
        self.color = _histograms(flat, colors, COLOR_BINS, number)
        self.texture = _histograms(flat, texture, TEXTURE_BINS, number)
        self.neighbors = _neighbors(labels_HW, number)

    def group(self, weights: tuple[float, float, float, float]) -> np.ndarray:
        """Merge the most similar neighbors until one region is left (algorithm 1); return all boxes (2n - 1, 4)."""
        number = self.number
        color_weight, texture_weight, size_weight, fill_weight = weights
        # Concatenated weighted histograms: one sum of minima is the similarity of color plus that of texture.
        parts = [w * part for w, part in ((color_weight, self.color), (texture_weight, self.texture)) if w]
        start_nF = np.concatenate(parts, axis=1, dtype=np.float32)
        histogram = np.empty((2 * number - 1, start_nF.shape[1]), np.float32)
        size, boxes = np.empty(2 * number - 1), np.empty((2 * number - 1, 4), np.int32)
        histogram[:number], size[:number], boxes[:number] = start_nF, self.sizes, self.boxes
        neighbors = [set(around) for around in self.neighbors]

        def similarities(region: int, others: np.ndarray) -> np.ndarray:
            """Compute similarities (section 3.2, equations 1 to 6)."""
            similarity = np.minimum(histogram[others], histogram[region]).sum(1)
            union_size = size[others] + size[region]
            corner = np.minimum(boxes[others, :2], boxes[region, :2])
            opposite = np.maximum(boxes[others, 2:], boxes[region, 2:])
            gap = (opposite - corner).prod(1) - union_size
            similarity = similarity + size_weight * (1 - union_size / self.pixels)
            total: np.ndarray = similarity + fill_weight * (1 - gap / self.pixels)
            return total

        queue: list[tuple[float, int, int]] = []
        for region, around in enumerate(neighbors):
            others = [other for other in around if other > region]
            if others:
                values = similarities(region, np.array(others)).tolist()
                queue += [(-value, region, other) for value, other in zip(values, others, strict=True)]
        heapq.heapify(queue)
        alive = [True] * number
        while queue:
            _, one, other = heapq.heappop(queue)
            if not (alive[one] and alive[other]):
                continue
            new = len(alive)
            size[new] = size[one] + size[other]
            histogram[new] = (histogram[one] * size[one] + histogram[other] * size[other]) / size[new]
            boxes[new, :2] = np.minimum(boxes[one, :2], boxes[other, :2])
            boxes[new, 2:] = np.maximum(boxes[one, 2:], boxes[other, 2:])
            alive[one] = alive[other] = False
            alive.append(True)
            around = (neighbors[one] | neighbors[other]) - {one, other}
            neighbors.append(around)
            for index in around:
                neighbors[index] -= {one, other}
                neighbors[index].add(new)
            if around:
                others = sorted(around)
                values = similarities(new, np.array(others)).tolist()
                for value, index in zip(values, others, strict=True):
                    heapq.heappush(queue, (-value, index, new))
        return boxes[: len(alive)]


def _boxes_of(labels_HW: np.ndarray, number: int) -> np.ndarray:
    """Return the bounding box (n, 4) int32 of each segment."""
    height, width = labels_HW.shape
    boxes = np.empty((number, 4), np.int32)
    flat = labels_HW.ravel()
    # NumPy keeps the last of several values written to one index, so the extremes are written last.
    for column, index in ((0, np.tile(np.arange(width), height)), (1, np.repeat(np.arange(height), width))):
        order = np.argsort(index, kind="stable")
        boxes[flat[order[::-1]], column] = index[order[::-1]]
        boxes[flat[order], column + 2] = index[order] + 1
    return boxes


def _histograms(flat: np.ndarray, codes: np.ndarray, bins: int, number: int) -> np.ndarray:
    """Return histograms (n, F) of codes (pixels, channels) per segment; each sums to 1 over all channels."""
    channels = codes.shape[1]
    result = np.empty((number, channels, bins))
    for channel in range(channels):
        counts = np.bincount(flat * bins + codes[:, channel], minlength=number * bins)
        result[:, channel] = counts.reshape(number, bins)
    result /= result.sum((1, 2), keepdims=True)
    return result.reshape(number, channels * bins)


def _texture_codes(space_HWC: np.ndarray) -> np.ndarray:
    """Return for each pixel the histogram bin of its gradient per direction and channel, (pixels, 3 DIRECTIONS).

    Gradients are Gaussian derivatives with a sigma of one pixel. Bins divide the range from 0 to the largest gradient
    of the channel in this image into equal parts.
    """
    smooth = cv2.GaussianBlur(space_HWC.astype(np.float32), (0, 0), 1.0)
    along_x = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=1)
    along_y = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=1)
    codes = []
    for step in range(DIRECTIONS):
        angle = 2 * np.pi * step / DIRECTIONS
        slope = np.maximum(np.float32(np.cos(angle)) * along_x + np.float32(np.sin(angle)) * along_y, 0)
        codes.append(slope.reshape(-1, 3))
    slopes = np.stack(codes, 1)  # (pixels, DIRECTIONS, 3)
    greatest = slopes.max((0, 1), keepdims=True)
    bins = (slopes * (TEXTURE_BINS / np.maximum(greatest, 1e-6))).astype(np.int64)
    texture: np.ndarray = np.minimum(bins, TEXTURE_BINS - 1).reshape(len(slopes), -1)
    return texture


def _neighbors(labels_HW: np.ndarray, number: int) -> list[set[int]]:
    """Return for each segment the set of segments that touch it horizontally or vertically."""
    pairs = []
    for one, other in ((labels_HW[:, :-1], labels_HW[:, 1:]), (labels_HW[:-1], labels_HW[1:])):
        edge = one != other
        low, high = np.minimum(one[edge], other[edge]), np.maximum(one[edge], other[edge])
        pairs.append(low.astype(np.int64) * number + high)
    around: list[set[int]] = [set() for _ in range(number)]
    for low, high in zip(*(part.tolist() for part in np.divmod(np.unique(np.concatenate(pairs)), number)), strict=True):
        around[low].add(high)
        around[high].add(low)
    return around
