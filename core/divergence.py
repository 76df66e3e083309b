"""Vital signs of what learns: means of the figures of its updates, whether its weights are numbers, what if not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zerokara.core.config import UserError


def read_means(sums: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Means of figures by name, as tensors on the device: nothing waits for it. The sums begin again at 0.

    Args:
        sums: (F + 1,) of F figures over updates, and last the number of updates; where that is 0, so are the means.
        names: F of them.
    """
    means = sums[:-1] / sums[-1].clamp(min=1)
    sums.zero_()
    return dict(zip(names, means, strict=True))


def is_finite(*modules: nn.Module) -> bool:
    """Whether every weight of the modules, and every running mean, is a number. Waits for the device."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def divergence_error(when: str, folder: Path) -> UserError:
    """What to raise where they are not, "update 1,234" of the run in a folder."""
    return UserError(
        f"The loss is no number any more at {when}: the weights have left the range of floats; the last good "
        f"checkpoint stays in {folder}; start again with a lower --learning-rate."
    )
