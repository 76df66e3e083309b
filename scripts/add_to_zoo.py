"""Add a trained classifier, agent or generator to the zoo of networks that ships with the package.

    python -m scripts.add_to_zoo runs/classify-mnist-deep_cnn-fast-1 digits
    python -m scripts.add_to_zoo runs/dqn-Pong-v5-fast-1 pong
    python -m scripts.add_to_zoo runs/dcgan-mnist-fast-1 digits --data "MNIST, 60,000 images (CC BY-SA 3.0)"

The weights are rounded to float16, and the network is scored before and after. A classifier's error on the validation
images of its run, an agent's mean return over 30 episodes, and a generator's Fréchet distance to the test images must
not get worse (scripts/zoo_candidates.py). The metadata of the file has the command of the run, both results with their
protocol, and the training data.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from scripts.zoo_candidates import read_candidate
from zerokara.core.checkpoint import write_atomically
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.models.model_file import Metadata
from zerokara.core.zoo import registry as zoo


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the program."""

    words: Annotated[tuple[str, ...], Positional("run-and-name")] = ()
    """Run folder, and the name of the network in the zoo."""
    data: str = ""
    """Training data with their source and license; empty: name of the data set or environment."""
    folder: str = ""
    """Folder of the zoo; empty: the one of the package."""
    replace: bool = False
    """Replace an existing network of that name."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


def add(
    run: Path, name: str, folder: Path, compute: Compute, *, data: str = "", overwrite: bool = False
) -> tuple[Path, Metadata[Any]]:
    """Write the network of a run to the zoo. Return the path of the file and its metadata.

    Args:
        run: folder of a run.
        name: name in the zoo.
        folder: folder of the zoo.
        compute: device.
        data: description of the training data; empty: that of the run.
        overwrite: replace an existing network of that name.

    Raises:
        UserError: the run is missing or has no trained network, the folder is missing, the name is invalid or taken,
            the file is too large, or rounding makes the network worse.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise UserError(f"A name in the zoo cannot be {name!r}: use lower-case letters, digits, - and _.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: create it, or omit --folder.")
    candidate = read_candidate(run, compute, data)
    path = folder / candidate.kind / f"{name}.safetensors"
    if path.exists() and not overwrite:
        raise UserError(f"The zoo already has {name}: choose another name, or use --replace.")
    metadata, weights = candidate.metadata, candidate.weights
    with tempfile.TemporaryDirectory() as scratch:
        exact, rounded = (Path(scratch) / f"{precision}.safetensors" for precision in ("float32", "float16"))
        metadata.save(exact, weights)
        metadata.save(rounded, weights, half=True)
        if rounded.stat().st_size > zoo.MAX_BYTES:
            raise UserError(
                f"{run} has {rounded.stat().st_size / 1e6:.1f} MB as float16, the limit of the zoo is "
                f"{zoo.MAX_BYTES / 1e6:g} MB: train a network with a smaller --width-multiplier."
            )
        before, after = candidate.score(exact), candidate.score(rounded)
        if worse := candidate.loss(before, after):
            raise UserError(f"Rounded to float16, {run} has {worse}.")
        metadata = replace(
            metadata,
            figures={
                **before.figures,
                **metadata.figures,
                **{f"{figure}_float16": value for figure, value in after.figures.items()},
            },
            protocol=after.protocol,
        )
        metadata.save(rounded, weights, half=True)
        content = rounded.read_bytes()
    path.parent.mkdir(exist_ok=True)
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
    path, metadata = add(Path(run), name, folder, compute, data=options.data, overwrite=options.replace)
    figures = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in metadata.figures.items())
    print(f"{path}: {path.stat().st_size / 1e3:,.0f} kB; {figures}; command: {metadata.command}")


if __name__ == "__main__":
    run_main(main)
