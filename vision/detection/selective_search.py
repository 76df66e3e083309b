"""Selective search: boxes in which there may be something, whatever it is.

    boxes_P4 = propose(image_HWC, SearchSettings())
    recall(boxes_P4, truth_N4, 0.5)

Uijlings et al. 2013, "Selective Search for Object Recognition". An image is cut into many small segments that follow
its edges (Felzenszwalb and Huttenlocher 2004, as scikit-image has it), and the two most similar neighbours are joined
until one is left; the box of every region that there was on the way is a proposal. That is done in several colour
spaces, from several segmentations, by several notions of similarity, because no single one finds everything.

Shapes: H, W pixels, n segments, F numbers of a histogram, P proposals, N boxes.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb

COLOR_BINS, TEXTURE_BINS, DIRECTIONS = 25, 10, 8  # section 3.2
_SPACES: Mapping[str, int | None] = {"rgb": None, "hsv": cv2.COLOR_RGB2HSV_FULL, "lab": cv2.COLOR_RGB2LAB}
# Which of colour, texture, size and fill are added up (table 6 of the paper, its "fast" version).
_SIMILARITIES: Mapping[str, tuple[float, float, float, float]] = {"ctsf": (1, 1, 1, 1), "tsf": (0, 1, 1, 1)}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How much variety. The defaults are the paper's "fast" version (table 6), which R-CNN uses too."""

    colours: tuple[str, ...] = ("hsv", "lab")  # of rgb, hsv, lab
    scales: tuple[float, ...] = (50.0, 100.0)  # of the segmentation: larger, larger segments
    similarities: tuple[str, ...] = ("ctsf", "tsf")
    sigma: float = 0.8  # of the blur before the segmentation, in pixels
    smallest_side: int = 8  # of a proposal, in pixels

    def key(self) -> str:
        """A short name that no other settings have."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def propose(image_HWC: np.ndarray, settings: SearchSettings, most: int | None = None) -> np.ndarray:
    """Boxes (P, 4) int32 as in core.boxes, the most promising first, none twice.

    What was joined last comes first, shuffled by numbers that depend on the image alone (section 3.3), so that equals
    of all segmentations take turns.

    Args:
        image_HWC: uint8, RGB.
        settings: which segmentations are tried.
        most: P at most; None: all.
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
    unique_P4: np.ndarray = boxes_P4[np.sort(first)][:most]
    return unique_P4


def recall(boxes_P4: np.ndarray, truth_N4: np.ndarray, min_iou: float) -> float:
    """Share of the true boxes that some proposal overlaps by at least `least_iou`; NaN where there is no true box."""
    best_N = best_overlaps(boxes_P4, truth_N4)
    return float((best_N >= min_iou).mean()) if len(best_N) else float("nan")


def best_overlaps(boxes_P4: np.ndarray, truth_N4: np.ndarray) -> np.ndarray:
    """For each true box the overlap (N,) of the proposal that fits it best; their mean is the paper's ABO."""
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
    """The over-segmentation: labels (H, W) from 0 on without gaps. No segment is smaller than `scale` pixels."""
    labels_HW = felzenszwalb(space_HWC.astype(np.float64) / 255, scale, sigma, round(scale))
    _, dense = np.unique(labels_HW, return_inverse=True)
    return dense.reshape(labels_HW.shape)


class _Regions:
    """The segments of an image, and what is known of each and of all that are made of them.

    Region i < n is a segment, n + k what the k-th joining made; arrays have room for all 2n - 1.
    """

    def __init__(self, labels_HW: np.ndarray, space_HWC: np.ndarray, texture: np.ndarray) -> None:
        self.number = number = int(labels_HW.max()) + 1
        height, width = labels_HW.shape
        self.pixels = height * width
        flat = labels_HW.ravel()
        self.sizes = np.bincount(flat, minlength=number).astype(np.float64)
        self.boxes = _boxes_of(labels_HW, number)
        colours = (space_HWC.reshape(-1, 3).astype(np.int64) * COLOR_BINS) >> 8
        self.color = _histograms(flat, colours, COLOR_BINS, number)
        self.texture = _histograms(flat, texture, TEXTURE_BINS, number)
        self.neighbors = _neighbors(labels_HW, number)

    def group(self, weights: tuple[float, float, float, float]) -> np.ndarray:
        """Join the most similar neighbours until one region is left: boxes (2n - 1, 4) of all regions (algorithm 1)."""
        number = self.number
        of_colour, of_texture, of_size, of_fill = weights
        # Histograms side by side, weighted, so that one sum of minima is the similarity of colour and texture.
        parts = [w * part for w, part in ((of_colour, self.color), (of_texture, self.texture)) if w]
        start_nF = np.concatenate(parts, axis=1, dtype=np.float32)
        histogram = np.empty((2 * number - 1, start_nF.shape[1]), np.float32)
        size, boxes = np.empty(2 * number - 1), np.empty((2 * number - 1, 4), np.int32)
        histogram[:number], size[:number], boxes[:number] = start_nF, self.sizes, self.boxes
        neighbors = [set(around) for around in self.neighbors]

        def similarities(region: int, others: np.ndarray) -> np.ndarray:
            """Section 3.2, equations 1 to 6."""
            alike = np.minimum(histogram[others], histogram[region]).sum(1)
            both = size[others] + size[region]
            corner = np.minimum(boxes[others, :2], boxes[region, :2])
            opposite = np.maximum(boxes[others, 2:], boxes[region, 2:])
            gap = (opposite - corner).prod(1) - both
            found: np.ndarray = alike + of_size * (1 - both / self.pixels) + of_fill * (1 - gap / self.pixels)
            return found

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
    """The box (n, 4) int32 of each segment."""
    height, width = labels_HW.shape
    boxes = np.empty((number, 4), np.int32)
    flat = labels_HW.ravel()
    # The last of several values written to one place stays, so extremes are written last.
    for column, index in ((0, np.tile(np.arange(width), height)), (1, np.repeat(np.arange(height), width))):
        order = np.argsort(index, kind="stable")
        boxes[flat[order[::-1]], column] = index[order[::-1]]
        boxes[flat[order], column + 2] = index[order] + 1
    return boxes


def _histograms(flat: np.ndarray, codes: np.ndarray, bins: int, number: int) -> np.ndarray:
    """Histograms (n, F) of codes (pixels, channels) in each segment, summing to 1 over all channels."""
    channels = codes.shape[1]
    result = np.empty((number, channels, bins))
    for channel in range(channels):
        counts = np.bincount(flat * bins + codes[:, channel], minlength=number * bins)
        result[:, channel] = counts.reshape(number, bins)
    result /= result.sum((1, 2), keepdims=True)
    return result.reshape(number, channels * bins)


def _texture_codes(space_HWC: np.ndarray) -> np.ndarray:
    """For each pixel the bin (pixels, 3 DIRECTIONS) of its slope in each direction and channel.

    Derivatives of a Gaussian of one pixel; bins are equal parts of the greatest slope in a channel of this image.
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
    """Which segments touch each, side by side or one above the other."""
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
