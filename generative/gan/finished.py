"""Options and helpers shared by the programs that use a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from zerokara.core.config import Positional, Range, UserError, error_summary
from zerokara.generative.gan.sampler import Sampler, weights_file


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that select a run and its generator."""

    run: Annotated[str, Positional("runs/<name>")] = ""
    """Folder of the run."""
    which: Literal["best", "last"] = "best"
    """Generator of the best checkpoint, by its score on held-out images, or of the last one."""
    seed: Annotated[int, Range(0, 10**6)] = 0
    """Seed of the latent vectors. The first ones of a seed do not depend on how many are drawn."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads. 0: all cores."""


def load_sampler(options: Options, program: str) -> Sampler:
    """Load the sampler of the run that the command line names.

    Args:
        program: command of the program, for the error message.

    Raises:
        UserError: no run was named; otherwise as `Sampler.load`.
    """
    if not options.run:
        runs = sorted(path.parent for path in Path("runs").glob(f"*/{weights_file('best')}"))
        raise UserError(f"No run was named: give its folder, as in {program} {runs[0] if runs else 'runs/<name>'}.")
    return Sampler.load(Path(options.run), options.which, device=options.device, threads=options.threads)


def output_path(options: Options, out: str, name: str) -> Path:
    """Return the file to write: `out`, or media/<name> in the run's folder if `out` is empty. Creates its folder.

    Raises:
        UserError: the folder cannot be created, or `out` has another suffix than `name`.
    """
    path = Path(out) if out else Path(options.run) / "media" / name
    suffix = Path(name).suffix
    if path.suffix != suffix:
        raise UserError(f"--out must name a file that ends in {suffix}, got {out!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out cannot be {out!r} ({error_summary(error)}): name a file that can be written.") from None
    return path
