"""Last stage of R-CNN: linear SVMs with hard negative mining, and box regression (Girshick et al. 2014, section 2.3).

This stage is deterministic given the fine-tuned network. It is not checkpointed: a run that is interrupted here repeats
it on resume, with the same result.

Shapes: R regions, D hidden units, K classes, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zerokara.core.boxes import encode, iou
from zerokara.core.compute import Compute
from zerokara.core.data.boxes import BoxSet
from zerokara.vision.detection.config import Config
from zerokara.vision.detection.detector import Detector, Svm
from zerokara.vision.detection.proposals import Proposals

MEAN_LENGTH = 20.0  # mean norm to which vectors are scaled, as in the paper's code
CONSTANT = 10.0  # constant feature whose weight is the bias; large, so that the bias is hardly regularized
POSITIVE_WEIGHT = 2.0
HARD = -1.0  # a negative with a score above this lies inside the margin or on the wrong side
REGRESSED_IOU = 0.6  # appendix C: proposals with at least this IoU with a true box train the box regression
_FIRST_NEGATIVES = 20  # per image, for the first round, in which hard negatives are not known


@dataclass(frozen=True)
class Vectors:
    """All training regions with their vectors; for each image the true boxes come before the proposals."""

    vector: np.ndarray  # (R, D) float32
    image: np.ndarray  # (R,) index of the image
    true_label: np.ndarray  # (R,) class of a true box, -1 for proposals
    overlap: np.ndarray  # (R, K) highest IoU with a true box of each class
    best_label: np.ndarray  # (R,) class of the true box with the highest IoU
    best_overlap: np.ndarray  # (R,) that IoU
    code: np.ndarray  # (R, 4) box code from the region to that true box


def all_vectors(
    config: Config,
    detector: Detector,
    boxes: BoxSet,
    proposals: Sequence[Proposals],
    compute: Compute,
    progress: Callable[[int, int], None],
) -> Vectors:
    """Compute the vectors of all training regions; `progress` is called with (finished images, all images)."""
    rows: list[tuple[np.ndarray, ...]] = []
    classes = len(boxes.classes)
    for index in range(len(boxes)):
        truth_n4, label_n = boxes.boxes[index], boxes.labels[index]
        regions_R4 = torch.cat([truth_n4, proposals[index].boxes[: config.svm_proposals]])
        with torch.no_grad(), compute.autocast():
            canvas = boxes.images[index].to(compute.torch_device)
            vectors = detector.vectors_of_crops(canvas, regions_R4.to(compute.torch_device), compute)
        overlap_RK = torch.zeros(len(regions_R4), classes)
        true_R = torch.full((len(regions_R4),), -1)
        true_R[: len(label_n)] = label_n
        best_label_R, best_R, code_R4 = true_R, torch.zeros(len(regions_R4)), torch.zeros_like(regions_R4)
        if len(truth_n4):
            overlap_Rn = iou(regions_R4, truth_n4)
            overlap_RK.scatter_reduce_(1, label_n.expand(len(regions_R4), -1), overlap_Rn, "amax")
            best_R, match_R = overlap_Rn.max(1)
            code_R4, best_label_R = encode(regions_R4, truth_n4[match_R]), label_n[match_R]
        parts: list[Tensor] = [Compute.to_host(vectors), torch.full_like(true_R, index), true_R, overlap_RK]
        rows.append(tuple(part.numpy() for part in (*parts, best_label_R, best_R, code_R4)))
        progress(index + 1, len(boxes))
    return Vectors(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def fit(config: Config, svm: Svm, vectors: Vectors, classes: Sequence[str]) -> dict[str, int]:
    """Fit the SVM and box regression of every class into `svm`. Return the number of negatives per class."""
    from sklearn.linear_model import Ridge  # imported here, because it is slow to import

    scale = MEAN_LENGTH / max(float(np.linalg.norm(vectors.vector, axis=1).mean()), 1e-6)
    svm.scale.fill_(scale)
    scaled_RD = vectors.vector * np.float32(scale)
    negatives = {}
    for label, name in enumerate(classes):
        positive = np.flatnonzero(vectors.true_label == label)
        far = np.flatnonzero(vectors.overlap[:, label] < config.svm_background_iou)
        if len(positive) and len(far):
            weight, bias, negatives[name] = _svm(config, scaled_RD, positive, far, vectors.image)
            svm.weight[label] = torch.from_numpy(weight)
            svm.bias[label] = bias
        near = np.flatnonzero((vectors.best_label == label) & (vectors.best_overlap >= REGRESSED_IOU))
        if len(near):
            regression = Ridge(alpha=max(config.ridge, 1e-6)).fit(vectors.vector[near], vectors.code[near])
            svm.ridge[label, :, :-1] = torch.from_numpy(np.asarray(regression.coef_, np.float32))
            svm.ridge[label, :, -1] = torch.from_numpy(np.asarray(regression.intercept_, np.float32))
    return negatives


def _svm(
    config: Config, scaled_RD: np.ndarray, positive: np.ndarray, far: np.ndarray, image_R: np.ndarray
) -> tuple[np.ndarray, float, int]:
    """Train one SVM; return weights (D,), bias, and the number of negatives after all rounds."""
    from sklearn.svm import LinearSVC  # as in `fit`

    rng = np.random.default_rng(config.seed)
    shuffled = rng.permutation(far)
    # The same maximum for each image, so that images with many regions do not dominate.
    order = np.argsort(image_R[shuffled], kind="stable")
    sorted_images = image_R[shuffled][order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_images, sorted_images)
    negative = np.sort(shuffled[order[rank < _FIRST_NEGATIVES]])
    weight, bias = np.zeros(scaled_RD.shape[1], np.float32), 0.0
    for _ in range(config.svm_rounds):
        rows = np.concatenate([positive, negative])
        target = np.concatenate([np.ones(len(positive)), -np.ones(len(negative))])
        classifier = LinearSVC(
            C=config.svm_c,
            dual=False,  # the solver of the primal problem is deterministic
            intercept_scaling=CONSTANT,
            class_weight={1: POSITIVE_WEIGHT},
            max_iter=10_000,
        ).fit(scaled_RD[rows], target)
        weight, bias = np.asarray(classifier.coef_[0], np.float32), float(classifier.intercept_[0])
        hard = far[scaled_RD[far] @ weight + bias > HARD]
        extended = np.union1d(negative, hard)
        if len(extended) == len(negative):
            break
        negative = extended
    return weight, bias, len(negative)
