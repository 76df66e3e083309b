"""What discriminator and generator minimise, as pure functions of their scores.

Scores are logits, float32: higher is more real. A `Loss` has two: `discriminator(real_B, fake_B)` and
`generator(real_B, fake_B)`, each a scalar; only the relativistic one looks at real scores in the generator's step.

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
    """A pair of losses that belong together.

    Attributes:
        uses_real_in_generator: whether `generator` looks at its first argument.
        boundary: the score at which real and fake are equally likely; None where only differences of scores mean
            something, and then it is taken to be halfway between the mean scores of the two.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    uses_real_in_generator: bool = False
    boundary: float | None = 0.0

    def right(self, real_B: Tensor, fake_B: Tensor) -> tuple[Tensor, Tensor]:
        """Share of real and of fake images that are told rightly (two scalars)."""
        boundary = (real_B.mean() + fake_B.mean()) / 2 if self.boundary is None else self.boundary
        return (real_B > boundary).float().mean(), (fake_B < boundary).float().mean()


def bce_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Goodfellow et al. 2014, equation 1: -log D(x) - log(1 - D(G(z))), on logits."""
    return F.softplus(-real_B).mean() + F.softplus(fake_B).mean()


def bce_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """The non-saturating form of section 3: -log D(G(z))."""
    return F.softplus(-fake_B).mean()


def smoothed(real_B: Tensor, share: float) -> Tensor:
    """What `bce_discriminator` gains where the aim for real images is 1 - share (Salimans et al. 2016, section 3.4).

    (1 - a) softplus(-D) + a softplus(D) = softplus(-D) + a D.
    """
    return share * real_B.mean()


def least_squares_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Mao et al. 2017, equation 9: targets 1 and 0."""
    return 0.5 * ((real_B - 1).square().mean() + fake_B.square().mean())


def least_squares_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Mao et al. 2017, equation 9: target 1."""
    return 0.5 * (fake_B - 1).square().mean()


def hinge_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Lim and Ye 2017; Miyato et al. 2018, equation 16."""
    return F.relu(1 - real_B).mean() + F.relu(1 + fake_B).mean()


def mean_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """-D(G(z)), the generator's side of hinge (Miyato et al. 2018, equation 17) and Wasserstein."""
    return -fake_B.mean()


def wasserstein_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Arjovsky et al. 2017, algorithm 1; wants `gradient_penalty` beside it."""
    return fake_B.mean() - real_B.mean()


def relativistic_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Jolicoeur-Martineau 2019 in pairs, as R3GAN (Huang et al. 2024, equation 2): softplus(-(D(x) - D(G(z))))."""
    return F.softplus(fake_B - real_B).mean()


def relativistic_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """The same with the sides changed: softplus(-(D(G(z)) - D(x)))."""
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


def squared_slope(score_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """Mean squared norm of the scores' gradient with respect to the images (scalar), itself differentiable.

    R1 of Mescheder et al. 2018, equation 9, without its gamma / 2, where the images are real; R2 where they are fake.
    Every score must depend on its own image alone: with BatchNorm in between this is another quantity.
    """
    (grad_BCHW,) = torch.autograd.grad(score_B.sum(), images_BCHW, create_graph=True)
    return grad_BCHW.float().square().sum((1, 2, 3)).mean()


def gradient_penalty(score_B: Tensor, between_BCHW: Tensor) -> Tensor:
    """Mean of (|gradient| - 1)^2 (scalar), at images between real and fake ones (Gulrajani et al. 2017, equation 3)."""
    (grad_BCHW,) = torch.autograd.grad(score_B.sum(), between_BCHW, create_graph=True)
    norm_B: Tensor = grad_BCHW.float().flatten(1).norm(dim=1)
    return (norm_B - 1).square().mean()


def between(real_BCHW: Tensor, fake_BCHW: Tensor, share_B: Tensor) -> Tensor:
    """Images on the line from fake (share 0) to real (share 1), ready for `gradient_penalty`."""
    share_B111 = share_B.view(-1, 1, 1, 1).to(real_BCHW.dtype)
    return torch.lerp(fake_BCHW.detach().to(real_BCHW.dtype), real_BCHW, share_B111).requires_grad_()
