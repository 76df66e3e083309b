"""Tests of GAN losses and penalties against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from zerokara.generative.dcgan import (
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    interpolate,
    squared_gradient_norm,
)

LOSSES = ("bce", "least-squares", "hinge", "wasserstein", "relativistic")
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
    assert float(discriminator_loss(name, REAL, FAKE)) == pytest.approx(discriminator)
    assert float(generator_loss(name, FAKE, REAL)) == pytest.approx(generator)


def test_unknown_losses_are_refused() -> None:
    for function in (discriminator_loss, generator_loss):
        with pytest.raises(ValueError, match="unknown loss 'none'"):
            function("none", REAL, FAKE)


def test_label_smoothing_changes_only_the_target_of_real_images() -> None:
    pytorch_bce = nn.BCEWithLogitsLoss()
    expected = pytorch_bce(REAL, torch.full((2,), 0.9)) + pytorch_bce(FAKE, torch.zeros(2))
    torch.testing.assert_close(discriminator_loss("bce", REAL, FAKE, 0.1), expected)


def test_bce_equals_pytorchs_and_is_finite_for_large_logits() -> None:
    pytorch_bce = nn.BCEWithLogitsLoss()
    ones = torch.ones(2)
    expected = pytorch_bce(REAL, ones) + pytorch_bce(FAKE, 0 * ones)
    torch.testing.assert_close(discriminator_loss("bce", REAL, FAKE), expected)
    assert float(discriminator_loss("bce", torch.tensor([-500.0]), torch.tensor([500.0]))) == 1000
    logit = torch.tensor([-200.0], requires_grad=True)
    generator_loss("bce", logit).backward()
    assert logit.grad is not None
    assert float(logit.grad) == -1, "the generator gets a gradient even if the discriminator is certain"


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_descent_moves_scores_in_the_right_direction(name: str) -> None:
    real, fake = (torch.zeros(3, requires_grad=True) for _ in range(2))
    discriminator_loss(name, real, fake).backward()
    assert real.grad is not None
    assert (real.grad < 0).all(), "the discriminator must raise real scores"
    if name != "least-squares":  # its target for fake images is 0
        assert fake.grad is not None
        assert (fake.grad > 0).all(), "and lower fake ones"
    fake = torch.zeros(3, requires_grad=True)
    generator_loss(name, fake, torch.zeros(3)).backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all(), "the generator must raise fake scores"


def test_squared_gradient_norm_of_a_linear_score() -> None:
    weight_CHW = torch.tensor([[[1.0, -2.0], [0.5, 0.0]]])
    x_BCHW = torch.randn(3, 1, 2, 2, requires_grad=True)
    assert float(squared_gradient_norm((x_BCHW * weight_CHW).sum((1, 2, 3)), x_BCHW)) == pytest.approx(5.25)


def test_squared_gradient_norm_is_per_image_and_differentiable() -> None:
    """The score a * |x|^2 / 2 has gradient a x; the mean of a^2 |x|^2 has derivative 2 a times the mean of |x|^2."""
    a = torch.tensor(3.0, requires_grad=True)
    x_BCHW = torch.tensor([[[[1.0]]], [[[2.0]]]], requires_grad=True)
    penalty = squared_gradient_norm(a * x_BCHW.square().sum((1, 2, 3)) / 2, x_BCHW)
    assert float(penalty.detach()) == pytest.approx(9 * (1 + 4) / 2)
    (derivative,) = torch.autograd.grad(penalty, a)
    assert float(derivative) == pytest.approx(2 * 3 * 2.5)


@pytest.mark.parametrize(("length", "penalty"), [(1.0, 0.0), (3.0, 4.0), (0.5, 0.25)])
def test_gradient_penalty_is_zero_at_gradient_norm_1(length: float, penalty: float) -> None:
    x_BCHW = torch.randn(4, 1, 2, 2, requires_grad=True)
    weight = torch.full((1, 2, 2), length / 2)
    assert float(gradient_penalty((x_BCHW * weight).sum((1, 2, 3)), x_BCHW)) == pytest.approx(penalty, abs=1e-6)


def test_interpolated_images_are_leaves_on_the_line() -> None:
    real, fake = torch.full((3, 1, 1, 1), 4.0), torch.zeros(3, 1, 1, 1, requires_grad=True)
    middle: Tensor = interpolate(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    assert middle.flatten().tolist() == [0, 1, 4]
    assert middle.is_leaf
    assert middle.requires_grad
