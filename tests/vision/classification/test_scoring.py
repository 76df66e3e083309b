"""Scores against hand-computed numbers and scikit-learn; the views of test-time augmentation; no batch-mates."""

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
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import ClassifierMetadata
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
    """Normalisation with statistics of its own, so that evaluation mode matters."""
    classifier = METADATA.build()
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.get_buffer("running_mean"), -0.3, 0.3)
            nn.init.uniform_(layer.get_buffer("running_var"), 0.5, 2.0)
    return classifier


class Corners(nn.Module):
    """Logits that can be worked out by hand: two corners of the image and zero, as the card normalises them."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.stack([x_BCHW[:, 0, 0, 0], x_BCHW[:, 0, 0, -1], torch.zeros(len(x_BCHW))], 1)


class Same(Backbone):
    """Gives images as they are."""

    def stages(self, x: Tensor) -> list[Tensor]:
        return [x]


def corners() -> Classifier:
    return Classifier(Same(1, 8), Corners(), 3)


def test_scores_by_hand() -> None:
    """Four images: two right, of which one only just, and two taken for each other."""
    probability = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.25, 0.35, 0.4]])
    scores = Scores(probability, torch.tensor([0, 1, 2, 1]))
    assert scores.prediction_N.tolist() == [0, 1, 1, 2]
    assert scores.error == 0.5
    assert scores.loss == pytest.approx(-(math.log(0.7) + math.log(0.5) + math.log(0.3) + math.log(0.35)) / 4)
    assert scores.confusion_KK.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]


def test_an_impossible_label_costs_much_but_not_everything() -> None:
    scores = Scores(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]))
    assert scores.loss == pytest.approx(-math.log(1e-12) / 2)


def test_scores_are_scikit_learns() -> None:
    probability, label = torch.randn(300, 7).mul(2).softmax(1), torch.randint(6, (300,))  # nobody is of the last class
    scores = Scores(probability, label)
    assert scores.error == pytest.approx(1 - accuracy_score(label, scores.prediction_N))
    reference = log_loss(label, probability.double() / probability.double().sum(1, keepdim=True), labels=range(7))
    assert scores.loss == pytest.approx(reference, rel=1e-6)
    assert scores.confusion_KK.tolist() == confusion_matrix(label, scores.prediction_N, labels=range(7)).tolist()


def test_probabilities_by_hand() -> None:
    """Corners 51 and 255 are 0.2 and 1.0, normalised 0.0 and 1.6; the logits are these and 0."""
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    pixels[0, 0, 0, 0], pixels[0, 0, 0, -1] = 51, 255
    whole = 2 + math.exp(1.6)
    expected = torch.tensor([[1 / whole, math.exp(1.6) / whole, 1 / whole]])
    torch.testing.assert_close(predict_probabilities(corners(), METADATA, Compute(), pixels), expected)
    # Its mirror image has the first two the other way round: probabilities are averaged, not logits.
    both = (expected + expected[:, [1, 0, 2]]) / 2
    torch.testing.assert_close(predict_probabilities(corners(), METADATA, Compute(), pixels, views=2), both)


def test_views_are_shifts_by_a_pixel_and_mirror_images() -> None:
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
    for wanted in (up, down, left, right):  # the edge goes on
        assert sum(torch.equal(view, wanted) for view in five) == 1
    assert len(five) == 5
    ten = augmented_views(x, 10)
    assert len(ten) == 10
    for view, mirrored in zip(ten[:5], ten[5:], strict=True):
        assert torch.equal(mirrored, view.flip(3))
    assert all(torch.equal(a, b) for a, b in zip(ten[:5], five, strict=True))


@pytest.mark.parametrize("views", [1, 10])
def test_an_images_probabilities_do_not_depend_on_its_batch_mates(views: int) -> None:
    classifier, pixels = network(), images()
    together = predict_probabilities(classifier, METADATA, Compute(), pixels, views=views)
    alone = torch.cat(
        [predict_probabilities(classifier, METADATA, Compute(), pixels[i : i + 1], views=views) for i in range(10)]
    )
    torch.testing.assert_close(together, alone)
    in_threes = predict_probabilities(classifier, METADATA, Compute(), pixels, views=views, batch_size=3)
    torch.testing.assert_close(together, in_threes)
    torch.testing.assert_close(together.sum(1), torch.ones(10))
    assert together.std(0).min() > 1e-4, "all images look alike to it, which would show nothing"


def test_scoring_leaves_the_network_as_it_was() -> None:
    classifier = network()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    for mode in (True, False):
        classifier.train(mode)
        found = predict_probabilities(classifier, METADATA, Compute(), images())
        assert classifier.training is mode
        assert not found.requires_grad
        assert found.dtype is torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_scores_of_a_set_are_probabilities_beside_labels() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    pixels = ImageSet(images(), labels, METADATA.classes, "noise")
    scores = score(corners(), METADATA, Compute(), pixels, views=5, batch_size=4)
    assert torch.equal(scores.label_N, labels)
    assert torch.equal(
        scores.probability_NK, predict_probabilities(corners(), METADATA, Compute(), images(), views=5, batch_size=4)
    )
    other = dataclasses.replace(METADATA, mean=(0.9,))
    assert not torch.equal(score(corners(), other, Compute(), pixels).probability_NK, scores.probability_NK)


def test_half_the_bits_give_nearly_the_same() -> None:
    classifier = network()
    exact = predict_probabilities(classifier, METADATA, Compute(), images())
    compute = Compute(precision="bfloat16", channels_last=True)
    rounded = predict_probabilities(compute.module(classifier), METADATA, compute, images())
    assert rounded.dtype is torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.0)
