"""Loss functions of one's own by import path: `--loss my_loss.py:focal`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from zerokara.core.config import UserError, error_summary
from zerokara.core.importing import load_callable


def load_loss(path: str) -> Any:
    """Load what an import path names: a function, or an object of the class, which is created without arguments.

    Raises:
        UserError: it cannot be loaded or created.
    """
    target = load_callable(path, "--loss")
    if not isinstance(target, type):
        return target
    try:
        return target()
    except Exception as error:
        raise UserError(
            f"The loss {path} cannot be created ({type(error).__name__}: {error_summary(error)}): its class is called "
            f"without arguments."
        ) from error


def check_loss(name: str, function: Callable[..., Any], *examples: Tensor) -> None:
    """Call a loss function once.

    Args:
        name: of the function, for messages.
        function: takes tensors like the examples.
        examples: the loss must be differentiable with respect to those of floating-point numbers.

    Raises:
        UserError: it raises an exception, or returns something other than a differentiable scalar.
    """
    shapes = ", ".join(f"{tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')}" for x in examples)
    try:
        loss = function(*(x.clone().requires_grad_(x.is_floating_point()) for x in examples))
    except Exception as error:
        raise UserError(
            f"The loss {name} failed on tensors {shapes} ({type(error).__name__}: {error_summary(error)})."
        ) from error
    if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad):
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UserError(
            f"The loss {name} returned {what} for tensors {shapes}: it must return a scalar that depends on them."
        )
