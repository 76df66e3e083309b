"""Training diagnostics: mean metrics of updates, a check for NaN and Inf in the weights, the error on divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zerokara.core.config import UserError


def pop_means(sums: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the means of metrics by name and reset the sums to 0. Does not synchronize with the device.

    Args:
        sums: (M + 1,) sums of M metrics over updates, and last the number of updates. If it is 0, the means are 0.
        names: names of the M metrics.
    """
    means = sums[:-1] / sums[-1].clamp(min=1)
    sums.zero_()
    return dict(zip(names, means, strict=True))


def has_finite_weights(*modules: nn.Module) -> bool:
    """Return True if all parameters and buffers of the modules are finite. Synchronizes with the device."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def check_finite_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that the weights of a file are finite.

    Args:
        tensors: of the file, by name.
        path: of the file, for the message.

    Raises:
        UserError: a weight is NaN or Inf.
    """
    for name, tensor in tensors.items():
        # PyTorch has no isfinite for 8-bit floats.
        wide = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
        if not wide.isfinite().all():
            raise UserError(
                f"{path} has non-finite weights (NaN or Inf) in {name}: give a file that was saved before the training "
                f"diverged."
            )


def check_finite(module: nn.Module, when: str, folder: Path) -> None:
    """Check that all parameters and buffers are finite. Synchronizes with the device.

    Args:
        module: network that is trained.
        when: as in `divergence_error`.
        folder: folder of the run.

    Raises:
        UserError: training diverged: the weights contain NaN or Inf.
    """
    if not has_finite_weights(module):
        raise divergence_error(when, folder)


def divergence_error(when: str, folder: Path) -> UserError:
    """Return the error to raise when training has diverged.

    Args:
        when: when it was noticed ("update 1,234").
        folder: folder of the run.
    """
    return UserError(
        f"Training diverged at {when}: the weights contain NaN or Inf; the last good checkpoint is in {folder}; "
        f"start a new run with a lower --learning-rate."
    )
