"""Selection of a run's hardware settings: measure training steps for the settings that the config leaves at "auto"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from zerokara.core.compute import Compute, Precision, Switch
from zerokara.core.distributed import World


class HardwareSettings(Protocol):
    """Hardware settings that every config has."""

    @property
    def device(self) -> str:
        """Device: auto, cpu, cuda, cuda:<n> or mps."""

    @property
    def precision(self) -> Precision:
        """Precision of the network's arithmetic."""

    @property
    def threads(self) -> int:
        """CPU threads; 0: all usable cores."""


def probe(
    config: HardwareSettings, world: World, train_step: Callable[[Compute], Callable[[], object]], *, compile: Switch
) -> Compute:
    """Call `Compute.choose` with the settings of a config, and restore torch's random generators afterwards.

    Args:
        config: device, precision and threads.
        world: processes of this run, among which the CPU cores are divided.
        train_step: returns, for a candidate, a function that runs one training step with it.
        compile: the config's setting, or "off" for a program that does not become faster by compilation.

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
