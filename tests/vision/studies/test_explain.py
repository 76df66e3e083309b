"""Tests of Grad-CAM, occlusion and top activations with networks whose results are known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.vision.studies.explain import compute_grad_cam, crop_receptive_field, grad_cam, occlusion, top_activations
from zerokara.vision.studies.receptive_fields import FeatureMap, Span, feature_maps

METADATA = ClassifierMetadata(
    backbone="", head="pooled", classes=("a", "b"), channels=1, image_size=(4, 4), mean=(0.0,), std=(1.0,)
)


def test_grad_cam_against_hand_computed_values() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]], [[1.0, 0.0], [3.0, 1.0]]]])
    gradient = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]], [[-2.0, -2.0], [-2.0, -2.0]]]])
    # The weights are 1 and -2. The sums are 1 - 2, 2 - 0, 0 - 6, 4 - 2; negative ones become 0.
    assert grad_cam(maps, gradient).tolist() == [[[0.0, 2.0], [0.0, 2.0]]]


class ToyNetwork(nn.Module):
    """Network with two feature maps, the image and its negative. The logits are linear in their sums."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.out = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.out.weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 5.0]]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(F.relu(self.conv(x)).sum((2, 3)))
        return logits


def test_grad_cam_of_a_linear_network() -> None:
    x = torch.tensor([[[[1.0, -2.0], [0.5, 0.0]]]]).repeat(2, 1, 1, 1)
    # The gradient of a sum is constant: 3 relu(x) for class 0, relu(x) + 5 relu(-x) for class 1.
    cam = compute_grad_cam(ToyNetwork(), x, torch.tensor([0, 1]))
    assert cam.tolist() == [[[3.0, 0.0], [1.5, 0.0]], [[1.0, 10.0], [0.5, 0.0]]]


def test_grad_cam_is_upsampled_to_the_size_of_the_image() -> None:
    class Pooled(ToyNetwork):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.avg_pool2d(x, 2))

    cam = compute_grad_cam(Pooled(), torch.ones(1, 1, 4, 6), torch.tensor([0]))
    assert cam.tolist() == [[[3.0] * 6] * 4]


def test_occlusion_of_a_single_pixel() -> None:
    x = torch.full((1, 5, 6), 0.25)
    x[0, 2, 3] = 0.75
    remaining = occlusion(lambda batch: batch[:, 0, 2, 3], x, side=3, step=1, batch_size=7)
    expected = torch.full((5, 6), 0.75)
    expected[1:4, 2:5] = 0.0  # centers within one pixel of it
    assert torch.equal(remaining, expected)
    # A square of even side extends one pixel further down and right: rows 1 and 2, columns 2 and 3 hide the pixel.
    remaining = occlusion(lambda batch: batch[:, 0, 2, 3], x, side=2, step=2)
    assert remaining.tolist() == [[0.75, 0.75, 0.75], [0.75, 0.0, 0.75], [0.75, 0.75, 0.75]]


def image_set(images: Tensor) -> ImageSet:
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), ("a", "b"), "a test")


def test_top_activations_are_in_decreasing_order() -> None:
    images = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    for number, (row, column, value) in enumerate([(0, 1, 51), (3, 3, 255), (2, 0, 102), (1, 2, 204), (0, 0, 0)]):
        images[number, 0, row, column] = value
    network = ToyNetwork()
    maps = feature_maps(network, (1, 4, 4))
    (top,) = top_activations(network, METADATA, Compute(), image_set(images), maps, [0], max_images=3, batch_size=2)
    assert top.image_CM[0].tolist() == [1, 3, 2]
    assert top.value_CM[0].tolist() == pytest.approx([1.0, 0.8, 0.4])
    assert top.row_CM[0].tolist() == [3, 1, 2]
    assert top.column_CM[0].tolist() == [3, 2, 0]
    assert top.value_CM[1].tolist() == [0.0, 0.0, 0.0]  # no pixel is below 0


def test_crop_of_a_receptive_field_at_the_border() -> None:
    image = torch.arange(1, 21, dtype=torch.uint8).view(1, 4, 5)
    small = FeatureMap("", (1, 4, 5), Span(1, -1, 1), Span(1, 0, 1))
    pixels, mask = crop_receptive_field(image, small, 0, 3)
    assert pixels.tolist() == [[[0, 0], [4, 5], [9, 10]]]
    assert mask.tolist() == [[False, False], [True, True], [True, True]]
    pixels, mask = crop_receptive_field(image, small, 2, 1)
    assert pixels.tolist() == [[[7, 8], [12, 13], [17, 18]]]
    assert bool(mask.all())


def test_crop_of_a_receptive_field_larger_than_the_image() -> None:
    image = torch.arange(1, 21, dtype=torch.uint8).view(1, 4, 5)
    large = FeatureMap("", (1, 2, 5), Span(2, -2, 2), Span(1, -1, 0))
    pixels, mask = crop_receptive_field(image, large, 0, 2)  # rows -2 to 2 of 4, columns 1 and 2
    assert pixels.tolist() == [[[2, 3], [7, 8], [12, 13], [17, 18]]]
    assert mask.tolist() == [[True, True]] * 3 + [[False, False]]
