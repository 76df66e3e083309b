"""What the programs about a finished run share: which run, which moment of it, and where their files go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from zerokara.core.config import Positional, Range, UserError, error_summary
from zerokara.generative.gan.sampler import Painter, weights_file


@dataclass(frozen=True, kw_only=True)
class Options:
    """Whose pictures, and by what."""

    run: Annotated[str, Positional("runs/<name>")] = ""
    """Folder of the run."""
    which: Literal["best", "last"] = "best"
    """The generator of its best moment, by the score on held-out images, or of its last."""
    seed: Annotated[int, Range(0, 10**6)] = 0
    """Which latents are drawn: the same seed gives the same ones, and the first of them however many there are."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def painter_of(options: Options, program: str) -> Painter:
    """The painter of the run that a command line names.

    Args:
        program: what to type, for the message.

    Raises:
        UserError: none is named; otherwise as `Painter.load`.
    """
    if not options.run:
        known = sorted(path.parent for path in Path("runs").glob(f"*/{weights_file('best')}"))
        raise UserError(f"No run was named: give its folder, as in {program} {known[0] if known else 'runs/<name>'}.")
    return Painter.load(Path(options.run), options.which, device=options.device, threads=options.threads)


def place(options: Options, out: str, name: str) -> Path:
    """The file to write: what --out names, else media/<name> in the run's folder; the folder above it is made.

    Raises:
        UserError: it cannot be made, or --out has another ending.
    """
    path = Path(out) if out else Path(options.run) / "media" / name
    suffix = Path(name).suffix
    if path.suffix != suffix:
        raise UserError(f"--out names a file that ends in {suffix}, got {out!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out cannot be {out!r} ({error_summary(error)}): name a file that can be written.") from None
    return path
