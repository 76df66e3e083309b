"""R-CNN's last stage: linear SVMs with hard negatives, and a regression of boxes (Girshick et al. 2014, section 2.3).

The vectors of all training regions are a function of the finetuned network, and what follows of them: a run that is
killed here does it again, and comes to the same.

Shapes: R regions, D hidden units, K classes, C colours, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from torch import Tensor

from zerokara.core.boxes import encode, iou
from zerokara.core.compute import Compute
from zerokara.core.data.boxes import BoxSet
from zerokara.vision.detection.config import Config
from zerokara.vision.detection.detector import Detector, Svm
from zerokara.vision.detection.proposals import Proposals

MEAN_LENGTH = 20.0  # to which vectors are scaled, as in the paper's code
CONSTANT = 10.0  # beside them, whose weight is the bias: so large that the bias is hardly regularised
POSITIVE_WEIGHT = 2.0
HARD = -1.0  # a negative with a margin above this is inside the SVM's street, or on its wrong side
REGRESSED_IOU = 0.6  # appendix C: a proposal that is nearer than this to a true box learns to become it
_FIRST_NEGATIVES = 20  # of a picture, before there is an SVM that could say which are hard


@dataclass(frozen=True)
class Vectors:
    """All training regions, the true boxes of a picture before its proposals."""

    vector: np.ndarray  # (R, D) float32
    picture: np.ndarray  # (R,) its place in the set
    true_label: np.ndarray  # (R,) class of a true box, -1 for proposals
    overlap: np.ndarray  # (R, K) with the best true box of each class
    best_label: np.ndarray  # (R,) class of the true box that fits best
    best_overlap: np.ndarray  # (R,)
    code: np.ndarray  # (R, 4) from region to that box


def all_vectors(
    config: Config,
    detector: Detector,
    boxes: BoxSet,
    proposals: Sequence[Proposals],
    compute: Compute,
    progress: Callable[[int, int], None],
) -> Vectors:
    """What the network makes of every training region; `progress` is told how many pictures are done."""
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
    """Put the SVM and the regression of every class into `svm`. Returns how many negatives each SVM has seen."""
    scale = MEAN_LENGTH / max(float(np.linalg.norm(vectors.vector, axis=1).mean()), 1e-6)
    svm.scale.fill_(scale)
    scaled_RD = vectors.vector * np.float32(scale)
    negatives = {}
    for label, name in enumerate(classes):
        positive = np.flatnonzero(vectors.true_label == label)
        far = np.flatnonzero(vectors.overlap[:, label] < config.svm_background_iou)
        if len(positive) and len(far):
            weight, bias, negatives[name] = _svm(config, scaled_RD, positive, far, vectors.picture)
            svm.weight[label] = torch.from_numpy(weight)
            svm.bias[label] = bias
        near = np.flatnonzero((vectors.best_label == label) & (vectors.best_overlap >= REGRESSED_IOU))
        if len(near):
            regression = Ridge(alpha=max(config.ridge, 1e-6)).fit(vectors.vector[near], vectors.code[near])
            svm.ridge[label, :, :-1] = torch.from_numpy(np.asarray(regression.coef_, np.float32))
            svm.ridge[label, :, -1] = torch.from_numpy(np.asarray(regression.intercept_, np.float32))
    return negatives


def _svm(
    config: Config, scaled_RD: np.ndarray, positive: np.ndarray, far: np.ndarray, picture_R: np.ndarray
) -> tuple[np.ndarray, float, int]:
    """Weights (D,), bias, and the number of negatives after all rounds."""
    rng = np.random.default_rng(config.seed)
    shuffled = rng.permutation(far)
    # The first few of each picture: so no picture with many regions rules.
    order = np.argsort(picture_R[shuffled], kind="stable")
    sorted_pictures = picture_R[shuffled][order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_pictures, sorted_pictures)
    negative = np.sort(shuffled[order[rank < _FIRST_NEGATIVES]])
    weight, bias = np.zeros(scaled_RD.shape[1], np.float32), 0.0
    for _ in range(config.svm_rounds):
        rows = np.concatenate([positive, negative])
        target = np.concatenate([np.ones(len(positive)), -np.ones(len(negative))])
        classifier = LinearSVC(
            C=config.svm_c,
            dual=False,  # the primal problem's solver does not depend on an order at random
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
