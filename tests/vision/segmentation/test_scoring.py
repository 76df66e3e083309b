"""Tests of losses, class weights, metrics and overlays against values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.data import UNLABELED, MaskSet
from zerokara.vision.segmentation.losses import median_frequency_weights, pixel_loss
from zerokara.vision.segmentation.networks import Segmenter, SegmenterMetadata
from zerokara.vision.segmentation.pictures import draw_overlays, legend, overlay, overlay_indices, palette
from zerokara.vision.segmentation.scoring import PixelScores, count, pixel_scores

NONE = UNLABELED


class FakeSegmenter(Segmenter):
    """Fake network that predicts the value of the first channel as the class, with a logit of 5 (others: 0)."""

    def __init__(self, classes: int) -> None:
        super().__init__(make_backbone("deep_cnn", 3, 16), classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute logits (B, K, H, W)."""
        prediction_BHW = (x_BCHW[:, 0] * 255).round().long()
        return nn.functional.one_hot(prediction_BHW, self.classes).permute(0, 3, 1, 2).float() * 5


def metadata(classes: int) -> SegmenterMetadata:
    names = tuple("abcdefg"[:classes])
    return SegmenterMetadata(
        network="fcn2s", backbone="deep_cnn", classes=names, channels=3, image_size=(2, 2), mean=(0,) * 3, std=(1,) * 3
    )


def score(classes: int, images: MaskSet, *parts: slice, **options: Any) -> PixelScores:
    """Evaluate parts of the images, as processes do; by default all at once."""
    chosen = [images.take(part) for part in parts or (slice(len(images)),)]
    counts = [count(FakeSegmenter(classes), metadata(classes), Compute(), part, **options) for part in chosen]
    return pixel_scores(counts, images)


def make_set(predictions: list[list[list[int]]], masks: list[list[list[int]]], classes: int) -> MaskSet:
    images = torch.tensor(predictions, dtype=torch.uint8)[:, None].repeat(1, 3, 1, 1)
    labels = torch.tensor(masks, dtype=torch.uint8)
    return MaskSet(images, labels, metadata(classes).classes, tuple(map(str, range(len(masks)))), "made up")


def test_unlabeled_pixels_are_not_in_the_loss() -> None:
    logits = torch.tensor([[[[2.0, -9.0, 0.0]], [[0.0, 9.0, 0.0]]]], requires_grad=True)
    target = torch.tensor([[[0, NONE, 1]]])
    loss = pixel_loss(logits, target)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, :, 0, 1].tolist() == [0, 0]
    weighted = pixel_loss(logits, target, torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx((3 * math.log(1 + math.exp(-2)) + math.log(2)) / 4)
    for weight in (None, torch.ones(2)):
        loss_without_labels = pixel_loss(logits, torch.full_like(target, NONE), weight)
        assert loss_without_labels.item() == 0


def test_median_frequency_weights_against_values_by_hand() -> None:
    """Two images of 4 labeled pixels. Class 0: 6 of 8 pixels; 1: 1 of the 4 in its image; 2: 1 of 4; 3: none."""
    masks = torch.tensor([[[0, 0, 0], [1, NONE, NONE]], [[0, 0, 0], [2, NONE, NONE]]], dtype=torch.uint8)
    assert median_frequency_weights(masks, 4).tolist() == pytest.approx([1 / 3, 1, 1, 0])
    assert median_frequency_weights(masks, 4, power=0.5).tolist() == pytest.approx([3**-0.5, 1, 1, 0])
    assert median_frequency_weights(masks, 4, power=0).tolist() == [1, 1, 1, 0]


def test_metrics_against_values_by_hand() -> None:
    """Correct: two of three pixels of a, the only one of b. c is predicted once but in no label; d is in neither."""
    images = make_set([[[0, 0], [2, 1]], [[1, 1], [1, 1]]], [[[0, 0], [0, 1]], [[NONE, NONE], [NONE, NONE]]], 4)
    scores = score(4, images, batch_size=1, prediction_indices=[1])
    assert scores.accuracy == pytest.approx(3 / 4)
    assert scores.recall_K[:2].tolist() == pytest.approx([2 / 3, 1])
    assert scores.class_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert scores.iou_K[:3].tolist() == pytest.approx([2 / 3, 1, 0])
    assert math.isnan(scores.iou_K[3])
    assert scores.mean_iou == pytest.approx((2 / 3 + 1) / 3)
    assert scores.iou_by_class(("a", "b", "c", "d")).keys() == {"a", "b", "c"}
    assert scores.confusion_KK.tolist() == [[2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    loss_correct, loss_wrong = math.log(1 + 3 * math.exp(-5)), math.log(math.exp(5) + 3)
    assert scores.loss == pytest.approx((3 * loss_correct + loss_wrong) / 4, rel=1e-5)
    assert scores.prediction_NHW.tolist() == [[[1, 1], [1, 1]]]


def test_metrics_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(1)
    masks = torch.randint(3, (7, 6, 8), dtype=torch.uint8)
    predictions = torch.where(torch.rand(masks.shape) < 0.7, masks, torch.randint(3, masks.shape, dtype=torch.uint8))
    masks[:, 0] = NONE
    images = make_set(predictions.tolist(), masks.tolist(), 3)
    one, three = (score(3, images, batch_size=size) for size in (7, 3))
    assert torch.equal(one.confusion_KK, three.confusion_KK)
    assert one.metrics() == pytest.approx(three.metrics())
    assert int(one.confusion_KK.sum()) == 7 * 5 * 8
    confusion = one.confusion_KK.double()
    iou = confusion.diag() / (confusion.sum(0) + confusion.sum(1) - confusion.diag())
    assert one.iou_K.tolist() == pytest.approx(iou.tolist(), rel=1e-6)
    parts = score(3, images, slice(2), slice(2, 5), slice(5, 7))
    assert torch.equal(parts.confusion_KK, one.confusion_KK)
    assert torch.equal(parts.iou_K, one.iou_K)
    assert torch.equal(parts.recall_K, one.recall_K)
    assert parts.metrics() == pytest.approx(one.metrics(), rel=1e-6)
    mirrored = score(3, images, views=2)
    assert torch.equal(mirrored.confusion_KK, one.confusion_KK), (
        "the prediction of the flipped image was not flipped back"
    )


def test_overlays() -> None:
    colors = palette(("a", "b"))
    assert colors[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]  # palette of PASCAL VOC
    image = torch.full((2, 2, 3), 100, dtype=torch.uint8).numpy()
    mask = torch.tensor([[0, 1], [NONE, 1]], dtype=torch.uint8).numpy()
    blended = overlay(image, mask, colors, 0.5)
    assert blended.tolist() == [[[50, 50, 50], [114, 50, 50]], [[100, 100, 100], [114, 50, 50]]]
    assert overlay(image[..., :1], mask, colors, 0.0).tolist() == image.tolist()
    strip = legend(("sky", "a rather long name", "road"), 120, colors)
    assert strip.shape[1:] == (120, 3)
    assert strip.shape[0] > legend(("sky",), 120, colors).shape[0]
    images = make_set([[[0, 1]] * 8] * 9, [[[0, NONE]] * 8] * 9, 2)
    indices = overlay_indices(images)
    assert indices == [0, 1, 3, 4, 6, 7]
    rows = draw_overlays(images, images.masks[indices], indices)
    assert rows.shape[1] == 3 * 2 + 2 * 2
