"""Add a trained classifier to the zoo of networks that ships with the package.

    python -m scripts.add_to_zoo runs/classify-mnist-deep_cnn-fast-1 digits

The weights are rounded to float16, and the rounded network is evaluated on the validation images of the run: its error
must not be larger. The metadata of the file has the command of the run and its results.
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
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.run import Run
from zerokara.core.run_config import stem
from zerokara.core.zoo import registry as zoo
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data
from zerokara.vision.classification.scoring import score

# Maximum increase of the validation error by rounding; at least one image is allowed.
MAX_ERROR_INCREASE = 0.001


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the program."""

    words: Annotated[tuple[str, ...], Positional("run-and-name")] = ()
    """Run folder, and the name of the network in the zoo."""
    folder: str = ""
    """Folder of the zoo; empty: the one of the package."""
    replace: bool = False
    """Replace an existing network of that name."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


def add(
    run: Path, name: str, folder: Path, compute: Compute, *, replace: bool = False
) -> tuple[Path, ClassifierMetadata]:
    """Write the network of a finished run to the zoo. Return the path of the file and its metadata.

    Args:
        run: folder of a run of vision.classify.
        name: name in the zoo.
        folder: folder of the zoo.
        compute: device.
        replace: replace an existing network of that name.

    Raises:
        UserError: the run is missing or not finished, the folder is missing, the name is invalid or taken, the file is
            too large, or rounding increases the error.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise UserError(f"A name in the zoo cannot be {name!r}: use lower-case letters, digits, - and _.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: create it, or omit --folder.")
    path = folder / f"{name}.safetensors"
    if path.exists() and not replace:
        raise UserError(f"The zoo already has {name}: choose another name, or use --replace.")
    config = from_dict(Config, Run.read_config(run, "classify")["config"], str(run / "config.json"))
    classifier, metadata = ClassifierMetadata.load(zoo.find_file(str(run)))
    if not metadata.figures:
        raise UserError(f"{run} is not finished and has no results yet: resume it with --resume.")
    validation = Data.load(config).validation
    before = score(compute.module(classifier), metadata, compute, validation, views=config.tta_views)
    with tempfile.TemporaryDirectory() as scratch:
        rounded_file = Path(scratch) / path.name
        metadata.save(rounded_file, classifier.state_dict(), half=True)
        rounded, _ = ClassifierMetadata.load(rounded_file)
        after = score(compute.module(rounded), metadata, compute, validation, views=config.tta_views)
        increase = round((after.error - before.error) * len(validation))  # in images
        if increase > max(1, MAX_ERROR_INCREASE * len(validation)):
            raise UserError(
                f"Rounded to float16, {run} has a validation error of {after.error:.2%} instead of {before.error:.2%}: "
                f"train it again with a lower --learning-rate or more --weight-decay."
            )
        metadata = dataclasses.replace(
            metadata,
            data=stem(config.data),  # the path of the data is private
            figures={**metadata.figures, "validation_error_float16": after.error},
        )
        metadata.save(rounded_file, classifier.state_dict(), half=True)
        content = rounded_file.read_bytes()
    if len(content) > zoo.MAX_BYTES:
        raise UserError(
            f"{run} has {len(content) / 1e6:.1f} MB as float16, the limit of the zoo is {zoo.MAX_BYTES / 1e6:g} MB: "
            f"train a network with a smaller --width-multiplier."
        )
    write_atomically(path, lambda file: file.write(content))
    zoo.files.cache_clear()
    return path, metadata


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = parse(Options, {}, argv, __doc__ or "")
    if len(options.words) != 2:
        raise UserError(
            "Type a run folder and a name for the zoo, as in python -m scripts.add_to_zoo runs/<name> digits."
        )
    run, name = options.words
    compute = Compute.choose(device="cpu", precision="float32", compile="off", threads=options.threads, train_step=None)
    folder = Path(options.folder) if options.folder else zoo.FOLDER
    path, metadata = add(Path(run), name, folder, compute, replace=options.replace)
    figures = ", ".join(
        f"{key.replace('_', ' ')} {value:.2%}" for key, value in metadata.figures.items() if "error" in key
    )
    print(f"{path}: {path.stat().st_size / 1e3:,.0f} kB; {figures}; command: {metadata.command}")


if __name__ == "__main__":
    run_main(main)
