"""Options of the programs that use a trained generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from zerokara.core.config import Positional, Range


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that select a run and its generator."""

    run: Annotated[str, Positional("runs/<name>")] = ""
    """Folder of the run, file of a generator, or name of a generator in the zoo."""
    which: Literal["best", "last"] = "best"
    """Generator of the best checkpoint, by its score on held-out images, or of the last one."""
    seed: Annotated[int, Range(0, 10**6)] = 0
    """Seed of the latent vectors. The first ones of a seed do not depend on how many are drawn."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads. 0: all cores."""
