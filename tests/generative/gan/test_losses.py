"""What the two minimise, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from zerokara.generative.gan.losses import (
    LOSSES,
    gradient_penalty,
    interpolate,
    label_smoothing_term,
    squared_gradient_norm,
)

REAL, FAKE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        (
            "bce",
            (softplus(-2) + softplus(1)) / 2 + (softplus(0.5) + softplus(-3)) / 2,
            (softplus(-0.5) + softplus(3)) / 2,
        ),
        ("least-squares", 0.5 * ((1 + 4) / 2 + (0.25 + 9) / 2), 0.5 * (0.25 + 16) / 2),
        ("hinge", (0 + 2) / 2 + (1.5 + 0) / 2, 1.25),
        ("wasserstein", -1.25 - 0.5, 1.25),
        ("relativistic", (softplus(-1.5) + softplus(-2)) / 2, (softplus(1.5) + softplus(2)) / 2),
    ],
)
def test_losses_by_hand(name: str, discriminator: float, generator: float) -> None:
    loss = LOSSES[name]
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx(discriminator)
    assert float(loss.generator(REAL, FAKE)) == pytest.approx(generator)


def test_smoothing_moves_the_aim_for_real_images_alone() -> None:
    theirs = nn.BCEWithLogitsLoss()
    expected = theirs(REAL, torch.full((2,), 0.9)) + theirs(FAKE, torch.zeros(2))
    torch.testing.assert_close(LOSSES["bce"].discriminator(REAL, FAKE) + label_smoothing_term(REAL, 0.1), expected)


def test_bce_is_torchs_own_and_stays_finite_where_a_sigmoid_is_1() -> None:
    theirs = nn.BCEWithLogitsLoss()
    ones = torch.ones(2)
    expected = theirs(REAL, ones) + theirs(FAKE, 0 * ones)
    torch.testing.assert_close(LOSSES["bce"].discriminator(REAL, FAKE), expected)
    assert float(LOSSES["bce"].discriminator(torch.tensor([-500.0]), torch.tensor([500.0]))) == 1000
    lost = torch.tensor([-200.0], requires_grad=True)
    LOSSES["bce"].generator(REAL, lost).backward()
    assert lost.grad is not None
    assert float(lost.grad) == -1, "a generator that is found out for certain still learns"


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_the_slope_moves_scores_the_right_way(name: str) -> None:
    real, fake = (torch.zeros(3, requires_grad=True) for _ in range(2))
    LOSSES[name].discriminator(real, fake).backward()
    assert real.grad is not None
    assert (real.grad < 0).all(), "the discriminator raises real scores"
    if name != "least-squares":  # at 0, which is its target for painted images
        assert fake.grad is not None
        assert (fake.grad > 0).all(), "and lowers painted ones"
    fake = torch.zeros(3, requires_grad=True)
    LOSSES[name].generator(torch.zeros(3), fake).backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all(), "the generator raises painted ones"


@pytest.mark.parametrize(
    ("name", "real", "fake"),
    [("bce", 0.5, 0.5), ("hinge", 0.5, 0.5), ("least-squares", 0.5, 0.5), ("wasserstein", 0.5, 0.5)],
)
def test_accuracy_by_hand(name: str, real: float, fake: float) -> None:
    """Halfway between the means is -0.375."""
    told = LOSSES[name].accuracies(REAL, FAKE)
    assert [float(share) for share in told] == [real, fake]


def test_accuracy_counts_from_the_losses_own_boundary() -> None:
    real, fake = torch.tensor([0.9, 1.1]), torch.tensor([0.1, 0.2])
    assert [float(share) for share in LOSSES["least-squares"].accuracies(real, fake)] == [1, 1]
    assert [float(share) for share in LOSSES["bce"].accuracies(real, fake)] == [1, 0]
    for name in ("wasserstein", "relativistic"):  # where a constant on all scores changes nothing
        assert [float(share) for share in LOSSES[name].accuracies(real + 7, fake + 7)] == [1, 1]


def test_squared_slope_of_a_linear_score_is_its_weights_squared() -> None:
    weight_CHW = torch.tensor([[[1.0, -2.0], [0.5, 0.0]]])
    x_BCHW = torch.randn(3, 1, 2, 2, requires_grad=True)
    assert float(squared_gradient_norm((x_BCHW * weight_CHW).sum((1, 2, 3)), x_BCHW)) == pytest.approx(5.25)


def test_squared_slope_of_a_square_is_of_each_image_and_can_be_derived() -> None:
    """Score a * |x|^2 / 2 has the gradient a x: mean of a^2 |x|^2, and 2 a times the mean of |x|^2 for a."""
    a = torch.tensor(3.0, requires_grad=True)
    x_BCHW = torch.tensor([[[[1.0]]], [[[2.0]]]], requires_grad=True)
    slope = squared_gradient_norm(a * x_BCHW.square().sum((1, 2, 3)) / 2, x_BCHW)
    assert float(slope.detach()) == pytest.approx(9 * (1 + 4) / 2)
    (derivative,) = torch.autograd.grad(slope, a)
    assert float(derivative) == pytest.approx(2 * 3 * 2.5)


@pytest.mark.parametrize(("length", "penalty"), [(1.0, 0.0), (3.0, 4.0), (0.5, 0.25)])
def test_gradient_penalty_wants_a_slope_of_1(length: float, penalty: float) -> None:
    x_BCHW = torch.randn(4, 1, 2, 2, requires_grad=True)
    weight = torch.full((1, 2, 2), length / 2)
    assert float(gradient_penalty((x_BCHW * weight).sum((1, 2, 3)), x_BCHW)) == pytest.approx(penalty, abs=1e-6)


def test_between_lies_on_the_line_and_leads_back_to_nobody() -> None:
    real, fake = torch.full((3, 1, 1, 1), 4.0), torch.zeros(3, 1, 1, 1, requires_grad=True)
    middle: Tensor = interpolate(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    assert middle.flatten().tolist() == [0, 1, 4]
    assert middle.is_leaf
    assert middle.requires_grad
