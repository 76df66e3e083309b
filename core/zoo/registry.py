"""Small trained networks of our own, shipped inside the package: <name>.safetensors, numbers as float16, under 5 MB.

    classifier, card = load("digits")

A file carries its card: classes, how to feed it, the command that made it and the figures that were measured of it.
`python -m core.zoo` lists them; `python -m vision.keep` adds one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from zerokara.core.config import UserError, suggest
from zerokara.core.models import model_file
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import ClassifierMetadata

FOLDER = Path(__file__).resolve().parent
MOST_BYTES = 5_000_000


@functools.cache
def files() -> Mapping[str, Path]:
    """The files by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def load(name: str) -> tuple[Classifier, ClassifierMetadata]:
    """A network of the zoo in evaluation mode, float32 on the CPU, and its card.

    Raises:
        UserError: no such name.
    """
    if name not in files():
        raise UserError(f"The zoo has no {name!r}{suggest(name, files())}: {_known()}.")
    return model_file.load(files()[name])


def find_file(word: str) -> Path:
    """The file of a trained classifier: of a run's folder, the file itself, or one of the zoo by its name.

    Raises:
        UserError: none of these, or a run that has kept no network yet.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise UserError(
                f"{path} has no model.safetensors: give the folder of a run of vision.classify that has ended an epoch."
            )
        return path / "model.safetensors"
    if path.is_file():
        return path
    if word in files():
        return files()[word]
    raise UserError(
        f"There is no {word}{suggest(word, files())}: give a run's folder, a file *.safetensors, or a name of the zoo "
        f"({_known()})."
    )


def weights_source(word: str) -> Path:
    """Where weights to begin with lie: in a run's folder of any kind, in a file, or in the zoo under this name.

    Raises:
        UserError: none of these.
    """
    path = Path(word).expanduser()
    return path if path.exists() else find_file(word)


def _known() -> str:
    return ", ".join(files()) or "it is empty"
