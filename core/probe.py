"""The probe of a run: what is fastest here for what it does, within what its config leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from zerokara.core.compute import Compute, Precision, Switch
from zerokara.core.distributed import World


class HardwareSettings(Protocol):
    """What every config says of the hardware."""

    @property
    def device(self) -> str:
        """auto, cpu, cuda, cuda:<n> or mps."""

    @property
    def precision(self) -> Precision:
        """Arithmetic of the network."""

    @property
    def threads(self) -> int:
        """CPU threads, 0 for all there are."""


def probe(
    config: HardwareSettings, world: World, train_step: Callable[[Compute], Callable[[], object]], *, compile: Switch
) -> Compute:
    """`Compute.choose` by training steps, in a corner of the random numbers of their own.

    Args:
        train_step: gives, for a candidate, a function that does one training step with it.
        compile: the config's, or "off" for what does not gain by it.

    Raises:
        UserError: as `Compute.choose`.
    """
    with torch.random.fork_rng():
        return Compute.choose(
            device=config.device,
            precision=config.precision,
            compile=compile,
            threads=config.threads,
            train_step=train_step,
            local_world_size=world.size,
        )
