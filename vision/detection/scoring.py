"""Mean average precision by faster-coco-eval, at IoU 0.5 and averaged over IoU 0.5 to 0.95.

Shapes: N images, D detections, n true boxes, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from zerokara.core.data.boxes import BoxSet
from zerokara.vision.detection.detector import Detections


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision from 0 to 1, as in COCO: interpolated at 101 recall values."""

    map_50: float
    """Mean over classes at IoU 0.5."""
    map_50_95: float
    """Mean over classes and IoU thresholds 0.5, 0.55, ... 0.95."""
    by_class: dict[str, float]
    """Average precision at IoU 0.5 of each class that has true boxes."""


def precision(boxes: BoxSet, found: Sequence[Detections]) -> AveragePrecision:
    """Compute COCO's average precision of detections; NaN if there are no true boxes.

    Classes without true boxes are left out of the means. Boxes are in pixels of the original images.
    """
    if not any(boxes.counts.values()):
        return AveragePrecision(math.nan, math.nan, {})
    from faster_coco_eval import COCO, COCOeval_faster  # imported here, because it is slow to import

    truth: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for index, (detected, scale) in enumerate(zip(found, boxes.scales.tolist(), strict=True)):
        for box, label in zip(_as_coco(boxes.boxes[index], scale), boxes.labels[index].tolist(), strict=True):
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        rows = zip(_as_coco(detected.boxes, scale), detected.scores.tolist(), detected.labels.tolist(), strict=True)
        predictions += [
            {"image_id": index + 1, "category_id": label + 1, "bbox": box, "score": score} for box, score, label in rows
        ]
    reference = COCO(
        {
            "images": [{"id": index + 1} for index in range(len(boxes))],
            "annotations": truth,
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(boxes.classes)],
        }
    )
    if not predictions:
        present = [name for name, number in boxes.counts.items() if number]
        return AveragePrecision(0.0, 0.0, dict.fromkeys(present, 0.0))
    evaluation = COCOeval_faster(reference, reference.loadRes(predictions), iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    table = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # IoU, recall, class; all areas; 100 detections
    by_class = {}
    for label, name in enumerate(boxes.classes):
        if (table[0, :, label] > -1).any():
            by_class[name] = float(table[0, :, label].mean())
    present_classes = table[:, :, [boxes.classes.index(name) for name in by_class]]
    return AveragePrecision(float(present_classes[0].mean()), float(present_classes.mean()), by_class)


def _as_coco(boxes_N4: Tensor, scale: float) -> list[list[float]]:
    """Convert boxes to (x, y, width, height) in pixels of the original image."""
    boxes = boxes_N4.double() / scale
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]
