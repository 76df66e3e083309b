"""Loss of one's own: a class with the losses of both networks, by import path.

    class Hinge:
        def discriminator(self, real, fake): ...   # scores (B,) of real and of generated images to a scalar
        def generator(self, fake, real): ...       # likewise

`--loss my_loss.py:Hinge` creates it without arguments.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from zerokara.core.config import UserError, is_import_path
from zerokara.core.custom_loss import check_loss, load_loss


class GanLoss(Protocol):
    """Losses of discriminator and generator (scalars) as functions of scores (B,)."""

    def discriminator(self, real_B: Tensor, fake_B: Tensor) -> Tensor:
        """Return the loss of the discriminator."""

    def generator(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        """Return the loss of the generator."""


@functools.cache
def find_loss(path: str) -> GanLoss:
    """Load the class that an import path names, create its object and call both losses once.

    Raises:
        UserError: it cannot be loaded, has not both methods, or a loss is not a scalar.
        ValueError: the name is not an import path.
    """
    if not is_import_path(path):
        raise ValueError(f"unknown loss {path!r}")
    loss: Any = load_loss(path)
    for name in ("discriminator", "generator"):
        if not callable(getattr(loss, name, None)):
            raise UserError(
                f"{path} has no method {name}: a loss of your own is a class with the methods "
                f"discriminator(real, fake) and generator(fake, real)."
            )
        check_loss(f"{path}.{name}", getattr(loss, name), torch.tensor([0.5, -1.0]), torch.tensor([-0.5, 2.0]))
    return cast(GanLoss, loss)
