"""GAN losses and gradient penalties, as pure functions of the discriminator's scores.

Scores are logits, float32; higher means more real. A `Loss` has two functions, `discriminator(real_B, fake_B)` and
`generator(real_B, fake_B)`, that return scalars. Only the relativistic generator loss uses the real scores.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """The losses of discriminator and generator.

    Attributes:
        uses_real_in_generator: True if `generator` uses its first argument.
        boundary: score at which real and fake are equally likely. None if only differences of scores are meaningful;
            then it is the midpoint of the mean scores of real and fake images.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    uses_real_in_generator: bool = False
    boundary: float | None = 0.0

    def accuracies(self, real_B: Tensor, fake_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fractions of real and of fake images that are classified correctly (two scalars)."""
        boundary = (real_B.mean() + fake_B.mean()) / 2 if self.boundary is None else self.boundary
        return (real_B > boundary).float().mean(), (fake_B < boundary).float().mean()


def bce_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Binary cross-entropy, Goodfellow et al. 2014, equation 1: -log D(x) - log(1 - D(G(z))), on logits."""
    return F.softplus(-real_B).mean() + F.softplus(fake_B).mean()


def bce_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Non-saturating generator loss, Goodfellow et al. 2014, section 3: -log D(G(z))."""
    return F.softplus(-fake_B).mean()


def label_smoothing_term(real_B: Tensor, smoothing: float) -> Tensor:
    """Return the term that adds one-sided label smoothing to `bce_discriminator` (Salimans et al. 2016, section 3.4).

    The target for real images becomes 1 - a: (1 - a) softplus(-D) + a softplus(D) = softplus(-D) + a D.
    """
    return smoothing * real_B.mean()


def least_squares_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """LSGAN, Mao et al. 2017, equation 9: targets 1 and 0."""
    return 0.5 * ((real_B - 1).square().mean() + fake_B.square().mean())


def least_squares_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """LSGAN, Mao et al. 2017, equation 9: target 1."""
    return 0.5 * (fake_B - 1).square().mean()


def hinge_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Hinge loss, Lim and Ye 2017; Miyato et al. 2018, equation 16."""
    return F.relu(1 - real_B).mean() + F.relu(1 + fake_B).mean()


def mean_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Generator loss -D(G(z)) of the hinge loss (Miyato et al. 2018, equation 17) and of WGAN."""
    return -fake_B.mean()


def wasserstein_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """WGAN critic loss, Arjovsky et al. 2017, algorithm 1. Add `gradient_penalty` to bound its slope."""
    return fake_B.mean() - real_B.mean()


def relativistic_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Relativistic pairing loss (Jolicoeur-Martineau 2019; R3GAN, Huang et al. 2024, equation 2).

    softplus(-(D(x) - D(G(z)))).
    """
    return F.softplus(fake_B - real_B).mean()


def relativistic_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Relativistic pairing loss of the generator: softplus(-(D(G(z)) - D(x)))."""
    return F.softplus(real_B - fake_B).mean()


LOSSES: dict[str, Loss] = {
    "bce": Loss(bce_discriminator, bce_generator),
    "least-squares": Loss(least_squares_discriminator, least_squares_generator, boundary=0.5),
    "hinge": Loss(hinge_discriminator, mean_generator),
    "wasserstein": Loss(wasserstein_discriminator, mean_generator, boundary=None),
    "relativistic": Loss(
        relativistic_discriminator, relativistic_generator, uses_real_in_generator=True, boundary=None
    ),
}


def squared_gradient_norm(score_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """Mean squared norm of the gradient of the scores with respect to the images (scalar, differentiable).

    At real images it is the R1 penalty of Mescheder et al. 2018, equation 9, without the factor gamma / 2; at fake
    images it is R2. Every score must depend on its own image alone, so BatchNorm in the discriminator is not allowed.
    """
    (grad_BCHW,) = torch.autograd.grad(score_B.sum(), images_BCHW, create_graph=True)
    return grad_BCHW.float().square().sum((1, 2, 3)).mean()


def gradient_penalty(score_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """WGAN-GP penalty: mean of (|gradient| - 1)^2 (scalar), Gulrajani et al. 2017, equation 3."""
    (grad_BCHW,) = torch.autograd.grad(score_B.sum(), images_BCHW, create_graph=True)
    norm_B: Tensor = grad_BCHW.float().flatten(1).norm(dim=1)
    return (norm_B - 1).square().mean()


def interpolate(real_BCHW: Tensor, fake_BCHW: Tensor, fraction_B: Tensor) -> Tensor:
    """Interpolate between fake (fraction 0) and real (fraction 1) images, as leaves for `gradient_penalty`."""
    fraction_B111 = fraction_B.view(-1, 1, 1, 1).to(real_BCHW.dtype)
    return torch.lerp(fake_BCHW.detach().to(real_BCHW.dtype), real_BCHW, fraction_B111).requires_grad_()
