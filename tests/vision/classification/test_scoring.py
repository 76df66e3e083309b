"""Tests of scores against hand-computed values and scikit-learn, and of test-time augmentation."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch import Tensor, nn

from zerokara.core.backbones.base import Backbone
from zerokara.core.compute import Compute
from zerokara.core.data import ImageSet
from zerokara.core.models.classifier import Classifier, ClassifierMetadata
from zerokara.vision.classification.scoring import Scores, augmented_views, predict_probabilities, score

METADATA = ClassifierMetadata(
    backbone="resnet8",
    head="paper",
    classes=("dark", "light", "odd"),
    channels=1,
    image_size=(8, 8),
    mean=(0.2,),
    std=(0.5,),
    options={"width": 0.25},
)


def images(number: int = 10) -> Tensor:
    return torch.randint(256, (number, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def network() -> Classifier:
    """Return a network whose BatchNorm statistics are not those of the images, so that evaluation mode matters."""
    classifier = METADATA.build()
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.get_buffer("running_mean"), -0.3, 0.3)
            nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 2.0)
    return classifier


class Corners(nn.Module):
    """Head with logits that are easy to compute: two normalized corner pixels of the image, and zero."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.stack([x_BCHW[:, 0, 0, 0], x_BCHW[:, 0, 0, -1], torch.zeros(len(x_BCHW))], 1)


class IdentityBackbone(Backbone):
    """Backbone that returns the images unchanged."""

    def stages(self, x: Tensor) -> list[Tensor]:
        return [x]


def corners() -> Classifier:
    return Classifier(IdentityBackbone(1, 8), Corners(), 3)


def test_scores_against_hand_computed_values() -> None:
    """Four images, of which two are classified correctly."""
    probability = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.25, 0.35, 0.4]])
    scores = Scores(probability, torch.tensor([0, 1, 2, 1]))
    assert scores.prediction_N.tolist() == [0, 1, 1, 2]
    assert scores.error == 0.5
    assert scores.loss == pytest.approx(-(math.log(0.7) + math.log(0.5) + math.log(0.3) + math.log(0.35)) / 4)
    assert scores.confusion_KK.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]


def test_loss_of_a_probability_of_zero_is_finite() -> None:
    scores = Scores(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]))
    assert scores.loss == pytest.approx(-math.log(1e-12) / 2)


def test_scores_equal_those_of_scikit_learn() -> None:
    probability, label = torch.randn(300, 7).mul(2).softmax(1), torch.randint(6, (300,))  # no image has the last class
    scores = Scores(probability, label)
    assert scores.error == pytest.approx(1 - accuracy_score(label, scores.prediction_N))
    reference = log_loss(label, probability.double() / probability.double().sum(1, keepdim=True), labels=range(7))
    assert scores.loss == pytest.approx(reference, rel=1e-6)
    assert scores.confusion_KK.tolist() == confusion_matrix(label, scores.prediction_N, labels=range(7)).tolist()


def test_probabilities_against_hand_computed_values() -> None:
    """Corner pixels 51 and 255 are 0.2 and 1.0, normalized 0.0 and 1.6. The logits are these and 0."""
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    pixels[0, 0, 0, 0], pixels[0, 0, 0, -1] = 51, 255
    total = 2 + math.exp(1.6)
    expected = torch.tensor([[1 / total, math.exp(1.6) / total, 1 / total]])
    torch.testing.assert_close(predict_probabilities(corners(), METADATA, Compute(), pixels), expected)
    # The flipped image has the first two logits exchanged. Probabilities are averaged, not logits.
    both = (expected + expected[:, [1, 0, 2]]) / 2
    torch.testing.assert_close(predict_probabilities(corners(), METADATA, Compute(), pixels, views=2), both)


def test_views_are_shifts_by_one_pixel_and_horizontal_flips() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    (same,) = augmented_views(x, 1)
    assert torch.equal(same, x)
    first, second = augmented_views(x, 2)
    assert torch.equal(first, x)
    assert torch.equal(second, x.flip(3))
    five = augmented_views(x, 5)
    assert torch.equal(five[0], x)
    down, right = torch.cat([x[:, :, :1], x[:, :, :-1]], 2), torch.cat([x[..., :1], x[..., :-1]], 3)
    up, left = torch.cat([x[:, :, 1:], x[:, :, -1:]], 2), torch.cat([x[..., 1:], x[..., -1:]], 3)
    for expected in (up, down, left, right):  # edge pixels are replicated
        assert sum(torch.equal(view, expected) for view in five) == 1
    assert len(five) == 5
    ten = augmented_views(x, 10)
    assert len(ten) == 10
    for view, mirrored in zip(ten[:5], ten[5:], strict=True):
        assert torch.equal(mirrored, view.flip(3))
    assert all(torch.equal(a, b) for a, b in zip(ten[:5], five, strict=True))


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_do_not_depend_on_the_other_images_of_the_batch(views: int) -> None:
    classifier, pixels = network(), images()
    together = predict_probabilities(classifier, METADATA, Compute(), pixels, views=views)
    alone = torch.cat(
        [predict_probabilities(classifier, METADATA, Compute(), pixels[i : i + 1], views=views) for i in range(10)]
    )
    torch.testing.assert_close(together, alone)
    in_threes = predict_probabilities(classifier, METADATA, Compute(), pixels, views=views, batch_size=3)
    torch.testing.assert_close(together, in_threes)
    torch.testing.assert_close(together.sum(1), torch.ones(10))
    assert together.std(0).min() > 1e-4, "the network gives the same output for all images, which would prove nothing"


def test_scoring_does_not_change_the_network() -> None:
    classifier = network()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    for mode in (True, False):
        classifier.train(mode)
        probabilities = predict_probabilities(classifier, METADATA, Compute(), images())
        assert classifier.training is mode
        assert not probabilities.requires_grad
        assert probabilities.dtype is torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_score_uses_labels_views_and_metadata() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    pixels = ImageSet(images(), labels, METADATA.classes, "noise")
    scores = score(corners(), METADATA, Compute(), pixels, views=5, batch_size=4)
    assert torch.equal(scores.label_N, labels)
    assert torch.equal(
        scores.probability_NK, predict_probabilities(corners(), METADATA, Compute(), images(), views=5, batch_size=4)
    )
    other = dataclasses.replace(METADATA, mean=(0.9,))
    assert not torch.equal(score(corners(), other, Compute(), pixels).probability_NK, scores.probability_NK)


def test_bfloat16_is_close_to_float32() -> None:
    classifier = network()
    exact = predict_probabilities(classifier, METADATA, Compute(), images())
    compute = Compute(precision="bfloat16", channels_last=True)
    rounded = predict_probabilities(compute.module(classifier), METADATA, compute, images())
    assert rounded.dtype is torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.0)
