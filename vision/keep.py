"""Keep: put a trained classifier into the zoo that ships with the package.

    python -m vision.keep runs/classify-mnist-deep_cnn-fast-1 digits

Its numbers are rounded to float16, and the rounded network is scored on the validation images that the run chose on:
what is kept must do as well as what was measured. The file says which command made it and what it was measured at.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from zerokara.core.checkpoint import write_atomically
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, from_dict, run_main
from zerokara.core.models import model_file
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.run_config import stem
from zerokara.core.zoo import registry as zoo
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data
from zerokara.vision.classification.scoring import score

MOST_LOST = 0.001  # of the validation images, through rounding; one of them, where they are few


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to keep, and as what."""

    words: Annotated[tuple[str, ...], Positional("run-and-name")] = ()
    """The run's folder, and its name in the zoo."""
    folder: str = ""
    """Folder of the zoo; empty: that of the package."""
    replace: bool = False
    """Replace a network of that name."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def keep(
    run: Path, name: str, folder: Path, compute: Compute, *, replace: bool = False
) -> tuple[Path, model_file.ClassifierMetadata]:
    """Write a finished run's network into the zoo. Returns the file and its card.

    Raises:
        UserError: no finished run of vision.classify; no such folder; a name that makes no file or is taken; a file
            that is too large; a network that loses by rounding.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise UserError(f"A name in the zoo cannot be {name!r}: it must be small letters, digits, - and _.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: make it, or leave --folder out.")
    place = folder / f"{name}.safetensors"
    if place.exists() and not replace:
        raise UserError(f"The zoo has {name} already: choose another name, or pass --replace.")
    config = from_dict(Config, Run.read_config(run, "classify")["config"], str(run / "config.json"))
    classifier, metadata = model_file.load(zoo.find_file(str(run)))
    if not metadata.figures:
        raise UserError(f"{run} has not ended, so nothing was measured of it: go on with it by --resume.")
    validation = Data.load(config).validation
    before = score(compute.module(classifier), metadata, compute, validation, views=config.tta_views)
    with tempfile.TemporaryDirectory() as scratch:
        rounded_file = Path(scratch) / place.name
        model_file.save(rounded_file, classifier.state_dict(), metadata, half=True)
        rounded, _ = model_file.load(rounded_file)
        after = score(compute.module(rounded), metadata, compute, validation, views=config.tta_views)
        lost = round((after.error - before.error) * len(validation))  # images
        if lost > max(1, MOST_LOST * len(validation)):
            raise UserError(
                f"Rounded to float16, {run} has a validation error of {after.error:.2%} instead of {before.error:.2%}: "
                f"train it again with a lower --learning-rate or more --weight-decay."
            )
        metadata = dataclasses.replace(
            metadata,
            data=stem(config.data),  # where the data lay is nobody else's business
            figures={**metadata.figures, "validation_error_float16": after.error},
        )
        model_file.save(rounded_file, classifier.state_dict(), metadata, half=True)
        content = rounded_file.read_bytes()
    if len(content) > zoo.MOST_BYTES:
        raise UserError(
            f"{run} takes {len(content) / 1e6:.1f} MB as float16, and the zoo's limit is {zoo.MOST_BYTES / 1e6:g} MB: "
            f"train one with a smaller --width-multiplier."
        )
    write_atomically(place, lambda file: file.write(content))
    zoo.files.cache_clear()
    return place, metadata


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    options = parse(Options, {}, argv, __doc__ or "")
    if len(options.words) != 2:
        raise UserError(
            f"Type a run's folder and a name for the zoo, as in {program_command('vision.keep')} runs/<name> digits."
        )
    run, name = options.words
    compute = Compute.choose(device="cpu", precision="float32", compile="off", threads=options.threads, train_step=None)
    folder = Path(options.folder) if options.folder else zoo.FOLDER
    place, metadata = keep(Path(run), name, folder, compute, replace=options.replace)
    figures = ", ".join(
        f"{key.replace('_', ' ')} {value:.2%}" for key, value in metadata.figures.items() if "error" in key
    )
    print(f"{place}: {place.stat().st_size / 1e3:,.0f} kB; {figures}; made by: {metadata.command}")


if __name__ == "__main__":
    run_main(main)
