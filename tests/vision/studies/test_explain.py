"""Grad-CAM, occlusion and patches, on networks that can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.vision.studies.explain import cut_out, grad_cam, grad_cam_of, most_exciting, occlusion
from zerokara.vision.studies.receptive_fields import Depth, Span, depths_of

CARD = ClassifierMetadata(
    backbone="", head="", classes=("a", "b"), channels=1, image_size=(4, 4), mean=(0.0,), std=(1.0,)
)


def test_grad_cam_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]], [[1.0, 0.0], [3.0, 1.0]]]])
    gradient = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]], [[-2.0, -2.0], [-2.0, -2.0]]]])
    # Weights 1 and -2: 1 - 2, 2 - 0, 0 - 6, 4 - 2, of which the negative ones are left out.
    assert grad_cam(maps, gradient).tolist() == [[[0.0, 2.0], [0.0, 2.0]]]


class Toy(nn.Module):
    """Two maps, the image and its negative; the logit of class k is weight_k of their sums."""

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
    # A sum's gradient is its weight everywhere: 3 relu(x) for class 0, relu(x) + 5 relu(-x) for class 1.
    found = grad_cam_of(Toy(), x, torch.tensor([0, 1]))
    assert found.tolist() == [[[3.0, 0.0], [1.5, 0.0]], [[1.0, 10.0], [0.5, 0.0]]]


def test_grad_cam_is_brought_to_the_images_size() -> None:
    class Pooled(Toy):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.avg_pool2d(x, 2))

    found = grad_cam_of(Pooled(), torch.ones(1, 1, 4, 6), torch.tensor([0]))
    assert found.tolist() == [[[3.0] * 6] * 4]


def test_a_square_counts_where_it_hides_the_one_pixel_that_is_looked_at() -> None:
    x = torch.full((1, 5, 6), 0.25)
    x[0, 2, 3] = 0.75
    left = occlusion(lambda batch: batch[:, 0, 2, 3], x, side=3, step=1, batch_size=7)
    expected = torch.full((5, 6), 0.75)
    expected[1:4, 2:5] = 0.0  # centres within one pixel
    assert torch.equal(left, expected)
    # Even squares reach one pixel further down and to the right: centres 1 and 2 of rows, 2 and 3 of columns hide it.
    left = occlusion(lambda batch: batch[:, 0, 2, 3], x, side=2, step=2)
    assert left.tolist() == [[0.75, 0.75, 0.75], [0.75, 0.0, 0.75], [0.75, 0.75, 0.75]]


def image_set(images: Tensor) -> ImageSet:
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), ("a", "b"), "a test")


def test_the_images_that_excite_most_come_first() -> None:
    images = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    for number, (row, column, value) in enumerate([(0, 1, 51), (3, 3, 255), (2, 0, 102), (1, 2, 204), (0, 0, 0)]):
        images[number, 0, row, column] = value
    network = Toy()
    depths = depths_of(network, (1, 4, 4))
    (found,) = most_exciting(network, CARD, Compute(), image_set(images), depths, [0], most=3, batch_size=2)
    assert found.image_CM[0].tolist() == [1, 3, 2]
    assert found.value_CM[0].tolist() == pytest.approx([1.0, 0.8, 0.4])
    assert found.row_CM[0].tolist() == [3, 1, 2]
    assert found.column_CM[0].tolist() == [3, 2, 0]
    assert found.value_CM[1].tolist() == [0.0, 0.0, 0.0]  # nothing is below black


def test_patches_are_cut_out_as_they_lie() -> None:
    image = torch.arange(1, 21, dtype=torch.uint8).view(1, 4, 5)
    small = Depth("", (1, 4, 5), Span(1, -1, 1), Span(1, 0, 1))
    pixels, seen = cut_out(image, small, 0, 3)
    assert pixels.tolist() == [[[0, 0], [4, 5], [9, 10]]]
    assert seen.tolist() == [[False, False], [True, True], [True, True]]
    pixels, seen = cut_out(image, small, 2, 1)
    assert pixels.tolist() == [[[7, 8], [12, 13], [17, 18]]]
    assert bool(seen.all())


def test_a_field_larger_than_the_image_shows_it_whole() -> None:
    image = torch.arange(1, 21, dtype=torch.uint8).view(1, 4, 5)
    large = Depth("", (1, 2, 5), Span(2, -2, 2), Span(1, -1, 0))
    pixels, seen = cut_out(image, large, 0, 2)  # rows -2 to 2 of 4, columns 1 and 2
    assert pixels.tolist() == [[[2, 3], [7, 8], [12, 13], [17, 18]]]
    assert seen.tolist() == [[True, True]] * 3 + [[False, False]]
