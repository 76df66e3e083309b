"""Functions shared by the programs that use a trained generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerokara.core.config import UserError, error_summary
from zerokara.core.run import Run
from zerokara.core.zoo import registry as zoo
from zerokara.generative.gan.options import Options
from zerokara.generative.gan.sampler import Sampler, find_generator, weights_file


def load_sampler(options: Options, program: str) -> Sampler:
    """Load the sampler of the run, file or generator of the zoo that the command line names.

    Args:
        program: command of the program, for the error message.

    Raises:
        UserError: nothing was named, or --which last with a file, which has one generator; else as `Sampler.load`.
    """
    if not options.run:
        runs = sorted(path.parent for path in Path("runs").glob(f"*/{weights_file('best')}"))
        known = zoo.files("generators")
        example = next(iter([*runs, *known, "runs/<name>"]))
        named = f" or a name in the zoo ({', '.join(known)})" if known else ""
        raise UserError(f"No run was named: give its folder{named}, as in {program} {example}.")
    source = find_generator(options.run)
    if options.which == "last" and source.is_file():
        raise UserError(f"--which last selects a generator of a run folder, and {options.run} is one file: remove it.")
    return Sampler.load(source, options.which, device=options.device, threads=options.threads)


def run_extra(sampler: Sampler) -> Mapping[str, Any]:
    """Return `extra` of the run's config.json; of a file, only the provenance of the pretrained backbone."""
    if sampler.source.is_dir():
        return dict(Run.read_config(sampler.source)["extra"])
    own_and_backbone = list(sampler.origin)  # empty in files of older releases
    return {"origin": own_and_backbone[1:]} if own_and_backbone else {}


def output_path(sampler: Sampler, out: str, name: str) -> Path:
    """Return the file to write: `out`, or media/<name> in the sampler's output folder if `out` is empty.

    Creates its folder.

    Raises:
        UserError: the folder cannot be created, or `out` has another suffix than `name`.
    """
    path = Path(out) if out else sampler.output_folder / "media" / name
    suffix = Path(name).suffix
    if path.suffix != suffix:
        raise UserError(f"--out must name a file that ends in {suffix}, got {out!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out cannot be {out!r} ({error_summary(error)}): name a file that can be written.") from None
    return path
